"""SIGKILL while the databases of MLflow and Prefect are made: the next start goes on."""

import os
import subprocess
import sys
import time

import pytest

from mypt.children import SAFE

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.row("database")]
PROGRAMS = {
    "mlflow.db": "from tasks.tracking.client import Tracker; Tracker().called('x')",
    "prefect/prefect.db": "from flows.service.guarded_api import make_database; make_database()",
}


def begin(home, name):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    places = {"MYPT_HOME": str(home), "PREFECT_HOME": str(home / "prefect")}
    command = [sys.executable, "-c", PROGRAMS[name]]
    return subprocess.Popen(
        command, env=kept | SAFE | places, stderr=subprocess.PIPE, start_new_session=True
    )


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.trials(quick=2, full=50, at_once=5)
def test_a_kill_while_a_database_is_made_costs_no_later_start(trials, name, tmp_path, dice, row):
    for number in trials:
        home = tmp_path / str(number)
        with row.trial():
            killed = begin(home, name)
            while killed.poll() is None and not list(home.glob(f"**/*{name.rpartition('/')[2]}*")):
                time.sleep(0.01)
            time.sleep(dice.uniform(0, 4))
            killed.kill()
            killed.communicate()
            again = begin(home, name)
            _, said = again.communicate(timeout=240)
            assert again.returncode == 0, said
            assert (home / name).stat().st_size > 100_000
            assert not list(home.glob("**/damaged-*"))
