"""Whatever the clock says, and whatever it said when files were written: the same bits."""

import ast
import os
import random
import time
from pathlib import Path

import pytest

import mypt
from tests.faults import children

pytestmark = pytest.mark.faults
_YEARS = 10 * 365 * 24 * 3600
_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "date.today"}
_FILE_TIMES = {"st_mtime", "st_mtime_ns", "st_ctime", "st_ctime_ns", "st_atime"}


def scramble(home, dice):
    """Give every file and folder a time of its own, years away."""
    for path in [home, *home.rglob("*")]:
        moment = time.time() + dice.uniform(-_YEARS, _YEARS)
        os.utime(path, (moment, moment))


@pytest.mark.row("clock")
@pytest.mark.trials(quick=2, full=20)
def test_a_clock_that_jumps_changes_nothing(trials, house, undisturbed, dice, row):
    true_time = time.time
    for _ in trials:
        seed = dice.random()

        def work(seed=seed):
            jumps = random.Random(seed)
            time.time = lambda: true_time() + jumps.uniform(-_YEARS, _YEARS)
            time.time_ns = lambda: int(time.time() * 1e9)
            house.run(lambda _: house.home.exists() and scramble(house.home, jumps))

        with row.trial():
            children.run_whole(work)
            children.run_whole(work)  # all there is was made in the future or the past
            assert house.print_of() == undisturbed
            house.clear()


def test_the_core_reads_no_clock():
    """A stopwatch (time.monotonic) decides nothing and is allowed, as is a date for people."""
    core = Path(mypt.__file__).parent
    for_people = {
        core / "provenance" / "inventory.py",  # `mypt list` shows when a thing was made
        core / "home.py",  # the newest of the models that a typed beginning fits, which is said
    }
    within_a_process = {  # whether a file was written to since it was read; then bytes decide
        core / "data" / "dataset.py",
        core / "data" / "vocabularies" / "base_files.py",
    }
    for path in set(core.rglob("*.py")) - for_people - within_a_process:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in _CLOCKS, path
                assert node.attr not in _FILE_TIMES, path
