"""Every reader takes every input that fuzzing found, and arbitrary changes of them."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import corpus
from tests.fuzz.targets import TARGETS, check


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_takes_what_fuzzing_found(name, folder):
    kept = corpus.read(name)
    assert len(kept) > 5
    for data in kept:
        check(TARGETS[name], data, folder)


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_takes_any_change_of_it(name, folder):
    inputs = st.sampled_from(corpus.read(name)).flatmap(changed) | st.binary(min_size=2)

    @settings(max_examples=40)
    @given(inputs)
    def takes(data):
        check(TARGETS[name], data, folder)

    takes()


@st.composite
def changed(draw, data):
    """Cut something out of ``data`` and put something else there."""
    start = draw(st.integers(0, len(data)))
    stop = draw(st.integers(start, min(len(data), start + 8)))
    return data[:start] + draw(st.binary(max_size=8)) + data[stop:] or b"\0\0"


def test_a_fault_is_not_taken_for_an_error():
    def fails(_data, _folder):
        raise KeyError("a fault")

    with pytest.raises(KeyError):
        check(fails, b"", Path())
