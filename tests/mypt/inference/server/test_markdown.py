"""Markdown as the page shows it: a few elements, and of hostile text nothing but text."""

import json
import time

import pytest

from tests.mypt.inference.browser import needs_browser, tab
from tests.mypt.inference.echo import Echo, byte_tokenizer, serving

pytestmark = needs_browser
OWNED = "document.title = 'owned'"
SAFE = {
    "P", "STRONG", "EM", "DEL", "CODE", "PRE", "DIV", "SPAN", "BUTTON", "A", "UL", "OL", "LI", "HR",
    "BLOCKQUOTE", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD", "H3", "H4", "H5", "H6",
}  # fmt: skip
LONG = 100_000


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    tokenizer = byte_tokenizer()
    with (
        serving(Echo(tokenizer), tokenizer) as url,
        tab(tmp_path_factory.mktemp("browser")) as page,
    ):
        page.open(url)
        page.run("var place = document.createElement('div'); document.body.append(place)")
        yield page


def shown(page, text, script="place.innerHTML"):
    page.run(f"place.replaceChildren(); growing(place)({json.dumps(text)}, true)")
    return page.run(script)


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
        ("**a *b* c** _d_ ~~e~~", "<p><strong>a <em>b</em> c</strong> <em>d</em> <del>e</del></p>"),
        ("***both*** 2 * 3 * 4", "<p><strong><em>both</em></strong> 2 * 3 * 4</p>"),
        ("snake_case_name __init__", "<p>snake_case_name <strong>init</strong></p>"),
        ("`a *b*` ``c ` d`` \\*e\\*", "<p><code>a *b*</code> <code>c ` d</code> *e*</p>"),
        ("# A\n### B **b**", "<h3>A</h3><h5>B <strong>b</strong></h5>"),
        ("a\n***\nb", "<p>a</p><hr><p>b</p>"),
        ("> a\n> > b\n\nc",
         "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"),
        ("- a\n- b\n  - c\n\n    d\n* e",
         "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p><p>d</p></li></ul></li>"
         "<li><p>e</p></li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol>'),
    ],
)  # fmt: skip
def test_a_few_marks_are_elements(page, text, html):
    assert shown(page, text).replace(' start="1"', "") == html


def test_a_fence_is_code_that_can_be_copied_open_or_closed(page):
    for text in ("```python\nif x < 1:\n\tpass\n```\nafter", "~~~ python\nif x < 1:\n\tpass"):
        assert shown(page, text, "place.querySelector('pre').textContent") == "if x < 1:\n\tpass"
        assert page.run("place.querySelector('.code span').textContent") == "python"
        assert page.run("place.querySelector('button').ariaLabel") == "Copy this code"
        assert page.run("place.lastChild.tagName") == ("P" if "after" in text else "DIV")


def test_a_table_has_its_columns_and_no_cell_beyond_them(page):
    text = "| a | b |\n|:--|--:|\n| 1 | **2** |\n| 3 \\| 4 | 5 | 6 |\n\nafter"
    cells = "[...place.querySelectorAll('th, td')].map(cell => cell.textContent)"
    assert shown(page, text, cells) == ["a", "b", "1", "2", "3 | 4", "5"]
    assert page.run("place.querySelectorAll('td')[1].style.textAlign") == "right"
    assert page.run("place.lastChild.textContent") == "after"


def test_only_http_and_https_are_links_and_they_tell_nobody_where_they_are(page):
    text = "[a](https://example.com/x_(y)) **[b](http://b.example)** see https://c.example/d, ok"
    links = "[...place.querySelectorAll('a')].map(a => [a.textContent, a.href, a.rel, a.target])"
    told = ["noopener noreferrer", "_blank"]
    assert shown(page, text, links) == [
        ["a", "https://example.com/x_(y)", *told],
        ["b", "http://b.example/", *told],
        ["https://c.example/d", "https://c.example/d", *told],
    ]
    address = "https://аpple.example"  # noqa: RUF001 - a look-alike
    assert shown(page, f"[apple]({address})", "place.querySelector('a').title").startswith(
        "https://xn--"
    )


