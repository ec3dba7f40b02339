"""The HTML page: self-contained, safe from its own data, and alive in a real browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import mypt
from mypt.config import MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import open_dataset, prepare, tokenize
from mypt.inspection import histograms
from mypt.inspection.checks.findings import Finding
from mypt.inspection.histograms import density_histogram, length_histogram, row_lengths, row_shares
from mypt.inspection.preview import choose_rows, write_preview
from mypt.inspection.validation import REPORT, validate
from tests.mypt.clean import by_hand, everything

OWNED = "document.title = 'owned'"
EVIL = (
    f'<script>{OWNED}</script></script><script>{OWNED}</script><img src=x onerror="{OWNED}">'
    f"<!--<script>\u2028]]> &lt;b&gt; </textarea></title><svg onload={OWNED}> \x1b[31m\u202e"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--virtual-time-budget=5000", "--window-size=1200,3000", "--dump-dom",
)  # fmt: skip

browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine; apt-get install chromium"
)


class Page(HTMLParser):
    """What a browser would make of the page: its elements and the text of each."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self._open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))

    def all(self, tag, **wanted):
        return [a for t, a in self.elements if t == tag and wanted.items() <= a.items()]

    def text(self, *tags):
        return "".join(data for tag, data in self.texts if not tags or tag in tags)


