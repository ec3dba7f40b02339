"""One of the processes that torchrun starts: what it says, and that it never hangs."""

import os
import sys
import time

from mypt.training import loop
from mypt.training.events import StepReport
from mypt.training.launch import rank as worker
from mypt.training.lineage import RunContext
from tests.faults.children import Child


def in_a_rank_of_its_own(monkeypatch, port, where):
    """Let this process think that torchrun started it, alone; its errors go to a file."""
    told = {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    sys.stderr = where.open("w")


def test_a_process_that_makes_no_step_shows_where_and_ends(
    plan, monkeypatch, unused_port, tmp_path
):
    step = StepReport(1, 5.0, 1e-3, 1.0, 128, 60, 0.1)

    def stuck_in_here():
        time.sleep(60)

    def hanging(*_given, **_choices):
        for _ in range(3):  # each event gives it as long again
            time.sleep(0.6)
            yield step
        stuck_in_here()

    job = worker.RankJob(plan=plan(parallel="ddp", step_timeout=1.0), context=RunContext())
    where = tmp_path / "errors"

    def work():
        in_a_rank_of_its_own(monkeypatch, unused_port, where)
        monkeypatch.setattr(loop, "train", hanging)
        for number, _ in enumerate(worker._watched(job, lambda: False), 1):
            (tmp_path / "events").write_text(str(number))
        os._exit(0)

    began = time.monotonic()
    end = Child(work).wait()
    assert end.code == 1
    assert time.monotonic() - began < 30
    assert (tmp_path / "events").read_text() == "3"
    assert "stuck_in_here" in where.read_text()
