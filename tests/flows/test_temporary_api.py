"""The Prefect API of one run: whom it answers, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from flows.service.temporary_api import start_temporary_api
from mypt.children import SAFE
from mypt.errors import MyptError
from tests.flows.processes import soon_alone

MYPT = Path(sys.executable).with_name("mypt")
PROGRAM = """
import json, os, sys, time
from flows.environment import prepare_environment
from flows.service.temporary_api import start_temporary_api
prepare_environment()
start_temporary_api()()
api = [os.environ[f"PREFECT_API_{name}"] for name in ("URL", "AUTH_STRING")]
print(json.dumps(api), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A process with a temporary API, where that is, its password, and its home."""
    home = tmp_path_factory.mktemp("temporary")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=kept | SAFE | {"MYPT_HOME": str(home), "PREFECT_SERVER_API_AUTH_STRING": "ann:secret"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process, *json.loads(process.stdout.readline()), home
    finally:
        process.kill()
        process.communicate()


def ask(url, password, **headers):
    request = urllib.request.Request(f"{url}/flow_runs/count", b"{}", headers)
    request.add_header("Content-Type", "application/json")
    if password:
        import base64

        request.add_header("Authorization", f"Basic {base64.b64encode(password.encode()).decode()}")
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers)


def test_only_who_has_its_password_is_answered_and_no_page_is(running):
    _, url, password, _ = running
    assert password != "ann:secret"
    assert ask(url, password)[0] == 200
    assert ask(url, None)[0] == 401
    code, headers = ask(url, password, Origin="http://evil.example")
    assert code == 403
    assert "access-control-allow-origin" not in {name.lower() for name in headers}
    assert ask(url, password, Host="evil.example")[0] == 400


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_it_ends_with_the_process_that_is_killed(running):
    process, url, password, home = running
    assert ask(url, password)[0] == 200
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert soon_alone(home, seconds=30)


def test_a_disk_without_room_is_one_line_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    little = type("Usage", (), {"free": 4 << 20})
    monkeypatch.setattr("shutil.disk_usage", lambda _: little)
    with pytest.raises(MyptError, match=r"4 MiB are free; expected 16 for the databases"):
        start_temporary_api()
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "prefect.db").mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    done = subprocess.run(
        [MYPT, "run", Path(__file__).parents[2] / "configs" / "smoke.json"], cwd=tmp_path,
        env=kept | {"MYPT_HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "temporary-prefect ended by itself" in done.stderr
