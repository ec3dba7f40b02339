"""The page to talk on: self-contained, safe from what is said, alive in a real browser."""

import json
import re
from pathlib import Path

import pytest

import mypt
from mypt.config import MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import prepare
from mypt.inference.server.serving import chat_page
from tests.mypt.inference.browser import needs_browser, tab
from tests.mypt.inference.echo import CHECKPOINT, Echo, byte_tokenizer, serving
from tests.mypt.inference.server.test_several_models import Shout

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
TURNS = "[...document.querySelectorAll('.text')].map(text => text.textContent)"
READY = "!document.getElementById('send').disabled"
NOTE = "document.getElementById('note').textContent"
ASIDES = "[...document.querySelectorAll('.aside')].map(aside => aside.textContent)"


def test_the_page_loads_nothing_and_escapes_the_models_name():
    html, policy = chat_page({"<i>\"x' onload=1": CHECKPOINT, "b": CHECKPOINT}, key=False)
    assert "<i>" not in html
    assert not re.search(r"\b(src|href)=", html)
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    pages = Path(mypt.__file__).parent / "pages"
    for file in (*pages.glob("chat.*"), pages / "markdown.js"):
        text = file.read_text()
        assert not re.search(r"https?://|@import|url\(|innerHTML|insertAdjacent|eval\(", text)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def page(tokenizer, tmp_path_factory):
    model = Echo(tokenizer)
    with (
        serving(model, tokenizer, api_key="sesame") as url,
        tab(tmp_path_factory.mktemp("browser")) as page,
    ):
        page.open(url)
        page.model = model
        yield page


@pytest.fixture(scope="module")
def two(tokenizer, tmp_path_factory):
    """A page of two models."""
    model = Echo(tokenizer)
    with (
        serving(model, tokenizer, at_once=4, others={"shout": Shout(tokenizer)}) as url,
        tab(tmp_path_factory.mktemp("browser")) as page,
    ):
        page.open(url)
        page.url, page.model = url, model
        yield page


@pytest.fixture
def pair(two):
    """That page, with nothing said and its window as it was."""
    two.run("sessionStorage.clear(); localStorage.clear(); removeEventListener('pagehide', keep)")
    two.call("Emulation.clearDeviceMetricsOverride")
    two.call("Emulation.setEmulatedMedia", features=[])
    two.open(two.url)
    return two


def said(page, text):
    page.run("document.getElementById('said').focus()")
    page.type(text)
    page.press_enter()


def answered(page, text, texts):
    said(page, text)
    page.wait(f"{READY} && {TURNS}.length === {texts}")
    return page.run(TURNS)


def reload(page):
    page.run("window.old = true")
    page.call("Page.reload")
    page.wait("!window.old && document.readyState === 'complete'")


def press(page, name, place=-1):
    buttons = f"[...document.querySelectorAll('button[aria-label^=\"{name}\"]')]"
    page.run(f"{buttons}.at({place}).click()")


@needs_browser
def test_people_talk_with_the_model_in_a_browser(page):
    said(page, "Hello")
    assert page.wait(f"{READY} && {NOTE}").startswith("a wrong or no API key")
    assert page.run(TURNS) == []
    assert page.run("document.getElementById('said').value") == "Hello"  # nothing is lost
    page.run("document.getElementById('key').value = 'sesame'")
    assert answered(page, " 😀", 2) == ["Hello 😀", "Hello 😀"]
    facts = page.run("document.querySelector('.answer .facts').textContent")
    assert re.fullmatch(r"11 tokens · first after [\d.]+ s · [\d.]+ tokens/s", facts)
    for stop in ("document.getElementById('stop').click()", None):
        page.model.gate.clear()
        said(page, "stop me")
        page.wait("document.querySelectorAll('.exchange').length === 2")
        page.run(stop) if stop else page.press("Escape", 27)
        page.wait(f"{READY} && {NOTE} === 'Stopped.'")
        page.model.gate.set()
        assert len(page.run(TURNS)) == 2
        page.run("document.getElementById('said').value = ''")
    page.run("document.getElementById('new').click()")
    assert page.run(TURNS) == []
    assert answered(page, EVIL, 2) == [EVIL, EVIL]
    assert page.run("document.querySelectorAll('img').length") == 0
    assert page.run("document.title") == "echo · mypt"
    assert page.run("document.querySelector('h1').textContent") == "echo"
    which = "answers from step 1,234 checkpoint dddddddddddd"
    assert page.run("document.querySelector('.facts').textContent") == which


