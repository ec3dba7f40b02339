"""Two machines train one model: workers and machines die, return or are cut off.

Whatever happens, training goes on from the last checkpoint and ends with the digest of a run of
one process that nothing disturbs, since gradients are added as one tree.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.conftest import LAST, PATIENCE, Home, write_preset

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


class Training:
    """One training of two machines, each started with the same command."""

    def __init__(self, hosts, folder, dataset, nodes):
        self.home, self.hosts = Home(folder / "runs"), hosts
        mypt = Path(sys.executable).parent / "mypt"
        self.words = [
            str(mypt), "train", "--config_file", str(write_preset(folder)), "--model_name", "m",
            "--dataset_dir", str(dataset), "--nodes", nodes,
            "--rendezvous", f"{hosts[0].address}:29400",
        ]  # fmt: skip
        self.logs = {host: folder / f"{host.name}.log" for host in hosts}
        self.running = {}
        for host in hosts:
            self.start(host)

    def start(self, host):
        environment = {"MYPT_HOME": str(self.home.path), "OMP_NUM_THREADS": "1"}
        self.running[host] = host.start(self.words, self.logs[host], **environment)

    def lose(self, host):
        """Let a host die."""
        host.die()
        self.running.pop(host).wait()

    def again(self, host):
        """Let a host return, and the same command be given there."""
        host.mend()
        self.start(host)

    def end(self):
        for host, process in self.running.items():
            host.kill()
            process.wait()

    def begun(self, host):
        """The steps at which training began and went on, as one host was told."""
        return [int(step) for step in re.findall("from step (.+) to", self.logs[host].read_text())]

    def reach(self, step):
        """Wait for a checkpoint of ``step`` or later."""
        self.home.reach(step, self.story)

    def code(self, host):
        """Wait until mypt has ended on a host; return its exit code."""
        try:
            return self.running[host].wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{host.name} hangs\n{self.story()}") from None

    def story(self):
        logs = [*self.logs.values(), *(self.home.path / "logs").glob("*")]
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs)

    def ends_as(self, alone, *hosts):
        """Check that mypt ends well on these hosts, and with which weights."""
        for host in hosts:
            assert self.code(host) == 0, self.story()
            assert host.processes() == []
        assert self.home.lineage(LAST).weights == alone


@pytest.fixture
def training(hosts, tmp_path, dataset):
    made = []
    yield lambda nodes: made.append(Training(hosts, tmp_path, dataset, nodes)) or made[-1]
    for run in made:
        run.end()


def test_a_killed_worker_is_started_again_on_both(training, hosts, alone):
    first, second = hosts
    run = training("2")
    run.reach(20)
    (worker,) = second.processes("mypt.training.launch.rank")
    os.kill(worker, signal.SIGKILL)
    run.ends_as(alone, first, second)
    for host in hosts:
        began, again = run.begun(host)
        assert began == 0 < 20 <= again < LAST


def test_where_a_host_dies_the_other_goes_on_alone(training, hosts, alone):
    first, second = hosts
    run = training("1:2")
    run.reach(20)
    run.lose(second)
    run.ends_as(alone, first)
    assert run.home.lineage(LAST).compute.processes == 1
    assert run.home.lineage(LAST).earlier[-1].compute.processes == 2


def test_a_host_that_returns_is_waited_for_and_trains_again(training, hosts, alone):
    first, second = hosts
    run = training("2")
    run.reach(20)
    run.lose(second)
    time.sleep(3.0)
    run.again(second)
    run.ends_as(alone, first, second)
    assert run.begun(first)[-1] == run.begun(second)[-1] >= 20


def test_a_host_that_comes_later_is_let_in(training, hosts, alone):
    first, second = hosts
    run = training("1:2")
    run.reach(10)
    run.lose(second)
    alone_at = run.home.latest() + 10
    run.reach(alone_at)
    run.again(second)
    run.ends_as(alone, first, second)
    assert [one.compute.processes for one in run.home.lineage(LAST).earlier][-2:] == [2, 1]
    assert run.home.lineage(LAST).compute.processes == 2


def test_a_cable_that_is_out_for_seconds_changes_nothing(training, hosts, alone):
    first, second = hosts
    run = training("2")
    run.reach(20)
    second.cut()
    time.sleep(4.0)
    second.mend()
    run.ends_as(alone, first, second)
    assert run.begun(first) == [0]


def test_a_host_that_is_cut_off_for_good_ends_and_the_other_goes_on(training, hosts, alone):
    first, second = hosts
    run = training("1:2")
    run.reach(20)
    second.cut()
    run.ends_as(alone, first)
    assert run.code(second) == 1
    assert second.processes() == []
    assert "the other machines are gone or cut off" in run.logs[second].read_text()


def test_where_the_first_host_dies_all_end_and_the_same_command_goes_on(training, hosts, alone):
    first, second = hosts
    run = training("1:2")
    run.reach(20)
    run.lose(first)
    assert run.code(second) == 1
    assert second.processes() == []
    assert "run the same again" in run.logs[second].read_text()
    for host in hosts:
        run.again(host)
    run.ends_as(alone, first, second)
    assert run.begun(first)[-1] >= 20
