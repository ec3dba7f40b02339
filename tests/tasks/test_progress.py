from types import SimpleNamespace

import pytest
from rich.console import Console

from mypt.config import Preset
from mypt.references import CheckpointRef, DatasetRef
from mypt.training.batches.groups import GroupLoss
from mypt.training.events import EvalReport, Finished, Sample, Started, StepReport
from mypt.training.plan import RunPlan
from tasks import progress
from tasks.progress import describe, reading, watch

PLAN = RunPlan(
    model_name="tiny",
    preset=Preset(max_iters=3),
    dataset=DatasetRef(path="/d", digest="0" * 64),
    kind="chat",
    parent=None,
)
CHECKPOINT = CheckpointRef(path="/m/tiny/step_000003", digest="1" * 64, step=3)
EVENTS = [
    Started("tiny", 0, 3, 8752, "cpu", "float32", 128, "assistant", ("lr: 0.1 -> 0.2 (preset)",)),
    StepReport(1, 2.5, 0.1, 1.0, 128, 40, 0.01),
    StepReport(2, 2.0, 0.1, 1.0, 128, 40, 0.01),
    EvalReport(2, 1.8234, 1.9102, best=True),
    Sample(2, "Hi", "Hello!"),
    StepReport(3, 1.5, 0.1, 1.0, 128, 40, 0.01),
    Finished(3, "max_iters", CHECKPOINT),
]
LINES = [
    "tiny: 8,752 parameters on cpu in float32, learns assistant, 128 tokens a step, from step 0"
    " to 3",
    "  lr: 0.1 -> 0.2 (preset)",
    "step 2: train loss 1.8234, val loss 1.9102 (best)",
    "step 2: 'Hi' -> 'Hello!'",
    "max_iters at step 3: /m/tiny/step_000003",
]


def test_an_end_names_what_was_saved_last_and_then_the_best():
    best = CheckpointRef(path="/m/tiny/step_002000", digest="1" * 64, step=2000)
    (line,) = describe(Finished(2257, "stopped", best))
    assert line == "stopped at step 2257: /m/tiny/step_002257; the best is step_002000"


def test_an_evaluation_says_in_one_line_what_its_losses_are_made_of():
    learned = {"source": {"a": GroupLoss(1.5, 9.0)}, "class": {"stop": GroupLoss(0.25, 2.0)}}
    val = {
        "source": {"a": GroupLoss(2.0, 3.0)},
        "class": {"stop": GroupLoss(0.5, 1.0), "tool call": GroupLoss(1.0, 2.0)},
    }
    _, line = describe(EvalReport(2, 1.5, 2.0, False, learned, val))
    assert line == "  train/val by class: stop 0.25/0.50, tool call -/1.00"


def test_a_bar_shows_no_loss_before_there_is_one_and_says_what_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_console", Console(force_terminal=True, width=120))
    list(watch(EVENTS[:1], PLAN))
    said = capsys.readouterr().out
    assert "loss" not in said
    assert "evaluating before the first step" in said


@pytest.fixture
def every_line(monkeypatch):
    monkeypatch.setattr(progress, "_INTERVAL", 0.0)


def test_all_events_are_passed_on(capsys):
    assert list(watch(EVENTS, PLAN)) == EVENTS
    assert capsys.readouterr().out.splitlines() == LINES


@pytest.mark.usefixtures("every_line")
def test_without_a_terminal_steps_become_a_line_now_and_then(capsys):
    list(watch(EVENTS, PLAN))
    lines = capsys.readouterr().out.splitlines()
    steps = [line for line in lines if line not in LINES]
    assert len(steps) == 3
    assert steps[0] == (
        "step 1 of 3: loss 2.5000, 12,800 tokens/s, 4,000 supervised tokens/s, 0 min 00 s left"
    )


@pytest.mark.usefixtures("every_line")
def test_time_left_follows_from_the_steps_so_far(capsys):
    plan = PLAN.model_copy(update={"preset": Preset(max_iters=101)})
    list(watch([EVENTS[0], StepReport(1, 2.5, 0.1, 1.0, 128, 40, 1.7999)], plan))
    assert capsys.readouterr().out.splitlines()[-1].endswith(", 2 min 59 s left")


def test_lines_about_steps_grow_seldom_and_the_time_left_follows_from_all_steps(
    monkeypatch, capsys
):
    clock = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    plan = PLAN.model_copy(update={"preset": Preset(max_iters=1000)})

    def events():
        yield EVENTS[0]
        for step in range(1, 61):
            seconds = 20.0 if step == 60 else 10.0  # another program takes the machine
            clock[0] += seconds
            yield StepReport(step, 2.5, 0.1, 1.0, 128, 40, seconds)

    list(watch(events(), plan))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    at = [int(line.split()[1]) for line in lines]
    assert at == [1, 3, 7, 15, 27, 39, 51]
    assert lines[0].endswith(", 166 min 30 s left")
    assert lines[-1].endswith(", 158 min 10 s left")


@pytest.mark.usefixtures("every_line")
def test_on_a_terminal_steps_are_a_bar_and_no_lines(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_console", Console(force_terminal=True, width=150))
    logged = []
    for _ in watch(EVENTS, PLAN, logged.append):
        pass
    shown = capsys.readouterr().out
    assert "step 2: train loss 1.8234, val loss 1.9102 (best)" in shown
    assert "step 1 of 3" not in shown
    assert "3/3" in shown
    assert [line for line in logged if line in LINES] == LINES
    assert len(logged) == len(LINES) + 3


def test_what_a_model_says_cannot_format_the_terminal(capsys):
    list(watch([EVENTS[0], Sample(1, "[red]", "[/bold]\x1b[31m")], PLAN))
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == r"step 1: '[red]' -> '[/bold]\x1b[31m'"


@pytest.mark.usefixtures("every_line")
def test_reading_is_told_by_bytes_rows_tokens_and_rate(monkeypatch, capsys):
    clock = iter([100.0, 102.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    logged, moved = [], []
    with reading("tokenize corpus", logged.append, lambda *said: moved.append(said)) as report:
        report(50, 200, 17, 1234)
    assert logged == ["tokenize corpus: 25% read, 17 rows, 1,234 tokens, 617 tokens/s"]
    assert moved == [(0.25, logged[0])]
    assert capsys.readouterr().out.splitlines() == logged
