"""Each guard taken away, one at a time: the test that it stands behind turns red."""

import contextlib
import json
from pathlib import Path

import pytest
from filelock import FileLock

from flows.commands import models
from mypt import files
from mypt.data import dataset, manifest
from mypt.errors import MyptError
from mypt.training import gradients, lineage, run, step
from mypt.training.checkpoints import checkpoint
from mypt.training.checkpoints import folder as step_folders
from tasks.tracking.journal import Journal
from tests.faults.checks import (
    builds_once,
    detects,
    is_durable,
    keeps_what_is_finite,
    names_the_disk,
    repeats_no_step,
    resumes_bit_for_bit,
    saves_when_terminated,
    stops_at_nan,
    survives_crash_of,
    trains_once,
)

pytestmark = [pytest.mark.faults, pytest.mark.slow]
RED = (AssertionError, pytest.fail.Exception, MyptError)


def nothing(*_, **__):
    """Stand in for a guard that is gone."""


@contextlib.contextmanager
def no_guard(*_, **__):
    """Stand in for a guard around a block."""
    yield


def unsealed(path):
    return json.loads(Path(path).read_bytes())


def in_place(path, chunks):
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)


@contextlib.contextmanager
def straight(final):
    final.mkdir(parents=True)
    yield final


GUARDS = {
    "a folder's names are synced": (is_durable, (files, "sync_folder", nothing)),
    "a new folder's files are synced": (is_durable, (files, "sync_tree", nothing)),
    "a new folder's parents are synced": (
        is_durable, (files, "make_folder", lambda path: path.mkdir(parents=True, exist_ok=True)),
    ),
    "a file is written beside and renamed": (
        survives_crash_of("write", "latest"), (files, "write_chunks", in_place),
    ),
    "a folder is written beside and renamed": (
        survives_crash_of("write", "train/shard_000.bin"), (files, "new_folder", straight),
    ),
    "pointers are put right": (
        survives_crash_of("rename", "base/step_000008"), (step_folders, "point", nothing),
    ),
    "a dataset's files are hashed": (
        detects("dataset", "tokens"), (dataset, "verify_files", nothing),
    ),
    "a dataset's metadata is sealed": (
        detects("dataset", "metadata", after=b'"recipe"'),
        (manifest, "_digest_of", lambda values: values["digest"]),
        (manifest, "_seal_of", lambda values: values["seal"]),
    ),
    "a checkpoint's files are hashed": (
        detects("checkpoint", "weights"), (lineage, "changed_files", lambda *_: ()),
    ),
    "a lineage is sealed": (
        detects("checkpoint", "lineage"), (files, "read_sealed", unsealed),
    ),
    "one process builds a dataset": (builds_once, (files, "new_lock", no_guard)),
    "one process trains a model": (trains_once, (FileLock, "acquire", nothing)),
    "losses must be finite": (stops_at_nan, (step, "_check_finite", nothing)),
    "weights must be finite": (keeps_what_is_finite, (checkpoint, "_check_finite", nothing)),
    "SIGTERM is heeded": (saves_when_terminated, (models._Stop, "_ask", nothing)),
    "the optimizer comes back": (resumes_bit_for_bit, (run, "load_optimizer", nothing)),
    "dropout is drawn from the step": (
        resumes_bit_for_bit, (gradients, "seed_everything", nothing),
    ),
    "a journal repeats no step": (repeats_no_step, (Journal, "_fresh", lambda _, r: r.values)),
    "an error names its file": (names_the_disk, (files, "_naming", no_guard)),
}  # fmt: skip
"""What must hold, and what it takes to remove the guard that sees to it."""


@pytest.fixture
def parts(house, undisturbed, made, dice):
    """All that a check may need."""
    return {"house": house, "undisturbed": undisturbed, "made": made, "dice": dice}


@pytest.mark.parametrize("guard", GUARDS)
def test_without_its_guard_a_check_turns_red(guard, parts, monkeypatch):
    check, *removals = GUARDS[guard]
    check(**parts)
    parts["house"].clear()
    for removal in removals:
        monkeypatch.setattr(*removal)
    with pytest.raises(RED):
        check(**parts)
