"""What every step measured is kept to the last bit, and survives an interruption."""

from pathlib import Path

import numpy as np
import pytest

from mypt.errors import CheckpointError
from mypt.training.checkpoints.state import HISTORY, History, read_history, write_history
from mypt.training.loop import train


def bits(values):
    return np.array(values, np.float64).tobytes()


def test_every_steps_figures_are_kept_bit_for_bit(plan, finish):
    end = finish(plan())
    found = read_history(Path(end["end"].checkpoint.path), end["end"].checkpoint.step)
    steps = end["steps"][: end["end"].checkpoint.step]
    assert bits(found.loss) == bits([step.loss for step in steps])
    assert bits(found.grad_norm) == bits([step.grad_norm for step in steps])


def test_an_interrupted_training_keeps_the_steps_before(plan, finish):
    whole = read_history(Path(finish(plan("whole"))["all"][-2].checkpoint.path), 12)
    asked = iter([False] * 5 + [True])
    list(train(plan("parts"), should_stop=lambda: next(asked)))
    parts = read_history(Path(finish(plan("parts"))["all"][-2].checkpoint.path), 12)
    assert (bits(whole.loss), bits(whole.grad_norm)) == (bits(parts.loss), bits(parts.grad_norm))


def test_steps_that_an_older_version_made_are_unknown(tmp_path):
    found = read_history(tmp_path, 3)
    assert np.isnan(found.loss).all()
    assert len(found.loss) == len(found.grad_norm) == 3


def test_a_history_of_another_length_or_no_history_is_refused(tmp_path):
    history = History.unknown(2)
    history.add(1.5, 0.25)
    write_history(tmp_path / HISTORY, history)
    assert bits(read_history(tmp_path, 3).loss) == bits(history.loss)
    with pytest.raises(CheckpointError, match="3 steps found, 4 expected"):
        read_history(tmp_path, 4)
    (tmp_path / HISTORY).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"history\.safetensors: cannot be read"):
        read_history(tmp_path, 3)


def test_a_copy_does_not_grow():
    history = History.unknown(0)
    history.add(1.0, 2.0)
    copy = history.copy()
    history.add(3.0, 4.0)
    assert (list(copy.loss), len(history.loss)) == ([1.0], 2)
