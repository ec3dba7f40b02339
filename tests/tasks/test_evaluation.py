"""What an evaluation is found again by: digests of all that it reads, never paths alone."""

from inspect import unwrap

import pytest

from mypt.config import EvaluateConfig, MaskPolicy
from mypt.data.dataset import mask
from mypt.references import CheckpointRef
from tasks.evaluation import evaluate
from tests.mypt.conftest import prepare_chat

BASE, CHAT = (CheckpointRef(path=name, digest=name * 32, step=1) for name in ("aa", "bb"))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def data(home):
    """Two datasets of the same rows with other masks."""
    from mypt.data.manifest import reference

    place = prepare_chat(home)
    mask(place, MaskPolicy(end_of_turn=False), home / "other")
    return reference(place), reference(home / "other")


def key(dataset, base=BASE, chat=CHAT, **asked):
    config = EvaluateConfig.model_validate(asked)
    return unwrap(evaluate.fn)(base, chat, dataset, config, "name").key


def test_an_evaluation_is_named_by_the_digests_of_models_and_data(data):
    one, other = data
    moved = one.model_copy(update={"path": "elsewhere"}), CHAT.model_copy(update={"path": "moved"})
    assert key(moved[0], chat=moved[1]) == key(one)
    changed = {"digest": "c" * 64}
    keys = {
        key(one), key(other), key(one.model_copy(update=changed)),
        key(one, base=BASE.model_copy(update=changed)),
        key(one, chat=CHAT.model_copy(update=changed)),
        key(one, exercises=3),
    }  # fmt: skip
    assert len(keys) == 6


def test_a_named_set_whose_data_change_under_its_path_is_measured_again(data, home):
    one, other = data
    place = home / "set"
    place.symlink_to(one.path)
    before = key(one, sets={"extra": str(place)})
    assert key(one, sets={"extra": str(place)}) == before
    place.unlink()
    place.symlink_to(other.path)
    assert key(one, sets={"extra": str(place)}) != before


def test_a_task_of_the_harness_that_is_edited_is_asked_again(data, home):
    task = home / "task.yaml"
    task.write_text("task: one")
    before = key(data[0], harness=[str(task)])
    task.write_text("task: two")
    assert key(data[0], harness=[str(task)]) != before


def test_asking_the_gate_changes_no_figure_and_so_measures_nothing_again(data):
    assert key(data[0], gate=True) == key(data[0])