HOSTILE = [
    f"<script>{OWNED}</script><img src=x onerror=\"{OWNED}\"><svg onload=\"{OWNED}\">",
    f"[x](javascript:{OWNED}) [x](JaVaScRiPt:alert) [x](data:text/html,x) [x](//evil.example)",
    f"[x](java\tscript:{OWNED}) [x](&#106;avascript:x) [x](vbscript:x) [x](file:///etc/passwd)",
    f"<a href=\"javascript:{OWNED}\">x</a> <iframe srcdoc=\"x\"></iframe> <style>*{{}}</style>",
    f"```html\n</code></pre><script>{OWNED}</script>\n```\n# <img src=x onerror=\"{OWNED}\">",
    f"| <script>{OWNED}</script> | b |\n|-|-|\n| <img src=x onerror=\"{OWNED}\"> | `<b>` |",
    "![x](javascript:alert) <https://x onmouseover=alert> &lt;script&gt; <!-- <b> -->",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(page, text):
    elements = "[...place.querySelectorAll('*')].map(element => element.tagName)"
    for end in range(0, len(text) + 1, 7):  # as it streams
        assert set(shown(page, text[:end], elements)) <= SAFE
    assert set(shown(page, text, elements)) <= SAFE
    assert page.run("[...place.querySelectorAll('a')].every(a => /^https?:/.test(a.protocol))")
    assert page.run("document.title") == "echo · mypt"


def test_an_image_is_a_link_and_nothing_is_loaded(page):
    before = page.run("performance.getEntriesByType('resource').length")
    text = "![a picture](https://example.com/a.png)"
    assert shown(page, text, "place.querySelector('a').textContent") == "a picture"
    assert page.run("place.querySelectorAll('img').length") == 0
    assert page.run("performance.getEntriesByType('resource').length") == before


def test_what_would_turn_the_text_about_is_spelt_out(page):
    text = "safe \u202egnp.exe\u2066 \u200b\x1b[31m a\u200db"
    expected = "safe \\u202egnp.exe\\u2066 \\u200b\\x1b[31m a\u200db"
    assert shown(page, text, "place.textContent") == expected
    assert "\\u202e" in shown(page, f"`{text}`", "place.querySelector('code').textContent")


@pytest.mark.parametrize(
    "text",
    [
        "x" * LONG, "*" * LONG, "**a " * (LONG // 4), "_a" * (LONG // 2), "[" * LONG,
        "[a](" * (LONG // 4), "[a](" + " " * LONG + "x", "[a](b" + "(" * LONG, "`" * LONG,
        "".join("`" * n + " " for n in range(440)), "> " * (LONG // 2), "- " * (LONG // 2),
        "```" + " " * LONG + "`", "~" * LONG + "`", "#" + " " * LONG,
        "|" * LONG + "\n" + "|-" * LONG,
        "---|" + " " * LONG + "x\n" * 2, "https://a" + ")" * LONG + "x", "- - " * (LONG // 4) + "x",
        "\\" * LONG, "a|b\n-|-\n" + "|\n" * (LONG // 2), "  - a\n" * (LONG // 6), "\u202e" * LONG,
        "\n".join(" " * (2 * n) + "- a" for n in range(300)), "**a*b_c~~" * (LONG // 9),
    ],
    ids=range(25),
)  # fmt: skip
def test_endless_lines_of_any_kind_do_not_hold_the_page(page, text):
    began = time.monotonic()
    shown(page, text, "place.childNodes.length")
    assert time.monotonic() - began < 10


MIXED = (
    "# Title\n\nSome *text* and `code`.\n\n"
    "- one\n- two\n\n  more\n1. three\n\n| a | b |\n|---|---|\n"
    "| 1 | 2 |\n\n```py\nx = 1\n\n# no title\n```\n> quoted\nlast **line**"
)  # fmt: skip


def test_text_that_grows_ends_as_text_that_came_whole(page):
    whole = shown(page, MIXED)
    page.run("place.replaceChildren(); var show = growing(place)")
    for end in range(1, len(MIXED) + 1):
        page.run(f"show({json.dumps(MIXED[:end])})")
    page.run(f"var first = place.firstChild; show({json.dumps(MIXED)})")
    assert page.run("place.firstChild === first"), "what cannot change is not made anew"
    page.run(f"show({json.dumps(MIXED)}, true)")
    assert page.run("place.innerHTML") == whole
