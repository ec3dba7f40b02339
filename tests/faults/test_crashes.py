"""A crash at any operation on the disk, anywhere in the pipeline, loses and leaves nothing."""

import os
import sys

import pytest

from tests.faults import children, operations
from tests.faults.durability import Ledger

pytestmark = pytest.mark.faults
_PARTS = 24
_QUICK = 12
_MUTATING = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")


def crash_and_recover(house, number, undisturbed):
    """Crash at an operation, look at what is left, run again, and compare every byte."""

    def work():
        operations.intercept(operations.crash_at(number))
        house.run()

    assert children.run(work).code == 137
    house.check_whole()
    children.run_whole(house.run)
    assert house.print_of() == undisturbed
    house.clear()


@pytest.mark.row("crash")
@pytest.mark.trials(quick=_QUICK, full=_PARTS, at_once=1)
def test_a_crash_loses_nothing(trials, house, undisturbed, kinds, full, row):
    part, numbers = trials.start, range(1, len(kinds) + 1)
    chosen = numbers[part::_PARTS] if full else [numbers[len(kinds) * part // _QUICK]]
    for number in chosen:
        with row.trial():
            crash_and_recover(house, number, undisturbed)


def test_nothing_takes_its_name_before_it_would_survive_a_power_cut(house):
    def work():
        ledger = Ledger(house.home)
        operations.intercept(ledger.act)
        house.run()
        ledger.check_end()
        return ledger.broken

    assert children.ask(work) == []


def test_nothing_reaches_the_disk_unseen(house):
    def work():
        unseen = []

        def hook(event, arguments):
            if event == "open":
                writes = isinstance(arguments[2], int) and arguments[2] & (
                    os.O_WRONLY | os.O_RDWR | os.O_CREAT
                )
            else:
                writes = event in _MUTATING
            if not writes or operations.is_intercepted() or not isinstance(arguments[0], str):
                return
            if arguments[0].startswith(str(house.home)) and not arguments[0].endswith(".lock"):
                unseen.append(f"{event} {arguments[0]}")

        operations.intercept(operations.record([]))
        sys.addaudithook(hook)
        house.run()
        return unseen

    assert children.ask(work) == []
