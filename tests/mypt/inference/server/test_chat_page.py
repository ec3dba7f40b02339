"""The page to talk on: self-contained, safe from what is said, alive in a real browser."""

import re
from pathlib import Path

import pytest

import mypt
from mypt.inference.server.serving import chat_page
from tests.mypt.inference.browser import needs_browser, tab
from tests.mypt.inference.echo import CHECKPOINT, Echo, byte_tokenizer, serving

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
TURNS = "[...document.querySelectorAll('.turn')].map(turn => turn.textContent)"
READY = "!document.getElementById('send').disabled"
NOTE = "document.getElementById('note').textContent"


def test_the_page_loads_nothing_and_escapes_the_models_name():
    html, policy = chat_page({"<i>\"x' onload=1": CHECKPOINT}, key=False)
    assert "<i>" not in html
    assert not re.search(r"\b(src|href)=", html)
    assert policy.startswith("default-src 'none';")
    for file in (Path(mypt.__file__).parent / "pages").glob("chat.*"):
        text = file.read_text()
        assert not re.search(r"https?://|@import|url\(|innerHTML|insertAdjacent|eval\(", text)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    tokenizer = byte_tokenizer()
    model = Echo(tokenizer)
    with (
        serving(model, tokenizer, api_key="sesame") as url,
        tab(tmp_path_factory.mktemp("browser")) as page,
    ):
        page.open(url)
        page.model = model
        yield page


def said(page, text):
    page.run("document.getElementById('said').focus()")
    page.type(text)
    page.press_enter()


@needs_browser
def test_people_talk_with_the_model_in_a_browser(page):
    said(page, "Hello")
    assert page.wait(f"{READY} && {NOTE}").startswith("a wrong or no API key")
    assert page.run(TURNS) == []
    assert page.run("document.getElementById('said').value") == "Hello"  # nothing is lost
    page.run("document.getElementById('key').value = 'sesame'")
    said(page, " 😀")
    page.wait(f"{READY} && {TURNS}.length === 2")
    assert page.run(TURNS) == ["Hello 😀", "Hello 😀"]
    page.model.gate.clear()
    said(page, "stop me")
    page.wait("document.querySelectorAll('.turn').length === 4")
    page.run("document.getElementById('stop').click()")
    page.wait(f"{READY} && {NOTE} === 'Stopped.'")
    page.model.gate.set()
    page.run("document.getElementById('new').click()")
    assert page.run(TURNS) == []
    page.run("document.getElementById('said').value = ''")
    said(page, EVIL)
    page.wait(f"{READY} && {TURNS}.length === 2")
    assert page.run(TURNS) == [EVIL, EVIL]
    assert page.run("document.querySelectorAll('img').length") == 0
    assert page.run("document.title") == "echo · mypt"
    assert page.run("document.querySelector('h1').textContent") == "echo"
    which = "answers from step 1,234 checkpoint dddddddddddd"
    assert page.run("document.querySelector('.facts').textContent") == which


@needs_browser
def test_a_long_conversation_goes_on_and_the_reader_is_told_once(page):
    page.run("document.getElementById('key').value = 'sesame'")
    page.run("document.getElementById('new').click()")
    asides = "[...document.querySelectorAll('.aside')].map(aside => aside.textContent)"
    for number in range(1, 7):
        said(page, str(number) * 50)
        page.wait(f"{READY} && {TURNS}.length === {2 * number}")
    assert page.run(TURNS)[-1] == "6" * 50
    (told,) = page.run(asides)
    assert "no longer reads the oldest turns (1 so far)" in told
    page.run("document.getElementById('new').click()")
    assert page.run(asides) == []
