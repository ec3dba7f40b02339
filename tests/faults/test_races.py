"""Two runs at once on one dataset or model: one works, the other waits or is told why not."""

import os

import pytest

from mypt.config import MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import prepare
from tests.faults import children
from tests.faults.pipeline import finish, plan_pretrain

pytestmark = [pytest.mark.faults, pytest.mark.row("race")]
TRIALS = pytest.mark.trials(quick=1, full=13)


def race(*works):
    """Let several children begin at the same moment; return how each ended."""
    gate, opened = os.pipe()

    def waiting(work):
        def begin():
            os.read(gate, 1)
            return work()

        return begin

    started = [children.Child(waiting(work)) for work in works]
    os.write(opened, b"." * len(works))
    ended = [child.wait() for child in started]
    os.close(gate)
    os.close(opened)
    return ended


def refused(ended, said):
    """Return whether a child was refused in one line that says why."""
    return ended.code == 70 and "MyptError" in ended.kind and said in ended.message


@pytest.fixture
def datasets(undisturbed):
    """What the undisturbed pipeline has below ``datasets/`` before validation."""
    return {
        name: digest
        for name, digest in undisturbed.items()
        if name.startswith("datasets/") and not name.endswith("validation.json")
    }


@TRIALS
def test_two_runs_that_make_one_dataset_make_it_once(trials, house, datasets, row):
    def make():
        house.make_datasets()

    for _ in trials:
        with row.trial():
            assert all(race(make, make))
            assert house.print_of() == datasets
            house.clear()


@TRIALS
def test_of_two_that_never_reuse_one_is_refused(trials, house, row):
    config = PrepareConfig(
        sources=(Source(path=str(house.root / "chats.jsonl")),), tokenization="byte"
    )

    def work():
        prepare(config, MaskPolicy(), house.home / "datasets/one")

    children.run_whole(work)
    alone = house.print_of()
    for _ in trials:
        house.clear()
        with row.trial():
            first, second = sorted(race(work, work))
            assert (first.code, refused(second, "is never overwritten")) == (0, True), second
            assert house.print_of() == alone


@TRIALS
def test_two_trainings_of_one_model_do_not_meet(trials, house, undisturbed, row):
    def work():
        base, _ = house.make_datasets()
        finish(plan_pretrain(base))

    for _ in trials:
        children.run_whole(house.make_datasets)
        with row.trial():
            first, second = sorted(race(work, work))
            assert first.code == 0, first
            assert not second.code or refused(second, "is held by another run"), second
            left = house.print_of()
            expected = {k: v for k, v in undisturbed.items() if k.startswith("models/base/")}
            assert {k: v for k, v in left.items() if k.startswith("models/")} == expected
            house.clear()


@TRIALS
def test_two_pipelines_in_one_home_leave_one_whole_result(trials, house, undisturbed, row):
    for _ in trials:
        with row.trial():
            for ended in race(house.run, house.run):
                assert not ended.code or refused(ended, "is held by another run"), ended
            house.check_whole()
            children.run_whole(house.run)
            assert house.print_of() == undisturbed
            house.clear()
