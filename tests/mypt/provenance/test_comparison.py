"""Two checkpoints side by side, without running either."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from flows.commands.comparison import render
from mypt.config import MaskPolicy, Preset
from mypt.data.dataset import mask
from mypt.errors import CheckpointError, DataError
from mypt.home import home
from mypt.provenance.comparison import compare_checkpoints
from mypt.training.events import EvalReport, StepReport
from mypt.training.lineage import read_lineage
from mypt.training.loop import train
from mypt.training.plan import plan_run
from tests.mypt.conftest import TINY, prepare_chat


def trained(name, data, **changes):
    """Train a tiny model; return its last step folder and its events."""
    preset = Preset.model_validate(TINY | {"max_iters": 4} | changes)
    events = list(train(plan_run(preset, name, data)))
    return home() / "models" / name / f"step_{preset.max_iters:06d}", events


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Two models on two maskings of a dataset."""
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    torch.set_num_threads(1)
    first = prepare_chat(tmp_path)
    second = mask(first, MaskPolicy(end_of_turn=False), tmp_path / "datasets" / "other").path
    return trained("one", first), trained("two", second, learning_rate=2e-2, max_iters=5)


def score(checkpoint, form, **changes):
    scores = {
        "checkpoint": {"digest": read_lineage(checkpoint).digest}, "form": form, "val_loss": 1.5,
        "perplexity": 4.5, "stop_recall": None, "exact_match": {"add": 0.25},
    }  # fmt: skip
    return scores | changes


def write_evaluation(name, **models):
    folder = home() / "evaluations" / name
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(models))


def test_a_knob_that_is_written_only_when_changed_is_compared_with_its_default(pair):
    (a, _), _ = pair
    low, _ = trained("low", read_lineage(a).dataset.path, weight_dtype="bfloat16", dtype="bfloat16")
    assert compare_checkpoints(a, low).settings["weight_dtype"] == ("float32", "bfloat16")
    assert compare_checkpoints(low, a).settings["weight_dtype"] == ("bfloat16", "float32")


def test_config_keys_and_whatever_else_decided_the_weights(pair):
    (a, _), (b, _) = pair
    found = compare_checkpoints(a, b)
    assert (found.a, found.b) == ("one step 4", "two step 5")
    digests = [read_lineage(folder).dataset.digest[:12] for folder in (a, b)]
    assert found.settings == {
        "learning_rate": ("0.01", "0.02"),
        "max_iters": ("4", "5"),
        "dataset": tuple(digests),
        "policy": (
            "assistant",
            "assistant,no_stop",
        ),
    }


def test_figures_stand_side_by_side(pair):
    (a, one), (b, two) = pair
    metrics = compare_checkpoints(a, b).metrics
    assert metrics["steps"] == (4, 5)
    for name, kind, figure in (
        ("loss of the last step", StepReport, "loss"),
        ("val loss", EvalReport, "val_loss"),
        ("train loss", EvalReport, "train_loss"),
    ):
        last = [[e for e in events if isinstance(e, kind)][-1] for events in (one, two)]
        assert metrics[name] == tuple(getattr(event, figure) for event in last)
    learned = [sum(e.supervised for e in ev if isinstance(e, StepReport)) for ev in (one, two)]
    assert metrics["tokens learned"] == tuple(learned)
    assert metrics["mask density"][0] > metrics["mask density"][1] > 0


def test_evaluations_that_lie_there_are_read_in_the_order_of_their_names(pair):
    (a, _), (b, _) = pair
    write_evaluation("a", base=score(a, "plain", val_loss=9.0), sft=score(b, "chat"))
    write_evaluation("b", base=score(a, "plain"), base_plain=None)
    metrics = compare_checkpoints(a, b).metrics
    assert metrics["plain: val loss"] == (1.5, None)
    assert metrics["chat: exact match add"] == (None, 0.25)
    assert "plain: stop recall" not in metrics
    (home() / "evaluations" / "b" / "evaluation.json").write_text("[]")
    with pytest.raises(DataError, match=r"b/evaluation\.json: not what mypt writes"):
        compare_checkpoints(a, b)


def test_the_datasets_are_compared_where_both_are_there(pair):
    (a, _), (b, _) = pair
    found = compare_checkpoints(a, b)
    assert found.dataset.same == 80
    assert any(line.startswith("mask policy") for line in found.dataset.settings)
    same = compare_checkpoints(a, a)
    assert (same.dataset, same.settings) == (None, {})
    assert same.dataset_note == "both were trained on the same dataset"
    gone = Path(read_lineage(b).dataset.path)
    shutil.rmtree(gone)
    found = compare_checkpoints(a, b)
    assert found.dataset is None
    assert found.dataset_note == f"the dataset {gone} is not there any more"


def test_the_tables_hold_every_setting_and_figure(pair):
    (a, _), (b, _) = pair
    found = compare_checkpoints(a, b)
    console = Console(file=io.StringIO(), width=200)
    console.print(render(found))
    drawn = console.file.getvalue()
    assert all(name in drawn for name in (*found.settings, *found.metrics, found.a, found.b))
    assert "0.0200" not in drawn
    console.print(render(compare_checkpoints(a, a)))
    assert "both were trained on the same dataset" in console.file.getvalue()


def test_a_state_that_is_damaged_is_named(pair):
    (a, _), (b, _) = pair
    (b / "trainer_state.json").write_text("{}x")
    with pytest.raises(CheckpointError, match=r"trainer_state\.json: cannot be read"):
        compare_checkpoints(a, b)
