"""What Prefect and MLflow must find in the environment before they are imported (D40)."""

import os
import sys
import urllib.error
import urllib.request

from mypt.errors import MyptError
from mypt.home import home

PREFECT_PORT = 4200
_PROBE_SECONDS = 1.0

_QUIET = {
    # No telemetry, no look-up of any other host.
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # The terminal belongs to the progress display; Prefect's own lines are in its database.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_CLI_WRAP_LINES": "false",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
_PATIENCE = {
    # A first start migrates a database: 20 seconds, Prefect's limit, are short on a busy machine.
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # Prefect gives a database that is being written to 10 seconds; a busy disk takes longer.
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
    # A server that is away must not hold anybody: MLflow's own limits add up to four minutes.
    "PREFECT_CLIENT_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


def prepare_environment() -> None:
    """Set what is not set, and make the folder that Prefect keeps its database in.

    Everything of both lies under ``MYPT_HOME``. A Prefect API that is named but does not
    answer is given up loudly, since a flow run cannot begin without one: this process then
    starts a temporary one over the same files.
    """
    folder = home() / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    places = {
        "MYPT_HOME": str(home()),
        "PREFECT_HOME": str(folder),
        "PREFECT_LOCAL_STORAGE_PATH": str(folder / "storage"),
    }
    for name, value in (places | _QUIET | _PATIENCE).items():
        os.environ.setdefault(name, value)
    api = os.environ.get("PREFECT_API_URL")
    if api and not answers(f"{api.rstrip('/')}/health"):
        sys.stderr.write(
            f"mypt: Prefect at PREFECT_API_URL={api} does not answer; this run goes on with a"
            " temporary API in this process and will not show there\n"
        )
        del os.environ["PREFECT_API_URL"]


def find_prefect() -> None:
    """Set ``PREFECT_API_URL``, where it is not set, to the server that ``mypt up`` starts.

    Raises:
        MyptError: If it does not answer; what is served can be run nowhere else.
    """
    api = os.environ.setdefault("PREFECT_API_URL", f"http://127.0.0.1:{PREFECT_PORT}/api")
    if not answers(f"{api.rstrip('/')}/health"):
        raise MyptError(
            f"Prefect at {api} does not answer; start it with 'mypt up', or set PREFECT_API_URL to"
            " where it is"
        )


def answers(url: str, seconds: float = _PROBE_SECONDS) -> bool:
    """Return whether anything speaks HTTP at ``url``, whatever it says, within ``seconds``."""
    try:
        with urllib.request.urlopen(url, timeout=seconds):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False
