import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mypt.data.vocabularies import encoder as text_encoder
from mypt.data.vocabularies.encoder import utf8
from mypt.errors import DataError
from tests.mypt.data.rows import LOOKALIKES, texts, tokenizer

NAMES = ("gpt2", "cl100k_base", "o200k_base", "byte")
AWKWARD = [
    *LOOKALIKES, "", "", "a", " a", "a ", " ", "  ", "\n", "\n\n", "a\n", "\na", "it's", "'s", "it",
    "don't", "123", "4", "日本", "語", "é", "e\u0301", "x" * 300, "x" * 5,
]  # fmt: skip


def alone(encoding, strings):
    """The reference: one call of tiktoken for each text, as Python lists."""
    return [encoding.encode_ordinary(text) for text in strings]


def assert_like_alone(name, strings):
    ids, lengths = tokenizer(name).text_encoder.encode(utf8(strings))
    expected = alone(tokenizer(name).encoding, strings)
    assert ids.dtype == np.uint32
    assert ids.tolist() == [token for text in expected for token in text]
    assert lengths.tolist() == [len(text) for text in expected]


@pytest.mark.parametrize("name", NAMES)
def test_texts_that_would_merge_with_their_neighbours_are_encoded_as_if_alone(name):
    without_separator = [text for text in AWKWARD if "\x1f" not in text]
    assert_like_alone(name, without_separator)
    assert_like_alone(name, without_separator[::-1])


@pytest.mark.parametrize("name", NAMES)
def test_texts_that_hold_the_separator_itself_are_encoded_as_if_alone(name):
    assert_like_alone(name, AWKWARD)
    assert_like_alone(name, ["\x1f"])
    assert_like_alone(name, ["a\x1f", "b"])


@settings(max_examples=100)
@given(strings=st.lists(texts, max_size=8))
def test_any_texts_are_encoded_as_if_alone(strings):
    for name in NAMES:
        assert_like_alone(name, strings)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_where_a_chunk_ends_changes_nothing(monkeypatch, size):
    monkeypatch.setattr(text_encoder, "_CHUNK", size)
    assert_like_alone("gpt2", AWKWARD)


def test_two_texts_that_are_one_token_together_stay_two():
    assert len(tokenizer().encode("hello")) == 1
    assert tokenizer().text_encoder.encode(utf8(["hel", "lo"]))[1].tolist() == [1, 1]


def test_no_text_gives_no_ids():
    ids, lengths = tokenizer().text_encoder.encode(utf8([]))
    assert (ids.tolist(), lengths.tolist()) == ([], [])


def test_a_lone_surrogate_is_refused_and_not_replaced():
    for strings in (["a\ud83d"], ["fine", "a\ud83d"], ["\x1f", "a\ud83d"]):
        with pytest.raises(DataError, match=r"lone surrogate U\+D83D"):
            tokenizer().text_encoder.encode(utf8(strings))


def test_threads_may_share_one_encoder():
    found = {}
    threads = [
        threading.Thread(
            target=lambda n=n: found.update({n: tokenizer().text_encoder.encode(utf8(AWKWARD * 5))})
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((ids == found[0][0]).all() for ids, _ in found.values())
    assert len(found) == 4
