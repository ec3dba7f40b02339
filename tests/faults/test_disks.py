"""No room, no permission, files that vanish: one line that says so, and nothing is lost."""

import errno
from contextlib import contextmanager

import pytest

from mypt.home import step_folder
from tests.faults import children, disks, operations
from tests.faults.pipeline import STAGES, TINY

pytestmark = [pytest.mark.faults, pytest.mark.row("full")]
STEP = step_folder(TINY["max_iters"])
NEEDED = {
    "tokenize": "texts.jsonl",
    "mask": "home/datasets/chats/train/shard_000.bin",
    "validate": "home/datasets/chat/val/shard_000_mask.bin",
    "pretrain": "home/datasets/texts/train/shard_001.bin",
    "fine-tune": f"home/models/base/{STEP}/model.safetensors",
    "evaluate": f"home/models/chat/{STEP}/tokenizer_state.json",
}
"""A file that each stage reads, beside or below the home."""
_NEEDS_ROOM = ("create", "write", "tensors", "fsync", "rename")


def assert_clear(ended, house):
    """Check that a child ended with one line that names a path."""
    assert ended.code == 70, ended
    assert {"MyptError", "OSError"} & set(ended.kind.split()), ended.trace
    assert len(ended.message.splitlines()) == 1
    assert str(house.root) in ended.message, ended.message


@contextmanager
def trouble(house, undisturbed):
    """Look at what the block's trouble left, go on without it, and compare every byte."""
    yield
    house.check_whole()
    children.run_whole(house.run)
    assert house.print_of() == undisturbed
    house.clear()


def at(stage, do):
    """Return what to call before each stage so that ``do`` happens before one."""
    return lambda begun: do() if begun == stage else None


@pytest.mark.trials(quick=6, full=96, at_once=8)
def test_an_operation_that_finds_no_room_is_one_clear_error(
    trials, house, undisturbed, kinds, dice, row
):
    numbers = range(1, sum(kind in _NEEDS_ROOM for kind in kinds) + 1)
    for number in dice.sample(numbers, len(trials)):

        def work(number=number):
            operations.intercept(operations.fail_at(number, errno.ENOSPC, _NEEDS_ROOM))
            house.run()

        with row.trial(), trouble(house, undisturbed):
            assert_clear(children.run(work), house)


def test_where_no_hard_link_can_be_made_the_file_is_copied(house, undisturbed, kinds, row):
    def work(number):
        operations.intercept(operations.fail_at(number, errno.ENOSPC, ("link",)))
        house.run()

    for number in range(1, kinds.count("link") + 1):
        with row.trial():
            assert not children.run(lambda number=number: work(number)).code
            assert house.print_of() == undisturbed
            house.clear()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.trials(quick=1, full=4)
def test_a_full_disk_is_one_clear_error(trials, stage, house, undisturbed, dice, row):
    for _ in trials:
        left = dice.choice((0, 1 << 10, 1 << 12, 1 << 14))
        with row.trial(), disks.own_disk(house.home), trouble(house, undisturbed):
            fill = at(stage, lambda left=left: disks.fill(house.home, left))
            assert_clear(children.run(lambda fill=fill: house.run(fill)), house)
            disks.make_room(house.home)


@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_that_cannot_be_written_is_one_clear_error(stage, house, undisturbed, row):
    if not disks.may_forbid():
        pytest.skip("this root may not mount, and no other way keeps root from writing")
    with row.trial(), disks.own_disk(house.home), trouble(house, undisturbed):
        forbid = at(stage, lambda: disks.forbid_writing(house.home))
        try:
            assert_clear(children.run(lambda: house.run(forbid)), house)
        finally:
            disks.allow_writing(house.home)


@pytest.mark.parametrize("stage", STAGES)
def test_a_file_that_vanishes_is_named(stage, house, undisturbed, row):
    needed = house.root / NEEDED[stage]
    aside = house.root / "aside"
    with row.trial(), trouble(house, undisturbed):
        ended = children.run(lambda: house.run(at(stage, lambda: needed.rename(aside))))
        aside.rename(needed)
        assert_clear(ended, house)
        assert needed.name in ended.message
