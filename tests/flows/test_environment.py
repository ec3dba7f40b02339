import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows.environment import answers, prepare_environment


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """Start from an environment without anything of ours, and leave it as it was."""
    for name in list(os.environ):
        if name.startswith(("PREFECT_", "MLFLOW_", "MYPT_")):
            monkeypatch.delenv(name)
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.fixture
def server():
    """A server that answers with the code that is its path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(int(self.path.split("/")[1]))
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_everything_lies_under_the_home_and_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "not" / "there"))
    prepare_environment()
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "not" / "there" / "prefect")
    assert (tmp_path / "not" / "there" / "prefect").is_dir()
    assert os.environ["PREFECT_LOCAL_STORAGE_PATH"].startswith(os.environ["PREFECT_HOME"])


def test_nothing_is_told_to_anybody(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))
    prepare_environment()
    assert os.environ["DO_NOT_TRACK"] == "true"
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_what_the_user_sets_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_HOME", "/elsewhere")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    prepare_environment()
    assert os.environ["PREFECT_HOME"] == "/elsewhere"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"


def test_a_prefect_that_does_not_answer_is_given_up_aloud(
    tmp_path, monkeypatch, unused_port, capsys
):
    url = f"http://127.0.0.1:{unused_port}/api"
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", url)
    prepare_environment()
    assert "PREFECT_API_URL" not in os.environ
    (line,) = capsys.readouterr().err.splitlines()
    assert f"PREFECT_API_URL={url} does not answer" in line
    assert "temporary API" in line


def test_a_prefect_that_answers_is_used(tmp_path, monkeypatch, server, capsys):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", f"{server}/200")
    prepare_environment()
    assert os.environ["PREFECT_API_URL"] == f"{server}/200"
    assert capsys.readouterr().err == ""


def test_a_server_answers_also_when_it_wants_a_password(server):
    assert answers(f"{server}/200")
    assert answers(f"{server}/401")
    assert not answers(f"{server}/500")
    assert not answers("nonsense")
