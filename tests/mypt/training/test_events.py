"""What a worker says is what its starter hears."""

import math

from mypt.errors import ConfigError, TrainingError
from mypt.references import CheckpointRef
from mypt.training.batches.groups import GroupLoss
from mypt.training.events import (
    CheckpointSaved,
    EvalReport,
    Failed,
    Finished,
    Sample,
    Started,
    StepReport,
    from_line,
    to_line,
)

REF = CheckpointRef(path="/m/step_000002", digest="ab", step=2)
SAID = [
    Started("m", 0, 4, 100, "cpu", "float32", 64, "assistant", ("a",), ("b", "c")),
    StepReport(1, 0.1 + 0.2, 1e-3, 2.5, 64, 7, 0.5),
    EvalReport(1, 1.5, 2.5, True),
    EvalReport(1, 1.5, 2.5, True, {}, {"class": {"stop": GroupLoss(0.1 + 0.2, 3.0)}}),
    Sample(1, "hi\n", "há"),
    CheckpointSaved(2, REF),
    Finished(2, "stopped", REF),
    Failed("ConfigError", "no"),
]


def test_every_event_comes_back_as_it_was():
    for said in SAID:
        line = to_line(said)
        assert "\n" not in line
        assert from_line(line) == said


def test_nan_comes_back():
    heard = from_line(to_line(StepReport(1, math.nan, 1e-3, math.inf, 1, 0, 0.1)))
    assert math.isnan(heard.loss)
    assert heard.grad_norm == math.inf


def test_half_a_line_says_nothing():
    line = to_line(SAID[1])
    assert [from_line(line[:n]) for n in range(len(line))] == [None] * len(line)


def test_errors_come_back_as_themselves():
    assert isinstance(Failed("ConfigError", "no").error(), ConfigError)
    assert isinstance(Failed("OSError", "no").error(), TrainingError)