@needs_browser
def test_a_long_conversation_goes_on_and_the_reader_is_told_once(page):
    page.run("document.getElementById('key').value = 'sesame'")
    page.run("document.getElementById('new').click()")
    for number in range(1, 7):
        texts = answered(page, str(number) * 50, 2 * number)
    assert texts[-1] == "6" * 50
    (told,) = page.run(ASIDES)
    assert "no longer reads the oldest turns (1 so far)" in told
    page.run("document.getElementById('new').click()")
    assert page.run(ASIDES) == []


@needs_browser
def test_a_question_to_two_models_is_answered_beside_each_other(pair):
    assert answered(pair, "say *this*", 3) == ["say *this*", "say this", "SAY THIS"]
    assert answered(pair, "and that", 6)[3:] == ["and that", "and that", "AND THAT"]
    read = pair.run("messages('shout', turns.slice(0, 1), 'next')")
    assert [message["content"] for message in read] == ["say *this*", "SAY *THIS*", "next"]
    tops = "[...document.querySelectorAll('.answer')].map(a => a.getBoundingClientRect().top)"
    assert pair.run(tops)[0] == pair.run(tops)[1]
    pair.run("first.value = 'shout'; second.value = ''; second.dispatchEvent(new Event('change'))")
    assert answered(pair, "alone", 8)[6:] == ["alone", "ALONE"]
    read = [message["content"] for message in pair.run("messages('echo', turns)")]
    assert read[-2:] == ["alone", "ALONE"], "who did not answer reads who did"


@needs_browser
def test_a_question_is_edited_and_answered_again(pair):
    answered(pair, "first", 3)
    answered(pair, "second", 6)
    press(pair, "Edit", 0)
    assert pair.run("document.activeElement.value") == "first"
    pair.type("ly")
    pair.press_enter()
    pair.wait(f"{READY} && {TURNS}[1] === 'firstly'")
    assert pair.run(TURNS) == ["firstly", "firstly", "FIRSTLY"]
    pair.run("turns[0].answers[0].text = 'worse'; draw()")
    press(pair, "Answer again")
    pair.wait(f"{READY} && {TURNS}[1] === 'firstly'")
    press(pair, "Edit")
    pair.press("Escape", 27)
    assert pair.run(TURNS) == ["firstly", "firstly", "FIRSTLY"]


@needs_browser
def test_answers_that_do_not_come_leave_the_old_ones(pair):
    kept = answered(pair, "first", 3)
    pair.run("seed.value = '1e30'")
    press(pair, "Answer again")
    pair.wait(f"{READY} && {NOTE}")
    assert pair.run(TURNS) == kept


@needs_browser
def test_system_message_and_sampling_are_sent(pair):
    pair.run("""
        var asked = [], true_fetch = fetch;
        fetch = (to, how) => { asked.push(JSON.parse(how.body)); return true_fetch(to, how); };
        for (const [id, value] of Object.entries({system: "Be kind.", temperature: 0, top_p: 0.9,
            top_k: 5, max_tokens: 3, seed: 7})) document.getElementById(id).value = value;
    """)
    assert answered(pair, "Hello", 3) == ["Hello", "Hel", "HEL"]
    notes = "[...document.querySelectorAll('.acts em')].map(em => em.textContent)"
    assert pair.run(notes) == ["Cut off: no room for more."] * 2
    first, second = pair.run("asked")
    assert (first["model"], second["model"]) == ("echo", "shout")
    assert first["messages"][0] == {"role": "system", "content": "Be kind."}
    sampling = {"temperature": 0, "top_p": 0.9, "top_k": 5, "max_tokens": 3, "seed": 7}
    assert first.items() >= sampling.items()


@needs_browser
def test_a_conversation_outlives_a_reload_and_is_saved_as_rows_that_prepare_reads(pair, tmp_path):
    pair.run("system.value = 'Be kind.'; temperature.value = '0'")
    kept = answered(pair, "Hi", 3)
    reload(pair)
    assert pair.run(TURNS) == kept
    assert pair.run("[system.value, temperature.value]") == ["Be kind.", "0"]
    assert answered(pair, "Ho", 6)[:3] == kept
    pair.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    pair.run("document.getElementById('save').click()")
    path = tmp_path / "conversation.jsonl"
    pair.wait("true")
    while not path.is_file() or not path.stat().st_size:
        pair.wait("new Promise(done => setTimeout(() => done(true), 50))")
    rows = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    contents = [[message["content"] for message in row] for row in rows]
    assert contents == [["Be kind.", "Hi", "Hi", "Ho", "Ho"], ["Be kind.", "Hi", "HI", "Ho", "HO"]]
    config = PrepareConfig(sources=(Source(path=str(path)),), tokenization="byte", val_fraction=0.0)
    assert prepare(config, MaskPolicy(), tmp_path / "data").digest
    pair.run("document.getElementById('new').click()")
    reload(pair)
    assert pair.run(TURNS) == []


