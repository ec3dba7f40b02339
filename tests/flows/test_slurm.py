"""The Slurm script, run by bash with commands of its own in the place of Slurm's."""

import os
import re
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from flows.cli import app
from flows.commands import models

SCRIPT = Path(__file__).parents[2] / "deployments" / "train.slurm"
OPTIONS = {
    "job-name": r"\w+",
    "nodes": r"\d+(-\d+)?",
    "ntasks-per-node": r"1",  # one agent a node
    "gpus-per-node": r"(\w+:)?\d+",
    "cpus-per-task": r"\d+",
    "time": r"(\d+-)?\d+:\d\d:\d\d",
    "output": r"[\w%./-]+",
    "open-mode": r"append|truncate",
    "requeue": "",
    "no-kill": "",
    "signal": r"B:USR1@\d+",
}
"""What sbatch knows of what the script asks for, and in which form."""
SCONTROL = """#!/bin/sh
[ "$1" = requeue ] && echo "$2" >> "$HERE/requeued"
[ "$1 $2" = "show hostnames" ] && printf 'node7\\nnode8\\n'
exit 0
"""
SRUN = """#!/bin/bash
printf '%s\\n' "$@" > "$HERE/started"
trap 'echo > "$HERE/told"; exit 143' TERM
if [ "$ENDS" = never ]; then while :; do sleep 0.1; done; fi
exit "$ENDS"
"""


@pytest.fixture
def slurm(tmp_path):
    """Start the script as Slurm would, with agents that end with a given code."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        path = tmp_path / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def start(ends, **environment):
        given = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "HERE": str(tmp_path), "ENDS": str(ends),
            "SLURM_JOB_ID": "4321", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[7-8]",
            "CONFIG": "a b.json", "MODEL": "mine", "DATASET": "/d", "MYPT_HOME": "/shared/runs",
        }  # fmt: skip
        words = ["bash", str(SCRIPT)]
        with (tmp_path / "said").open("w") as said:
            return subprocess.Popen(words, env=given | environment, stderr=said)

    return start


def options():
    lines = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    return [re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line).groups("") for line in lines]


def test_bash_reads_it_and_sbatch_knows_every_option():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    for name, value in options():
        assert re.fullmatch(OPTIONS[name], value), f"--{name}={value}"
    assert len(dict(options())) == len(options()) == len(OPTIONS)
    text = SCRIPT.read_text()
    assert text.startswith("#!/")  # sbatch asks for it, and for options before any command
    assert text.rindex("#SBATCH") < text.index("set -u")
    assert int(dict(options())["signal"].partition("@")[2]) >= 60


@pytest.mark.parametrize(
    ("given", "base", "least"), [({}, None, "1"), ({"BASE": "hf:x", "MIN_NODES": "2"}, "hf:x", "2")]
)
def test_every_node_is_started_with_a_command_that_mypt_knows(slurm, tmp_path, given, base, least):
    assert slurm(0, **given).wait(30) == 0
    words = (tmp_path / "started").read_text().splitlines()
    begin = words.index("mypt")
    assert all(word.startswith("--") for word in words[:begin])
    command, bound, _ = app.parse_args(words[begin + 1 :], exit_on_error=False, print_error=False)
    assert command is models.train
    assert bound.arguments == {
        "config_file": Path("a b.json"), "model_name": "mine", "dataset_dir": Path("/d"),
        "nodes": f"{least}:2", "rendezvous": "node7:24321",
    } | ({"init_from_model": base} if base else {})  # fmt: skip


@pytest.mark.parametrize(
    ("code", "starts", "again"),
    [(0, 0, False), (143, 0, True), (1, 0, True), (2, 0, False), (1, 19, True), (1, 20, False)],
)
def test_what_another_start_can_cure_is_started_again(slurm, tmp_path, code, starts, again):
    assert slurm(code, SLURM_RESTART_COUNT=str(starts)).wait(30) == code
    found = tmp_path / "requeued"
    assert (found.read_text() if found.exists() else None) == ("4321\n" if again else None)


@pytest.mark.parametrize(("number", "again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_agents_are_told_to_stop_and_only_a_cancelled_job_stays_away(
    slurm, tmp_path, number, again
):
    job = slurm("never")
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    job.send_signal(number)
    assert job.wait(30) == 143
    assert (tmp_path / "told").exists()
    assert (tmp_path / "requeued").exists() == again


@pytest.mark.parametrize("name", ["CONFIG", "MODEL", "DATASET", "MYPT_HOME"])
def test_what_is_missing_is_named_before_anything_starts(slurm, tmp_path, name):
    assert slurm(0, **{name: ""}).wait(30) not in (0, 143)
    assert re.search(rf"{name}: (a|the) ", (tmp_path / "said").read_text())
    assert not (tmp_path / "started").exists()
