"""``mypt diff``: two datasets or two models, decided by what they are."""

import json

import pytest
import torch

from flows.cli import main
from mypt.config import MaskPolicy, Preset
from mypt.data.dataset import mask
from mypt.training.loop import train
from mypt.training.plan import plan_run
from tests.mypt.conftest import TINY, prepare_chat


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Two datasets and a model on each."""
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    torch.set_num_threads(1)
    first = prepare_chat(tmp_path)
    second = mask(first, MaskPolicy(end_of_turn=False), tmp_path / "datasets" / "other").path
    for name, data in (("one", first), ("two", second)):
        preset = Preset.model_validate(TINY | {"max_iters": 2})
        list(train(plan_run(preset, name, data)))
    return tmp_path


def test_two_datasets_are_compared_as_datasets(world, capsys):
    code = main(["diff", str(world / "datasets" / "chat"), str(world / "datasets" / "other"),
                 "--json"])  # fmt: skip
    assert code == 0
    assert json.loads(capsys.readouterr().out)["same"] == 80


@pytest.mark.parametrize("b", ["two", "runs/models/two", "runs/models/two/step_000002"])
def test_two_models_are_compared_as_checkpoints(world, capsys, b, monkeypatch):
    monkeypatch.chdir(world)
    assert main(["diff", "one", b, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["a"], found["b"]) == ("one step 2", "two step 2")
    assert set(found["settings"]) == {"dataset", "masks"}
    assert main(["diff", "one", b]) == 0
    assert "loss of the last step" in capsys.readouterr().out


def test_a_dataset_and_a_model_are_not_compared(world, capsys):
    assert main(["diff", str(world / "datasets" / "chat"), "one"]) == 2
    assert "a dataset and a model; expected two of the same kind" in capsys.readouterr().err
