"""The five tokens that docstrings follow from the encoding to the batch are what mypt makes."""

import doctest
import json

import pytest

from mypt.config import MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import open_dataset, prepare
from mypt.data.packing import layout, pieces
from mypt.data.preparation import encoding
from mypt.training.batches import packed, windows
from mypt.training.batches import shift as arrays


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The one conversation, prepared."""
    folder = tmp_path_factory.mktemp("five")
    turns = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
    (folder / "chat.jsonl").write_text(json.dumps({"messages": turns}))
    config = PrepareConfig(
        sources=(Source(path=str(folder / "chat.jsonl")),),
        tokenization="byte",
        template="plain",
        val_fraction=0.0,
    )
    return open_dataset(prepare(config, MaskPolicy(), folder / "made").path)


@pytest.mark.parametrize("module", [encoding, pieces, layout, windows, arrays, packed])
def test_the_worked_example_of_a_docstring_is_true(module, dataset):
    found = doctest.testmod(module, extraglobs={"dataset": dataset})
    assert found.attempted > 0
    assert found.failed == 0
