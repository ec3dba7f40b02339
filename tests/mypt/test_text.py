"""Text that is looked at can neither steer a terminal nor hide."""

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mypt.data.tokenizer import load_tokenizer
from mypt.errors import DataError
from mypt.inspection.rowview import token_texts
from mypt.text import counted, markdown, names, one_line, shorten, shown, visible, visible_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\tb\rc\x00", "a\\tb\\rc\\x00"),
        ("two\nlines", "two\nlines"),
        ("abc\u202edcb", "abc\\u202edcb"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("\x9b31m", "\\x9b31m"),
        ("line\u2028end", "line\\u2028end"),
        ("\U000e0041tag", "\\U000e0041tag"),
        ("\U0001f469\u200d\U0001f680 日本 é", "\U0001f469\u200d\U0001f680 日本 é"),
    ],
)
def test_what_has_an_effect_is_escaped_and_what_is_seen_stays(text, shown):
    assert visible(text) == shown


@given(st.text())
def test_nothing_is_left_that_a_terminal_obeys(text):
    left = {
        char for char in visible(text) if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp")
    }
    assert left <= set("\n\u200c\u200d")


def test_a_character_stands_at_the_last_of_its_tokens():
    tokenizer = load_tokenizer("byte")
    ids = tokenizer.encode("é!")
    assert token_texts(tokenizer, ids) == ["", "é", "!"]
    assert token_texts(tokenizer, ids[1:]) == ["\\xa9", "!"]
    assert token_texts(tokenizer, ids[:1]) == ["\\xc3"]
    assert token_texts(tokenizer, np.empty(0, np.uint32)) == []


@given(st.text(alphabet=st.characters(exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp"))))
def test_the_texts_of_the_tokens_are_the_text(text):
    tokenizer = load_tokenizer("byte")
    assert "".join(token_texts(tokenizer, tokenizer.encode(text))) == text


def test_shortened_text_is_one_line_and_no_longer_than_asked():
    assert shorten("a\nb  c\x1b", 20) == "a b c\\x1b"
    assert shorten("abcdef", 4) == "abc\u2026"
    assert len(shorten("\x1b" * 9, 20)) == 20


def test_an_error_escapes_as_pages_and_tables_do_and_stays_one_line():
    text = "a\nb\x1b\u202e \U0001f469\u200d\U0001f680"
    assert one_line(text) == visible(text).replace("\n", "\\n")
    assert str(DataError(text)) == one_line(text)
    assert shown(text) == f"'{one_line(text)}'"
    assert names([text, "b"]) == f"{one_line(text)}, b"


def test_a_long_value_and_many_names_are_cut():
    assert shown("a" * 70) == f"'{'a' * 60}' ..."
    assert names("abcdefghi") == "a, b, c, d, e, f, g, h ..."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("chats from a.jsonl", "chats from a.jsonl"),
        ("[x](javascript:alert(1))", r"\[x\]\(javascript:alert\(1\)\)"),
        ("![i](http://evil/x.png)", r"\!\[i\]\(`http://evil/x.png)`"),
        ("WWW.evil e@evil.example|*", r"`WWW.evil` `e@evil.example`\|\*"),
        ("<img src=x onerror=y>", r"\<img src=x onerror=y\>"),
        ("a\n# b\x1b[2J", r"a\\n\# b\\x1b\[2J"),
    ],
)
def test_markdown_shows_a_text_as_it_is(text, shown):
    assert markdown(text) == shown


def test_one_thing_is_no_plural():
    said = ["0 rows", "1 row", "2 rows", "2,000 rows"]
    assert [counted(n, "row") for n in (0, 1, 2, 2000)] == said


def test_json_says_the_same_and_hides_nothing():
    text = "a\u202eb\x9b31m\U000e0041\u200b Grüß\n\t你好 \x7f"
    said = json.dumps({text: [text]}, ensure_ascii=False, indent=1)
    found = visible_json(said)
    assert json.loads(found) == {text: [text]}
    assert found == visible(found)
    assert "Grüß" in found
    assert "你好" in found
    assert visible_json(found) == found
