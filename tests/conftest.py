"""What all tests share: a home of their own, and one Prefect for those that need it."""

import os
import shutil
import signal
import tempfile

import pytest
from hypothesis import settings

from flows.environment import prepare_environment

# Before any test module imports Prefect: it looks at the environment then, and never again.
_HOME = tempfile.mkdtemp(prefix="mypt-tests-")
os.environ["MYPT_HOME"] = _HOME
os.environ.pop("PREFECT_API_URL", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)
# The API of the tests never goes away, but on a busy machine it may answer late.
os.environ["PREFECT_CLIENT_MAX_RETRIES"] = "5"
prepare_environment()
# Begun in the background, a process ignores both, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A busy machine is no fault of what is tried on it.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def _home_is_removed():
    yield
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def prefect():
    """A Prefect API of the test session; it takes seconds to start, so there is one."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def _mlflow_database(tmp_path_factory):
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def own_home(tmp_path, monkeypatch, _mlflow_database):
    """A home of the test's own, with an empty MLflow database: making one takes seconds."""
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))
    shutil.copy(_mlflow_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def unused_port():
    """A port of this machine where nobody listens."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
