"""Prefect away, failing or silent: the run that was begun is finished, and says so."""

import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.faults import gate
from tests.faults.flow import Flow

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.row("service")]
CASES = [
    (trouble, moment)
    for trouble in (gate.AWAY, gate.FAILING, gate.SILENT)
    for moment in ("start", "middle")
]
"""A run decides at its start whether it has a Prefect; back in the middle is as away for good."""

_STAGES = 8


@pytest.fixture(scope="module")
def port(prefect):  # noqa: ARG001
    from prefect.settings import PREFECT_API_URL

    return urlsplit(PREFECT_API_URL.value()).port


def run_beside(flow, door, in_the_middle):
    """Run the command; call ``in_the_middle`` when the first training has begun."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    places = {"MYPT_HOME": str(flow.home), "PREFECT_API_URL": f"{door.url}/api"}
    command = [sys.executable, "-m", "flows.cli", "run", str(flow.config)]
    child = subprocess.Popen(
        command, env=kept | places, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while child.poll() is None and not list(flow.home.glob("models/*/run.json")):
        time.sleep(0.02)
    in_the_middle()
    out, err = child.communicate(timeout=240)
    return child.returncode, out.splitlines(), err.splitlines()


@pytest.mark.parametrize(("trouble", "moment"), CASES)
def test_a_run_goes_on_without_prefect(trouble, moment, tmp_path, port, row):
    flow = Flow(tmp_path)
    with gate.Gate(tmp_path, port) as door, row.trial():
        if moment == "start":
            door.set(trouble)
        code, out, err = run_beside(flow, door, lambda: door.set(trouble))
        assert code == 0, "\n".join(err)
        assert out[-1].startswith("summary: ")
        assert "Traceback" not in "".join(err)
        told = {"start": "goes on with a temporary API", "middle": "everything is done and kept"}
        assert any(told[moment] in line for line in err), "\n".join(err)  # Prefect may speak last
        kept = flow.outputs(Path(out[-1].removeprefix("summary: ")))
        assert all(path.exists() for path in kept.values())
        door.set(gate.UP)
        code, again, err = run_beside(flow, door, lambda: None)
        assert (code, again[-1]) == (0, out[-1]), err
        assert sum(line.startswith("reused: ") for line in again) == _STAGES
