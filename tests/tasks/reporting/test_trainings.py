"""What a training's journal holds in the end."""

import pytest
import torch

from mypt.config import Preset
from mypt.training.events import CheckpointSaved, Finished
from mypt.training.loop import train
from mypt.training.plan import plan_run
from tasks.reporting.artifacts import training_plot
from tasks.reporting.trainings import Load, TrainingReport
from tasks.tracking.journal import Journal
from tasks.tracking.records import (
    CheckpointRecord,
    DatasetInput,
    Metrics,
    Opened,
    Params,
    Tags,
    Text,
    read,
)
from tests.mypt.conftest import TINY, prepare_chat


@pytest.fixture
def reported(tmp_path, monkeypatch):
    """Train a tiny preset with a report of it; return the records of its journal."""
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    torch.set_num_threads(1)
    dataset = prepare_chat(tmp_path)

    def run(stop_after=1000, slow_disk=False, **values):
        made = plan_run(Preset.model_validate(TINY | values), "m", dataset)
        journal = Journal("train-m")
        journal.write(Opened(experiment="demo", title="train m"))
        report = TrainingReport(journal, made)
        asked = iter(range(1000))
        events = train(made, should_stop=lambda: next(asked) >= stop_after)
        if slow_disk:  # every checkpoint lies there after all evaluations only
            events = sorted(events, key=lambda e: isinstance(e, CheckpointSaved | Finished))
        for event in events:
            report.take(event)
        journal.end("FINISHED")
        return [line.record for line in read("train-m")]

    return run


def of(records, kind):
    return [record for record in records if isinstance(record, kind)]


def test_each_checkpoint_is_named_with_what_was_measured_at_it(reported):
    records = reported(max_iters=4, eval_interval=2, checkpoint_interval=1, keep_checkpoints=1)
    found = of(records, CheckpointRecord)
    assert found[-1].step == 4
    assert set(found[-1].kept) <= {2, 4}
    assert "newest" in found[-1].aliases
    written = {r.step: r for r in of(records, Metrics) if "val_loss" in r.values}
    for record in found:
        if record.step in written:
            assert record.measured.values["val_loss"] == written[record.step].values["val_loss"]
            assert record.measured.time == written[record.step].time
            assert record.measured.subject.checkpoint == record.digest
    assert found[0].params["policy"] == "assistant"
    assert found[0].parent is None


def test_a_checkpoint_that_was_written_slowly_keeps_the_loss_of_its_own_step(reported):
    records = reported(max_iters=4, eval_interval=2, checkpoint_interval=2, slow_disk=True)
    written = {r.step: r.values["val_loss"] for r in of(records, Metrics) if "val_loss" in r.values}
    found = {r.step: r.measured for r in of(records, CheckpointRecord)}
    assert found.keys() == {2, 4}
    for step, measured in found.items():
        assert measured.values["val_loss"] == written[step]


def test_both_splits_the_params_and_the_load_are_there(reported):
    records = reported(max_iters=2)
    assert [r.context for r in of(records, DatasetInput)] == ["train", "validation"]
    sizes = [r.profile["rows"] for r in of(records, DatasetInput)]
    assert sum(sizes) == 80
    (params,) = of(records, Params)
    assert {"policy", "template", "tokenizer", "dataset", "learning_rate"} <= params.values.keys()
    keys = {key for record in of(records, Metrics) for key in record.values}
    assert {"batch_density", "tokens_learned", "system/cpu_utilization_percentage"} <= keys


def test_answers_to_prompts_are_one_text_a_step(reported):
    records = reported(max_iters=2, eval_interval=2, sample_prompts=("one", "two"))
    texts = {r.name: r.text for r in of(records, Text) if r.name.startswith("samples/")}
    assert set(texts) == {"samples/step_000000.txt", "samples/step_000002.txt"}
    said = texts["samples/step_000002.txt"].splitlines()
    assert [line for line in said if line in ("one", "two")] == ["one", "two"]


def test_what_changed_on_resume_is_tagged(reported, monkeypatch):
    reported(stop_after=2, max_iters=4)
    from mypt.training import circumstances

    real = circumstances.record_code(Preset())
    other = real.model_copy(update={"version": "9", "digest": "f" * 64})
    monkeypatch.setattr(circumstances, "record_code", lambda _: other)
    records = reported(max_iters=4)
    tags = {key: value for record in of(records, Tags) for key, value in record.values.items()}
    assert tags["resumed.step_000002"].startswith("until step 2: mypt 0.1.0 ")
    assert tags["resumed.step_000002"].endswith(" 9 ffffffffffff now")


def test_the_curves_are_one_picture_and_the_same_each_time(reported):
    records = reported(max_iters=3)
    (drawn,) = [r.text for r in of(records, Text) if r.name == "training.svg"]
    assert drawn.startswith("<svg ")
    assert training_plot("train-m", "m") == training_plot("train-m", "m")


def test_the_machine_is_looked_at_now_and_then():
    load = Load()
    assert load.look()["system/process_memory_megabytes"] > 1
    assert load.look() == {}


def test_what_losses_are_made_of_is_a_chart_a_group(reported):
    records = reported(max_iters=4, eval_interval=2)
    first, *_, last = (r for r in of(records, Metrics) if "val_loss" in r.values)
    assert not [name for name in first.values if name.startswith("train_class/")]
    for split in ("train", "val"):
        assert last.values[f"{split}_class/stop"] > 0
        assert last.values[f"{split}_source/chat.jsonl"] > 0
