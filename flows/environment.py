"""What Prefect and MLflow must find in the environment before they are imported (D40)."""

import os
import sys
import tomllib
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

from mypt.errors import ConfigError, MyptError
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
_CLOSED = {
    # Prefect's own temporary API answers every web page; `mypt run` starts one that does not.
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
}
_PATIENCE = {
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
    found = find_spec("prefect")
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    places = {
        "MYPT_HOME": str(home()),
        "PREFECT_HOME": str(folder),
        "PREFECT_LOCAL_STORAGE_PATH": str(folder / "storage"),
        # The home may have come with the data; what is in Prefect's own package has not.
        "PREFECT_PROFILES_PATH": str(package / "settings" / "profiles.toml"),
        "PREFECT_LOGGING_SETTINGS_PATH": str(package / "logging" / "logging.yml"),
    }
    for name, value in (places | _QUIET | _CLOSED | _PATIENCE).items():
        os.environ.setdefault(name, value)
    api = os.environ.get("PREFECT_API_URL")
    if api and not answers(f"{api.rstrip('/')}/health"):
        sys.stderr.write(
            f"mypt: Prefect at PREFECT_API_URL={api} does not answer; this run goes on with a"
            " temporary API in this process and will not show there\n"
        )
        del os.environ["PREFECT_API_URL"]


def check_folder() -> None:
    """Refuse a working folder that would set Prefect: its log's config may name code to run.

    Raises:
        ConfigError: For a ``prefect.toml``, or a ``pyproject.toml`` or ``.env`` that names Prefect.
    """
    for path in (Path("prefect.toml"), Path("pyproject.toml"), Path(".env")):
        if path.is_file() and (path.stem == "prefect" or _names_prefect(path)):
            raise ConfigError(
                f"{path.absolute()} would set Prefect for this command, up to code that it runs;"
                " expected a folder without one; start mypt elsewhere, or set variables PREFECT_*"
            )


def _names_prefect(path: Path) -> bool:
    """Whether a file sets anything of Prefect's; a word too many is not held against it."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".toml":
        try:
            return "prefect" in tomllib.loads(text).get("tool", {})
        except tomllib.TOMLDecodeError:
            return True
    from dotenv import dotenv_values  # as Prefect reads it

    return any(key.lower().startswith("prefect") for key in dotenv_values(path))


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
