"""The drawn chain: every link in its place, safe from its own names."""

import re
from html.parser import HTMLParser
from itertools import combinations

import pytest

from mypt.provenance.drawing import BOX_HEIGHT, BOX_WIDTH, FILES_DRAWN, draw
from mypt.provenance.lineage_page import render_page, write_page
from mypt.provenance.trace import Link

EVIL = '<script>document.title = "owned"</script><img src=x onerror="x"> \u202e\x1b[31m'


def link(kind, name, *links, verified=None, **values):
    digest = f"{abs(hash((kind, name))):064x}"
    return Link(kind=kind, name=name, digest=digest, links=links, verified=verified, **values)


def chain(n_files=3, name="chat.jsonl", verified=None):
    """A base model, and a chat model on a dataset that was masked apart."""
    files = [link("file", f"{i}-{name}", verified=verified) for i in range(n_files)]
    texts = link("source", f"texts {name}", *files)
    base = link("checkpoint", "base step 5", link("dataset", "base-1", texts, verified=verified),
                verified=verified)  # fmt: skip
    chats = link("source", name, link("file", name, verified=verified))
    tokens = link("dataset", "before masking", verified=verified)
    data = link("dataset", "chat-2", tokens, chats, verified=verified, facts=("a fact",))
    return link("checkpoint", "chat step 9", data, base, verified=verified)


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.words = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_every_link_has_a_box_and_no_two_boxes_touch():
    drawing = draw(chain())
    assert sorted(box.full for box in drawing.boxes) == sorted(
        ["0-chat.jsonl", "1-chat.jsonl", "2-chat.jsonl", "texts chat.jsonl", "base-1",
         "base step 5", "chat.jsonl", "chat.jsonl", "before masking", "chat-2", "chat step 9"]
    )  # fmt: skip
    for one, other in combinations(drawing.boxes, 2):
        apart = abs(one.x - other.x) >= BOX_WIDTH or abs(one.y - other.y) >= BOX_HEIGHT
        assert apart, (one.full, other.full)
    assert all(box.x + BOX_WIDTH <= drawing.width for box in drawing.boxes)
    assert all(box.y + BOX_HEIGHT <= drawing.height for box in drawing.boxes)


def test_arrows_lead_from_what_was_read_to_what_was_made():
    drawing = draw(chain(n_files=1))
    at = {box.full if box.kind != "file" else f"file {box.full}": box for box in drawing.boxes}
    expected = {
        ("file 0-chat.jsonl", "texts chat.jsonl"), ("texts chat.jsonl", "base-1"),
        ("base-1", "base step 5"), ("file chat.jsonl", "chat.jsonl"),
        ("chat.jsonl", "before masking"), ("before masking", "chat-2"),
        ("chat-2", "chat step 9"), ("base step 5", "chat step 9"),
    }  # fmt: skip
    found = set()
    for arrow in drawing.arrows:
        numbers = [float(text) for text in re.findall(r"[\d.]+", arrow)]
        (x, y), (to_x, to_y) = numbers[:2], numbers[-2:]
        leaves, arrives = [], []
        for name, box in at.items():
            center = box.x + BOX_WIDTH / 2
            if (x, y) in ((box.x + BOX_WIDTH, box.middle), (center, box.y + BOX_HEIGHT)):
                leaves.append(name)
            if (to_x, to_y) in ((box.x - 3, box.middle), (center, box.y - 3)):
                arrives.append(name)
        found.add((*leaves, *arrives))
    assert found == expected


def test_a_source_of_many_files_shows_some_and_the_changed_first():
    files = [link("file", f"{i}.txt", verified=i != 40) for i in range(50)]
    data = link("dataset", "d", link("source", "s", *files), verified=True)
    boxes = draw(link("checkpoint", "m step 1", data, verified=True)).boxes
    drawn = [box for box in boxes if box.kind == "file"]
    assert len(drawn) == FILES_DRAWN + 1
    assert (drawn[0].full, drawn[0].state) == ("40.txt", "bad")
    assert drawn[-1].full == f"{50 - FILES_DRAWN} more files"
    (source,) = [box for box in boxes if box.kind == "source"]
    assert (source.state, drawn[-1].anchor, drawn[-1].note) == ("bad", source.anchor, "")
    (made,) = [box for box in boxes if box.kind == "checkpoint"]
    assert (made.title, made.note[:9]) == ("m", "step 1 \u00b7 ")


def test_a_column_that_nothing_stands_in_is_left_out():
    data = link("dataset", "d", link("source", "s", link("file", "f")))
    headings = [name for _, name in draw(link("checkpoint", "m step 1", data)).headings]
    assert headings == ["raw files", "sources", "datasets", "checkpoints"]
    assert "before masking" in [name for _, name in draw(chain()).headings]


def test_the_page_is_whole_and_every_arrow_of_a_box_leads_to_its_details(tmp_path):
    write_page(chain(), tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"].removeprefix("#") for tag, attrs in page.elements if tag == "a"}
    assert targets <= set(ids)
    assert "a fact" in page.words
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "img", "iframe"})
    loaded = [v for _, attrs in page.elements for k, v in attrs.items() if k in ("src", "href")]
    assert all(value.startswith("#") for value in loaded)


def test_names_cannot_leave_their_place():
    html = render_page(chain(name=EVIL))
    page = Page(html)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img"})
    assert not any(key.startswith("on") for _, attrs in page.elements for key in attrs)
    assert "\u202e" not in html
    assert "\x1b" not in html
    assert any('<script>document.title = "owned"' in words for words in page.words)


@pytest.mark.parametrize(
    ("verified", "said"),
    [(None, "not verified"), (True, "every byte as recorded"), (False, "1 problem")],
)
def test_the_verdict_says_whether_anybody_looked(verified, said):
    found = chain(verified=verified)
    if verified is False:
        found = found.model_copy(update={"problems": ("it changed",)})
    words = Page(render_page(found)).words
    assert said in words
    assert ("it changed" in words) == (verified is False)
