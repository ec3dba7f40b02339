"""Whatever is done again and again leaves no more behind than once, and takes no longer."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.conftest import CONFIG
from tests.flows.processes import soon_alone
from tests.test_traps import TRAINING

MYPT = Path(sys.executable).with_name("mypt")
COMMANDS = int(os.environ.get("MYPT_GROWTH_COMMANDS", "16"))
RUNS = int(os.environ.get("MYPT_GROWTH_RUNS", "4"))
"""200 and 50 take an hour on two cores."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tmp").mkdir()
    text = "".join(f"text {number}\n\n" for number in range(8000))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "tiny.json").write_text(json.dumps(TRAINING | {"use_loss_mask": False}))
    (tmp_path / "small.json").write_text(json.dumps(CONFIG))
    return tmp_path


def run(folder, command):
    """Run a command; return the seconds of processor that it and its children took."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    ours = {
        "MYPT_HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "OMP_NUM_THREADS": "1",
    }
    begun = spent()
    done = subprocess.run(
        [MYPT, *command.split()], env=kept | ours, cwd=folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert soon_alone(folder / "home", 10)
    return spent() - begun


def spent():
    """Seconds of processor that ended children took; those of the clock tell of other programs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def left(folder):
    """Names of temporary files, locks and whatever else lies where it is not asked for."""
    temporary = {path for path in folder.rglob("*") if path.name.startswith((".tmp-", "."))}
    return sorted(map(str, temporary | set((folder / "tmp").iterdir())))


def test_commands_in_a_row_leave_nothing_behind(folder):
    run(folder, "prepare --input_files a.txt --out_dir d --tokenization byte")
    run(folder, "train --config_file tiny.json --model_name m --dataset_dir d")
    every = ["validate d", "show d", "diff d d", "lineage m --verify", "list", "plan tiny.json",
             "generate m --prompt hi --max_tokens 2",
             "train --config_file tiny.json --model_name m --dataset_dir d"]  # fmt: skip
    seconds = [run(folder, command) for command in every]
    before = left(folder)
    for number in range(COMMANDS):
        at = number % len(every)
        assert run(folder, every[at]) <= 1.2 * seconds[at] + 5.0, every[at]
    assert left(folder) == before


def test_pipeline_runs_in_a_row_leave_nothing_behind(folder):
    run(folder, "run small.json")
    first, before = run(folder, "run small.json"), left(folder)
    for _ in range(RUNS):
        assert run(folder, "run small.json") <= 1.2 * first + 10.0
    assert left(folder) == before
