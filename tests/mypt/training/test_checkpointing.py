"""Checkpoints are written beside training, in order, and a failed one is not passed over."""

import threading
from pathlib import Path

import pytest

from mypt.errors import CheckpointError
from mypt.home import models_dir
from mypt.training import checkpointing as writer
from mypt.training.events import CheckpointSaved, StepReport
from mypt.training.lineage import read_lineage
from mypt.training.loop import train


def test_a_slow_disk_does_not_hold_the_steps(plan, monkeypatch):
    wanted, true_save = threading.Event(), writer.save_checkpoint

    def slow(folder, snapshot):
        assert wanted.wait(60)
        return true_save(folder, snapshot)

    monkeypatch.setattr(writer, "save_checkpoint", slow)
    order = []
    for event in train(plan(eval_interval=12, checkpoint_interval=4)):
        if isinstance(event, StepReport | CheckpointSaved):
            order.append((type(event), event.step))
        if order and order[-1] == (StepReport, 7):
            wanted.set()
    assert order.index((StepReport, 7)) < order.index((CheckpointSaved, 4))
    saved = [step for kind, step in order if kind is CheckpointSaved]
    assert saved == [4, 8, 12]


def test_what_is_written_is_the_step_of_the_snapshot(plan, monkeypatch, finish):
    finish(plan("a", max_iters=8, eval_interval=8, checkpoint_interval=4))
    wanted, true_save = threading.Event(), writer.save_checkpoint

    def slow(folder, snapshot):
        assert wanted.wait(60)
        return true_save(folder, snapshot)

    monkeypatch.setattr(writer, "save_checkpoint", slow)
    for event in train(plan("b", max_iters=8, eval_interval=8, checkpoint_interval=4)):
        if isinstance(event, StepReport) and event.step == 7:
            wanted.set()
    a, b = (read_lineage(models_dir() / name / "step_000004") for name in "ab")
    assert [f.digest for f in a.files] == [f.digest for f in b.files]


def test_a_checkpoint_that_could_not_be_written_stops_training(plan, monkeypatch, finish):
    true_save = writer.save_checkpoint

    def full(folder, snapshot):
        if snapshot.state.step == 8:
            raise CheckpointError("no room")
        return true_save(folder, snapshot)

    monkeypatch.setattr(writer, "save_checkpoint", full)
    with pytest.raises(CheckpointError, match="no room"):
        finish(plan(eval_interval=12, checkpoint_interval=4))
    assert (models_dir() / "m" / "latest").read_text() == "step_000004\n"
    monkeypatch.undo()


def test_an_abandoned_run_finishes_the_checkpoint_it_was_writing(plan):
    events = train(plan(eval_interval=12, checkpoint_interval=4))
    for event in events:
        if isinstance(event, StepReport) and event.step == 4:
            break
    next(events)
    events.close()
    assert read_lineage(models_dir() / "m" / "step_000004").step == 4


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed on Linux only")
def test_writing_starts_no_second_team_of_threads(plan):
    def threads():
        return len(list(Path("/proc/self/task").iterdir()))

    wide = plan(max_iters=2, eval_interval=2, n_embd=256, n_layer=1, threads=2)
    before, seen = 0, []
    for event in train(wide):
        if isinstance(event, StepReport):
            before = threads()
        elif isinstance(event, CheckpointSaved):
            seen.append(threads())
    assert seen
    assert seen[-1] <= before + 1, "more than the writer's own thread"