def evil(folder):
    """Prepare conversations whose text, source name and line try to run."""
    path = folder / "a<b onclick=x>'\".jsonl"
    talks = [
        [{"role": "user", "content": EVIL}, {"role": "assistant", "content": f"{n} {EVIL}"}]
        for n in range(3)
    ]
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    source = Source(path=str(path), name="<script>name</script>")
    config = PrepareConfig(sources=(source,), tokenization="byte", val_fraction=0.3)
    return Path(prepare(config, MaskPolicy(), folder / "dataset").path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return everything(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def page(whole, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_preview(whole, path)
    return path


def carried(path):
    """Return the data that a page carries."""
    html = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])


def opened(path, address, tmp_path):
    """Return what stands in a browser's window after the page has run."""
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"{path.as_uri()}#{address}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return Page(done.stdout)


def rows_of(page):
    return [attributes["id"] for attributes in page.all("article")]


def test_nothing_is_loaded_from_anywhere(page):
    parsed = Page(page.read_text(encoding="utf-8"))
    assert {tag for tag, _ in parsed.elements} & {"link", "img", "iframe", "base"} == set()
    assert not any("src" in a or "href" in a for _, a in parsed.elements)
    (policy,) = parsed.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none';")
    for asset in ("page.css", "preview.js", "preview.html"):
        text = Path(mypt.__file__).with_name("pages").joinpath(asset).read_text()
        assert not re.search(r"https?://|@import|url\(|fetch\(|innerHTML|eval\(", text)


def test_text_that_would_run_is_only_carried(tmp_path):
    write_preview(evil(tmp_path), tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    parsed = Page(html)
    assert len(parsed.all("script")) == html.count("<script") == html.count("</script>") == 2
    assert not parsed.all("img")
    assert not any(name.startswith("on") for _, a in parsed.elements for name in a)
    said = "".join(carried(tmp_path / "page.html")["rows"][0]["texts"])
    assert EVIL.replace("\u2028", "\\u2028").replace("\x1b", "\\x1b").replace(
        "\u202e", "\\u202e") in said  # fmt: skip


def test_the_page_carries_tokens_masks_and_reasons_as_they_are(whole, page):
    dataset, data = open_dataset(whole), carried(page)
    assert len(data["rows"]) == 80
    at = {"train": 0, "val": 0}
    for split in at:
        for shard in dataset.shards(split):
            for row in shard.rows:
                shown = next(
                    r for r in data["rows"] if (r["split"], r["index"]) == (split, at[split])
                )
                assert shown["ids"] == shard.tokens[row["start"] : row["stop"]].tolist()
                mask = shard.mask[row["start"] : row["stop"]]
                assert shown["mask"] == "".join(map(str, mask))
                start = 0
                for stop, *_, reason in shown["spans"]:
                    assert f"-> {mask[start]}:" in data["reasons"][reason]
                    start = stop
                at[split] += 1
    assert all(
        bytes.fromhex(data["bytes"][str(i)]) == dataset.tokenizer.decode_bytes([i])
        for i in data["rows"][0]["ids"]
    )


def test_rows_with_findings_come_first_and_the_rest_is_spread(whole):
    dataset = open_dataset(whole)
    flagged = {("train", 17): ["x"], ("val", 3): ["x"]}
    chosen = choose_rows(dataset, flagged, 10)
    assert {("train", 17), ("val", 3)} <= set(chosen)
    assert len(chosen) == len(set(chosen)) == 10
    assert ("train", 0) in chosen
    assert ("val", 13) in chosen
    assert chosen == sorted(chosen)
    assert choose_rows(dataset, flagged, 1) == [("train", 17)]
    assert len(choose_rows(dataset, {}, 1000)) == 80


def test_histograms_count_every_row_once_and_documents_beside_conversations(whole):
    dataset = open_dataset(whole)
    chats, texts = row_shares(dataset)
    assert (len(chats), len(texts), len(row_lengths(dataset))) == (60, 20, 80)
    assert set(texts) == {1.0}
    assert 0 < chats.min() <= chats.max() < 1
    density, lengths = density_histogram(dataset), length_histogram(dataset)
    assert density.note.startswith("60 rows, median ")
    assert density.note.endswith("; 20 documents left out")
    assert lengths.note.startswith("80 rows, median ")
    assert "tokens of a row, logarithmic" in Page(lengths.svg).text("text")


def test_histograms_are_the_same_bytes_each_time_in_the_colours_of_the_page(whole):
    dataset = open_dataset(whole)
    style = Path(mypt.__file__).with_name("pages").joinpath("page.css").read_text()
    for histogram in (density_histogram, length_histogram):
        drawn = histogram(dataset).svg
        assert histogram(dataset).svg == drawn
        assert not re.search(r"#[0-9a-f]{6}\b|<metadata|\d{4}-\d\d-\d\d", drawn)
        for name in set(re.findall(r"var\(--(\w+)\)", drawn)):
            assert style.count(f"--{name}: light-dark(") == 1, "a light page and a dark one"


def test_what_two_plots_of_a_page_refer_to_is_their_own(page):
    parsed = Page(page.read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {a["xlink:href"].removeprefix("#") for a in parsed.all("use")}
    assert used <= set(ids)
    assert len(parsed.all("svg", role="img")) == 2


@pytest.mark.parametrize("lengths", [[], [0], [7], [7, 7], [1, 2, 3], [5, 100_000]])
def test_lengths_of_every_kind_can_be_drawn(whole, lengths, monkeypatch):
    monkeypatch.setattr(histograms, "row_lengths", lambda _: np.array(lengths, np.int64))
    drawn = length_histogram(open_dataset(whole))
    assert bool(drawn.svg) == bool(lengths)
    assert ("nobody recorded" in drawn.note) != bool(lengths)


def test_datasets_without_masks_or_rows_have_a_page_too(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    source = Source(path=str(tmp_path / "a.txt"), format="text")
    config = PrepareConfig(sources=(source,), tokenization="byte", val_fraction=0.0)
    tokenize(config, tmp_path / "unmasked")
    write_preview(tmp_path / "unmasked", tmp_path / "unmasked.html")
    assert carried(tmp_path / "unmasked.html")["reasons"] == ["no mask yet"]
    write_preview(by_hand(tmp_path), tmp_path / "hand.html")
    assert carried(tmp_path / "hand.html")["reasons"] == ["made by hand"]


def test_a_known_report_is_not_made_again(whole, tmp_path, monkeypatch):
    report = validate(whole)
    monkeypatch.setattr("mypt.inspection.preview.validate", None)
    write_preview(whole, tmp_path / "page.html", report=report)
    assert '<p class="verdict good">no findings</p>' in (tmp_path / "page.html").read_text()


def test_a_page_keeps_the_report_that_it_made_and_the_next_page_takes_it(
    whole, tmp_path, monkeypatch
):
    shutil.copytree(whole, tmp_path / "data")
    (tmp_path / "data" / REPORT).unlink(missing_ok=True)
    write_preview(tmp_path / "data", tmp_path / "first.html")
    monkeypatch.setattr("mypt.inspection.preview.validate", None)
    write_preview(tmp_path / "data", tmp_path / "second.html")
    assert (tmp_path / "second.html").read_bytes() == (tmp_path / "first.html").read_bytes()


def test_a_warning_is_not_green(whole, tmp_path):
    warning = Finding(code="density_low", level="warning", message="low", count=2, examples=())
    report = validate(whole).model_copy(update={"findings": (warning,)})
    write_preview(whole, tmp_path / "page.html", report=report)
    assert '<p class="verdict warning">1 warning</p>' in (tmp_path / "page.html").read_text()


@browser
def test_in_a_browser_hostile_text_shows_as_text(tmp_path):
    write_preview(evil(tmp_path), tmp_path / "page.html")
    shown = opened(tmp_path / "page.html", "", tmp_path)
    assert next(data for tag, data in shown.texts if tag == "title") == "dataset · mypt"
    assert not shown.all("img")
    assert len(shown.all("script")) == 2
    assert f"<User><script>{OWNED}</script>" in shown.text("span")
    assert len(rows_of(shown)) == 3


@browser
def test_in_a_browser_supervised_tokens_are_marked(page, tmp_path):
    shown = opened(page, "text=Be brief, 1.", tmp_path)
    (name,) = rows_of(shown)
    split, index = name.split("-")
    row = next(r for r in carried(page)["rows"] if (r["split"], r["index"]) == (split, int(index)))
    tokens = [a for a in shown.all("span") if "data-token" in a]
    assert len(tokens) == len(row["ids"])
    assert "".join(str(int("yes" in a["class"].split())) for a in tokens) == row["mask"]


@browser
@pytest.mark.parametrize(
    ("address", "fits"),
    [
        ("split=val", lambda row: row["split"] == "val"),
        ("source=text.jsonl", lambda row: row["source"] == "text.jsonl"),
        ("role=tool", lambda row: any(span[1] == 4 for span in row["spans"])),
        ("finding=doubled", lambda row: "doubled" in row["findings"]),
    ],
)
def test_in_a_browser_filters_choose_rows(address, fits, tmp_path, twice):
    shown = opened(twice, address, tmp_path)
    wanted = [f"{row['split']}-{row['index']}" for row in carried(twice)["rows"] if fits(row)]
    assert 0 < len(wanted) < len(carried(twice)["rows"])
    assert rows_of(shown) == wanted[:40]
    assert f"{len(wanted)} of {len(carried(twice)['rows'])} rows" in shown.text("output")


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Return the page of a dataset in which a row stands twice."""
    folder = tmp_path_factory.mktemp("twice")
    everything(folder)
    shutil.rmtree(folder / "dataset")
    lines = (folder / "rows.jsonl").read_text().splitlines()
    (folder / "rows.jsonl").write_text("\n".join([*lines, lines[0]]) + "\n")
    sources = tuple(Source(path=str(folder / name)) for name in ("rows.jsonl", "text.jsonl"))
    config = PrepareConfig(sources=sources, tokenization="byte", val_fraction=0.2)
    prepare(config, MaskPolicy(), folder / "dataset")
    write_preview(folder / "dataset", folder / "page.html")
    return folder / "page.html"


@browser
def test_in_a_browser_a_token_tells_all_that_is_known_about_it(page, tmp_path):
    row = carried(page)["rows"][0]
    stop = row["spans"][0][0]
    shown = opened(page, f"row={row['split']}-{row['index']}&token={stop}", tmp_path)
    facts = [data for tag, data in shown.texts if tag == "dd"]
    data = carried(page)
    _, role, kind, _, reason = row["spans"][1]
    assert facts[0] == f"{stop} of {len(row['ids'])}"
    assert facts[1] == str(row["ids"][stop])
    assert facts[2] == data["bytes"][str(row["ids"][stop])]
    assert facts[4:6] == [data["roles"][role], data["kinds"][kind]]
    assert facts[7] == data["reasons"][reason]
