"""No reader of conversations loses a word in silence, whatever is changed in its files.

An input is made from its number alone: a failure names it, and ``silence.check`` makes it again.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

import pytest

from mypt.data.conversations import Conversation, Origin, say
from tests.fuzz import silence
from tests.fuzz.kinds import KINDS

FEW, MORE, MANY = 60, 1_000, 100_000
SLOWEST = 5.0
"""Seconds of the processor that an input may take."""


@pytest.fixture(scope="module")
def folder():
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if Path(memory).is_dir() else None) as name:
        yield Path(name)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "n",
    [
        FEW,
        pytest.param(MORE, marks=pytest.mark.slow),
        pytest.param(MANY, marks=[pytest.mark.fuzz, pytest.mark.timeout(7200)]),
    ],
)
def test_a_reader_says_what_it_does_not_read(name, n, folder):
    for number in range(n):
        begun = time.process_time()
        try:
            silence.check(KINDS[name], number, folder)
        except Exception as error:
            raise AssertionError(f"{name}, input {number}: {error!r}") from error
        assert time.process_time() - begun < SLOWEST, f"{name}, input {number} is slow"


def test_a_word_that_a_reader_loses_is_found(folder, monkeypatch):
    def forgets(source):
        reader = open_source(source)
        rows = [Conversation((say("user", "nothing"),), Origin(0, 1)) for _ in reader]
        return type("Reader", (), {"__iter__": lambda _: iter(rows), "record": reader.record})()

    open_source = silence.open_source
    monkeypatch.setattr(silence, "open_source", forgets)
    with pytest.raises(AssertionError, match="lost"):
        list(map(partial(silence.check, KINDS["openai"], folder=folder), range(20)))
