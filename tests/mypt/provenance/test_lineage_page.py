"""The chain as nested lists: every link with what is known of it, safe from its own names."""

from html.parser import HTMLParser

import pytest

from mypt.provenance.lineage_page import FILES_OPEN, render_page, state, write_page
from mypt.provenance.trace import Link

EVIL = '<script>document.title = "owned"</script><img src=x onerror="x"> \u202e\x1b[31m'


def link(kind, name, *links, verified=None, **values):
    digest = f"{abs(hash((kind, name))):064x}"
    path = None if kind == "source" else f"/there/{name}"
    values = {"path": path} | values
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
    """The elements and words of a page, and how deep in lists each name stands."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.words, self.depth, self._tags = [], [], {}, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self._tags.append(tag)

    def handle_endtag(self, tag):
        assert self._tags.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self._tags and self._tags[-1] == "b":
            self.depth[data] = self._tags.count("li")

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def test_every_link_stands_in_what_was_made_from_it_as_the_terminal_prints_it():
    page = Page(render_page(chain()))
    assert list(page.depth.items())[1:] == [
        ("chat step 9", 1), ("chat-2", 2), ("before masking", 3), ("chat.jsonl", 3),
        ("base step 5", 2), ("base-1", 3), ("texts chat.jsonl", 4),
    ]  # fmt: skip
    for name in ("0-chat.jsonl", "1-chat.jsonl", "2-chat.jsonl", "chat.jsonl"):
        assert f"/there/{name} " in page.words
    assert len(page.all("tr")) == 4


def test_a_link_says_all_that_is_known_of_it():
    file = link("file", "f", verified=False, problems=("its bytes changed",), facts=("7 bytes",))
    source = link("source", "s", file, facts=("12 rows read",))
    data = link("dataset", "d", source, verified=False, problems=("no mask",), facts=("a fact",))
    made = link("checkpoint", "m step 1", data, verified=True)
    words = Page(render_page(made)).words
    assert {one.digest for one in (file, source, data, made)} <= set(words)
    assert {"/there/d", "/there/m step 1", "a fact", "12 rows read", "7 bytes"} <= set(words)
    assert words.count("no mask") == 2
    assert words.count("its bytes changed") == 2, "on top, and where it is"
    assert words.count("not as recorded") == 3


def test_what_two_trainings_share_is_shown_once_and_referred_to():
    shared = link("checkpoint", "base step 5", link("dataset", "base-1"))
    data = link("dataset", "chat-2", link("source", "s", link("file", "f")))
    page = Page(render_page(link("checkpoint", "m step 1", data, shared, shared, data)))
    (one, other) = page.all("a")
    ids = [attrs["id"] for attrs in page.all("details")]
    assert len(ids) == len(set(ids)) == 5
    assert {one["href"], other["href"]} <= {f"#{name}" for name in ids}
    assert page.words.count("base step 5") == page.words.count("chat-2") == 2
    assert page.words.count("base-1") == 1
    assert list(page.depth).count("base step 5") == 1


def test_two_links_of_one_digest_are_two_where_their_records_differ():
    one, other = (link("source", "s", link("file", "f"), facts=(said,)) for said in "ab")
    page = Page(render_page(link("checkpoint", "m step 1", link("dataset", "d", one, other))))
    assert not page.all("a")
    assert {"a", "b"} <= set(page.words)


@pytest.mark.parametrize(
    ("n_files", "changed", "is_open"),
    [(FILES_OPEN, None, True), (FILES_OPEN + 1, None, False), (FILES_OPEN + 1, 3, True)],
)
def test_a_long_list_of_files_is_folded_unless_one_changed(n_files, changed, is_open):
    files = [link("file", f"{i}.txt", verified=i != changed) for i in range(n_files)]
    source = link("source", "s", *files)
    page = Page(render_page(link("checkpoint", "m step 1", source, verified=True)))
    assert ["open" in attrs for attrs in page.all("details")] == [True, is_open]
    assert len(page.all("tr")) == n_files


def test_a_source_is_as_its_worst_file():
    good, bad, unknown, lost = (
        link("file", "f", verified=verified, path=path)
        for verified, path in ((True, "f"), (False, None), (None, "f"), (None, None))
    )
    assert state(link("source", "s", good, good)) == "good"
    assert state(link("source", "s", good, unknown)) == "unknown"
    assert state(link("source", "s", good, lost, unknown)) == "lost"
    assert state(link("source", "s", good, bad, lost)) == "bad"
    assert state(link("source", "s")) == "unknown"


def test_the_page_is_whole_and_loads_nothing(tmp_path):
    write_page(chain(), tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "img", "iframe", "svg"})
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
    ("verified", "problems", "said"),
    [
        (True, (), ("good", "every byte as recorded")),
        (False, ("it changed",), ("error", "1 problem")),
    ],
)
def test_the_verdict_says_what_was_found(verified, problems, said):
    found = chain(verified=verified).model_copy(update={"problems": problems})
    html = render_page(found)
    assert '<p class="verdict {}">{}</p>'.format(*said) in html
    assert "not checked" not in html
    assert html.count("it changed") == 2 * len(problems)


def test_a_page_that_nobody_verified_has_no_verdict_but_says_so():
    html = render_page(chain())
    assert '"verdict' not in html
    assert html.count("bytes not checked") == 1
    gone = link("dataset", "d", link("source", "s", link("file", "f", path=None)), path=None)
    html = render_page(link("checkpoint", "m step 1", gone))
    assert '<p class="verdict warning">2 not found</p>' in html
    assert html.count('<i class="lost">not found</i>') == 3
