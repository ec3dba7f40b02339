"""Ctrl-C in a terminal, which sends it to every process that the command has started."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.flows.conftest import CONFIG
from tests.flows.processes import processes_of, soon_alone

MYPT = Path(sys.executable).with_name("mypt")
ROOT = Path(__file__).parents[2]
LONG = 100_000
SECONDS = 60.0
"""In which everything has ended after Ctrl-C, on a machine that does other things too."""
pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")


class Terminal:
    """`mypt run CONFIG` over a home, as the foreground of a terminal of its own."""

    def __init__(self, home, config):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
        self._ours, theirs = os.openpty()
        self._home, self._said = home, bytearray()
        self.process = subprocess.Popen(
            [MYPT, "run", config],
            env=kept | {"MYPT_HOME": str(home), "COLUMNS": "200", "TERM": "xterm"},
            cwd=ROOT,
            preexec_fn=lambda: os.login_tty(theirs),
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        try:
            while said := os.read(self._ours, 4096):
                self._said += said
        except OSError:  # nobody is at the other end any more
            pass

    @property
    def said(self):
        return self._said.decode(errors="replace")

    def wait_for(self, pattern):
        """Return what matches once it is on the screen."""
        while not (found := re.search(pattern, self.said)):
            assert self.process.poll() is None, self.said
            time.sleep(0.01)
        return found

    def press_ctrl_c(self):
        os.write(self._ours, b"\x03")

    def end(self):
        """Wait for the end, and return the exit code and how many seconds it took."""
        start = time.monotonic()
        try:
            code = self.process.wait(280)
        finally:
            if self.process.poll() is None:
                self.process.kill()
        seconds = time.monotonic() - start
        self._reader.join()
        os.close(self._ours)
        return code, seconds


def asked(database, *queries):
    """Return the first column of what is found."""
    with closing(sqlite3.connect(database)) as connection:
        return [row[0] for query in queries for row in connection.execute(query)]


def check_the_records(home, *, sent=True):
    """See that nothing runs for ever, and nothing was ever taken for a crash.

    ``sent``: it had the time to send its records to MLflow.
    """
    kinds = ("flow_run", "task_run")
    prefect = home / "prefect" / "prefect.db"
    # A tag would ask Prefect for a slot before each task, which may be away by then.
    assert set(asked(prefect, "SELECT tags FROM flow_run")) == {"[]"}
    last = asked(prefect, *(f"SELECT state_type FROM {kind}" for kind in kinds))
    assert set(last) <= {"COMPLETED", "CANCELLED"}
    assert "CRASHED" not in asked(prefect, *(f"SELECT type FROM {kind}_state" for kind in kinds))
    if sent:
        in_mlflow = asked(home / "mlflow.db", "SELECT status FROM runs")
        assert set(in_mlflow) <= {"FINISHED", "KILLED"}
    assert last.count("CANCELLED") == 2, "the flow and the task"


def interrupt(home, config, pattern, *, again=None):
    """Press Ctrl-C once something is on the screen, check all that is promised, return the rest.

    ``again``: seconds after which it is pressed a second time.
    """
    terminal = Terminal(home, config)
    begun = terminal.wait_for(pattern).end()
    terminal.press_ctrl_c()
    if again is not None:
        time.sleep(again)
        terminal.press_ctrl_c()
    code, seconds = terminal.end()
    assert code == 130, terminal.said
    assert seconds < SECONDS
    assert "mypt: interrupted; what was complete is kept, run the same again" in terminal.said
    for wrong in ("Traceback", "went away", "Crash", "Error"):
        assert wrong not in terminal.said
    assert soon_alone(home)
    return terminal.said[begun:]


def write_config(folder, **changes):
    """Write the small pipeline's config, with changes by section, and return its path."""
    path = folder / "small.json"
    path.write_text(json.dumps(CONFIG | {key: CONFIG[key] | changes[key] for key in changes}))
    return path


def stop_in_a_training(folder, stage):
    endless = {"max_iters": LONG, "eval_interval": LONG, "checkpoint_interval": LONG}
    home, config = folder / "home", write_config(folder, **{stage: endless})
    said = interrupt(home, config, f" [1-9][0-9]*/{LONG}")
    check_the_records(home)
    step = re.search(r"stopped at step (\d+)", said)[1]
    interrupt(home, config, f"from step {step} to {LONG}")


def test_ctrl_c_while_tokenizing_ends_as_cancelled(tmp_path):
    home = tmp_path / "home"
    interrupt(home, write_config(tmp_path), "tokenize base corpus small-base")
    check_the_records(home)


def test_ctrl_c_in_a_training_saves_its_step_and_the_same_again_goes_on_from_there(tmp_path):
    stop_in_a_training(tmp_path, "pretrain")


@pytest.mark.slow
def test_ctrl_c_in_a_fine_tuning_saves_its_step_and_the_same_again_goes_on_from_there(tmp_path):
    stop_in_a_training(tmp_path, "sft")


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "tokenize base corpus small-base",
        "validate base corpus small-base",
        "tokenize chat data small-chat",
        "mask chat data small-chat",
        "validate chat data small-chat",
        "evaluate small",
        "gate small",
    ],
)
def test_ctrl_c_in_each_stage_ends_as_cancelled_and_the_same_again_completes(line, tmp_path):
    home, config = tmp_path / "home", write_config(tmp_path, evaluate={"gate": True})
    interrupt(home, config, line)
    check_the_records(home)
    again = Terminal(home, config)
    code, _ = again.end()
    assert code == 0, again.said


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.02, 0.05, 0.2, 1.0])
def test_a_second_ctrl_c_ends_as_cancelled_too(seconds, tmp_path):
    home = tmp_path / "home"
    interrupt(home, write_config(tmp_path), "validate base corpus small-base", again=seconds)
    check_the_records(home, sent=False)


@pytest.mark.slow
def test_ctrl_c_before_the_first_stage_leaves_nothing_behind(tmp_path):
    home, config = tmp_path / "home", write_config(tmp_path)
    terminal = Terminal(home, config)
    while not processes_of(home, "guarded_api"):
        time.sleep(0.05)
    terminal.press_ctrl_c()
    code, _ = terminal.end()
    assert code == 130, terminal.said
    assert "Traceback" not in terminal.said
    assert soon_alone(home)
