"""The Slurm script trains on two hosts; stand-ins answer for the commands of Slurm's in it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import LAST, PATIENCE, Home, write_preset

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).parents[2] / "deployments" / "train.slurm"
SCONTROL = """#!/bin/sh
[ "$1" = requeue ] && echo "$2" >> "$HERE/requeued"
[ "$1 $2" = "show hostnames" ] && echo 10.66.0.1
exit 0
"""
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
hosts = os.environ["HOSTS"].split()
tasks = [subprocess.Popen(["ip", "netns", "exec", host, *words]) for host in hosts]
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.fixture
def job(tmp_path, hosts, dataset):
    """Start the job as sbatch would, or again after a requeue."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def start(restarts):
        given = {
            "PATH": path, "HERE": str(tmp_path), "HOSTS": " ".join(host.name for host in hosts),
            "SLURM_JOB_ID": "4321", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_RESTART_COUNT": str(restarts), "CONFIG": str(write_preset(tmp_path)),
            "MODEL": "m", "DATASET": str(dataset), "MYPT_HOME": str(tmp_path / "runs"),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with (tmp_path / "said").open("ab") as said:
            return subprocess.Popen(
                ["bash", SCRIPT], env=os.environ | given, stdout=said, stderr=said
            )

    return start


def test_a_job_whose_time_is_up_saves_is_queued_again_and_goes_on(job, tmp_path, alone):
    home, said = Home(tmp_path / "runs"), tmp_path / "said"
    first = job(0)
    home.reach(20, said.read_text)
    first.send_signal(signal.SIGUSR1)  # as Slurm does sixty seconds before
    assert first.wait(60) == 143, said.read_text()
    assert (tmp_path / "requeued").read_text() == "4321\n"
    saved = home.latest()
    assert 20 <= saved < LAST
    assert job(1).wait(PATIENCE) == 0, said.read_text()
    assert f"from step {saved} to {LAST}" in said.read_text()
    assert home.lineage(LAST).weights == alone