@needs_browser
def test_what_a_reload_broke_off_is_kept_as_stopped(pair):
    answered(pair, "Hi", 3)
    broken = "const [first] = turns[0].answers; first.text = ''; delete first.facts"
    pair.run(f"{{ {broken}; }} addEventListener('pagehide', keep)")
    reload(pair)
    assert pair.run(TURNS) == ["Hi", "", "HI"]
    assert pair.run("document.querySelector('.acts em').textContent") == "Stopped."
    read = [message["content"] for message in pair.run("messages('echo', turns)")]
    assert read == ["Hi", "HI"]


@needs_browser
def test_answers_and_their_code_are_copied(pair):
    pair.call(
        "Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
    )
    pair.call("Emulation.setFocusEmulationEnabled", enabled=True)
    answered(pair, "~~~ x", 3)
    pair.run("turns[0].answers[0].text = 'so:\\n```py\\nx = 1\\n```\\n*end*'; draw()")
    for name, text in (
        ("Copy the answer of echo", "so:\n```py\nx = 1\n```\n*end*"),
        ("Copy this code", "x = 1"),
        ("Copy this question", "~~~ x"),
    ):
        pair.run("navigator.clipboard.writeText('')")
        press(pair, name, 0)
        assert pair.wait("navigator.clipboard.readText()") == text


@needs_browser
def test_light_and_dark_follow_the_system_or_the_switch(pair):
    def shade():
        return pair.run("getComputedStyle(document.body).backgroundColor")

    light, dark = "rgb(246, 247, 249)", "rgb(14, 17, 22)"
    for scheme, expected in (("light", light), ("dark", dark)):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        pair.call("Emulation.setEmulatedMedia", features=[feature])
        assert shade() == expected
    pair.wait("dark.ariaPressed === 'true'")  # the page hears of it after it is drawn
    pair.run("dark.click()")
    assert shade() == light
    reload(pair)
    assert (shade(), pair.run("dark.ariaPressed")) == (light, "false")


@needs_browser
def test_a_phone_shows_answers_below_each_other_and_nothing_beside_its_screen(pair):
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    pair.call("Emulation.setDeviceMetricsOverride", **metrics)
    answered(pair, "x" * 60, 3)
    table = "| a | b |\n|---|---|\n" + f"| {'wide ' * 20} | {'y' * 80} |"
    texts = [f"```\n{'long line ' * 40}\n```\n{table}", "w" * 400]
    pair.run(
        f"turns[0].answers.forEach((one, n) => {{ one.text = {json.dumps(texts)}[n]; }}); draw()"
    )
    pair.run("document.getElementById('settings').open = true")
    assert pair.run("document.documentElement.scrollWidth") == 360
    edges = "[...document.querySelectorAll('.answer')].map(a => a.getBoundingClientRect())"
    first, second = pair.run(f"{edges}.map(edge => [edge.left, edge.top, edge.bottom])")
    assert (first[0], first[2] <= second[1]) == (second[0], True)


@needs_browser
def test_everything_that_can_be_used_has_a_name_and_is_reached_by_keys(pair):
    answered(pair, "Hi", 3)
    pair.run("document.getElementById('settings').open = true")
    nodes = pair.call("Accessibility.getFullAXTree")["nodes"]
    used = {"button", "textbox", "combobox", "spinbutton", "log", "article", "DisclosureTriangle"}
    named = [(node["role"]["value"], node.get("name", {}).get("value")) for node in nodes
             if not node["ignored"] and node["role"]["value"] in used]  # fmt: skip
    assert {role for role, _ in named} == used
    assert [one for one in named if not one[1]] == []
    reached = set()
    pair.run("document.getElementById('said').focus()")
    for _ in range(40):
        pair.press("Tab", 9)
        reached.add(pair.run("document.activeElement.ariaLabel ?? document.activeElement.id"))
    wanted = {"Model", "Model beside it", "new", "save", "dark", "system", "temperature", "seed",
              "Edit this question", "Copy the answer of shout", "Answer again", "send"}  # fmt: skip
    assert wanted <= reached
