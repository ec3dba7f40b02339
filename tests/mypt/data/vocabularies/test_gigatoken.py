"""The quicker engine is checked against tiktoken, and refused at the first difference."""

import numpy as np
import pytest

from mypt.data.tokenizer import load_tokenizer
from mypt.data.vocabularies import encoder as fast_engine
from mypt.data.vocabularies.encoder import TextEncoder, utf8
from mypt.data.vocabularies.vocabulary import byte_vocabulary
from mypt.errors import DataError

TEXTS = ["hello", "", "it's 123  \n\n", "<|endoftext|>", "naïve \u4e2d\u6587 \U0001f600"]
LONG = [f"number {i} of many" for i in range(5000)]


class Lookalike:
    """gigatoken's engine as far as it is used: tiktoken's ids, all wrong from some call on."""

    def __init__(self, encoder, wrong_from):
        self.encoding, self.wrong_from, self.calls = encoder._encoding, wrong_from, 0

    def encode(self, data):
        ids = self.encoding.encode_to_numpy(data.decode(), allowed_special="all").copy()
        self.calls += 1
        if self.calls >= self.wrong_from:
            ids[ids != self.encoding.max_token_value] += 1  # but for the separators
        return ids


@pytest.fixture
def encoder(monkeypatch):
    """An encoder of gpt2 whose engine is a lookalike that errs from some call on."""

    def make(wrong_from=10**9):
        monkeypatch.setattr(fast_engine, "find_spec", lambda _name: None)
        made = TextEncoder(load_tokenizer("gpt2").vocabulary)
        assert made.fast is None
        engine = Lookalike(made, wrong_from)
        monkeypatch.setattr(fast_engine.FastEngine, "_load", lambda _self: engine)
        made.fast = fast_engine.FastEngine(load_tokenizer("gpt2").vocabulary, {})
        return made

    monkeypatch.setattr(fast_engine, "version", lambda _name: "0.0")
    return make


def test_ids_and_lengths_are_tiktokens(encoder):
    quick = encoder()
    plain = load_tokenizer("gpt2")
    ids, lengths = quick.encode(utf8(TEXTS))
    assert quick.fast._engine.calls == 1
    expected = [plain.encode(text) for text in TEXTS]
    assert np.array_equal(ids, np.concatenate(expected))
    assert lengths.tolist() == [len(part) for part in expected]


def test_the_first_difference_is_an_error(encoder):
    with pytest.raises(DataError, match=r"gigatoken 0\.0 gives other ids than tiktoken for gpt2"):
        encoder(wrong_from=1).encode(utf8(TEXTS))


def test_a_difference_after_the_first_calls_is_found_by_sampling(encoder):
    quick = encoder(wrong_from=10)
    for _ in range(9):
        quick.encode(utf8(LONG))
    with pytest.raises(DataError, match=r"first at token \d+ of call 10;"):
        quick.encode(utf8(LONG))


def test_the_first_calls_are_checked_whole_and_a_share_of_all_others(encoder):
    quick, checked = encoder(), []
    true = quick._reference
    quick._reference = lambda joined: (
        checked.append(len(joined) - joined.count(b"\x1f")) or true(joined)
    )
    each = sum(len(text.encode()) for text in LONG)
    for _ in range(fast_engine.PROBED_FIRST):
        quick.encode(utf8(LONG))
    assert sum(checked) == fast_engine.PROBED_FIRST * each
    checked.clear()
    for _ in range(40):
        quick.encode(utf8(LONG))
    assert len(checked) == 40
    assert 0.9 < sum(checked) * fast_engine.PROBED_SHARE / (40 * each) <= 1


def test_a_text_longer_than_the_share_of_a_call_has_its_turn(encoder):
    quick, checked = encoder(), []
    for _ in range(fast_engine.PROBED_FIRST):
        quick.encode(utf8(["x"]))
    true = quick._reference
    quick._reference = lambda joined: checked.append(1) or true(joined)
    for _ in range(2 * fast_engine.PROBED_SHARE + 1):
        quick.encode(utf8(["a long document"]))
    assert len(checked) == 2


def test_ids_without_one_of_the_separators_are_an_error(encoder):
    quick = encoder()
    for _ in range(fast_engine.PROBED_FIRST):
        quick.encode(utf8(TEXTS))
    true = quick.fast.encode
    quick.fast.encode = lambda data: true(data)[:-1]
    with pytest.raises(DataError, match="gives other ids than tiktoken"):
        quick.encode(utf8(TEXTS))


def test_a_lone_surrogate_is_the_same_error(encoder):
    with pytest.raises(DataError, match=r"lone surrogate U\+D800"):
        encoder().encode(utf8(["fine", "a\ud800b"]))


def test_it_is_loaded_anew_when_the_memory_has_grown_and_not_otherwise(encoder, monkeypatch):
    quick, loads = encoder(), []
    monkeypatch.setattr(fast_engine, "_LOOK_AFTER", 1000)
    monkeypatch.setattr(
        fast_engine.FastEngine, "_load", lambda self: loads.append(1) or self._engine
    )
    for _ in range(20):
        quick.encode(utf8(["x" * 99]))  # and a separator
    assert not loads
    monkeypatch.setattr(fast_engine, "_resident_bytes", lambda: quick.fast._memory + (1 << 30))
    for _ in range(20):
        quick.encode(utf8(["x" * 99]))
    assert len(loads) == 2


def test_the_real_engine_stays_within_bounds_on_words_that_nobody_saw_before(monkeypatch):
    pytest.importorskip("gigatoken")
    monkeypatch.setattr(fast_engine, "_LOOK_AFTER", 8 << 20)
    monkeypatch.setattr(fast_engine, "_GROWTH", 32 << 20)
    fast = TextEncoder(load_tokenizer("gpt2").vocabulary).fast
    random = np.random.default_rng(0)
    grown = []
    for _ in range(40):
        letters = random.integers(97, 123, 1 << 20, np.uint8)
        letters[::7] = ord(" ")
        fast.encode(letters.tobytes())
        grown.append(fast_engine._resident_bytes() - fast._memory)
    assert max(grown[20:]) <= max(grown[:20]) + (32 << 20)


def test_a_vocabulary_that_it_does_not_know_is_tiktokens():
    assert TextEncoder(byte_vocabulary()).fast is None


def test_the_real_engine_gives_the_same_where_it_is_installed():
    pytest.importorskip("gigatoken")
    quick, plain = (TextEncoder(load_tokenizer("gpt2").vocabulary) for _ in range(2))
    plain.fast = None
    for ours, theirs in zip(
        quick.encode(utf8(TEXTS + LONG)), plain.encode(utf8(TEXTS + LONG)), strict=True
    ):
        assert np.array_equal(ours, theirs)
