"""Where MLflow is, how far each journal has got there, and the view that ranks its runs."""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode, urlsplit
from urllib.request import url2pathname

from pydantic import ValidationError

from mypt import files
from mypt.home import home
from mypt.parsing import Frozen
from tasks.tracking.records import ID_DIGITS, journals_dir

MLFLOW_UI = "http://127.0.0.1:5000"
"""Where ``mypt up`` shows what runs without a server left."""
MLFLOW_PATH = "/mlflow"
"""Of the Prefect server of ``mypt up``: leads to where its MLflow is now."""
PREFECT_TAG = "prefect.server"
"""Tag of a run that says where its links to Prefect lead, so that they can follow a move."""
KIND_TAG = "mypt.kind"
"""Tag of a run by which the view finds those of whole pipelines."""
PIPELINE = "pipeline"
SWEEP = "sweep"
REUSED = "reused"
"""Kind of a pipeline's run that found everything made, and the tag that says so; not ranked."""
NOTE_TAG = "mlflow.note.content"
"""MLflow tag of a run's or an experiment's description, the one place where a link works."""
GATE_TAG = "gate"
"""Tag of a run that says whether its model became the champion."""
RANKED_BY = "exact_match_overall"
"""Losses over different masks are means over different tokens; answers are the same ones."""
_VIEW = "pipelines"
_NAME, _WIDTH = "attributes.`Run Name`", 300
"""MLflow's own width of names, 190, cuts off by what runs differ."""
_COLUMNS = {
    "metrics": (RANKED_BY, "val_loss", "mask_density"),
    "params": ("policy",),
    "tags": (GATE_TAG,),
}
"""Few enough that the last is on a screen 1600 wide; MLflow puts tags at the right."""


class Sent(Frozen):
    """How far a journal was sent, and to where."""

    target: str
    """Digest of the tracking URI, which may hold a password; of the home's own database, which
    moves with it, always the same."""
    run_id: str | None = None
    """The MLflow run, once there is one."""
    experiment_id: str | None = None
    """The experiment that it is in."""
    offset: int = 0
    """Bytes of the journal that MLflow has."""
    ended: bool = False
    """Whether the last record that was sent says that the run is over."""
    forgotten: bool = False
    """Whether it is sent no more, since MLflow does not take it and somebody let it go."""

    def is_called(self, text: str) -> bool:
        """Return whether ``text`` is the run's id, or enough of its beginning."""
        return len(text) >= ID_DIGITS and (self.run_id or "").startswith(text)


def tracking_uri() -> str:
    """Return where MLflow keeps its runs: ``MLFLOW_TRACKING_URI``, else a file under the home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def own_database() -> Path | None:
    """Return the file under the home where MLflow keeps its runs, None if that is elsewhere."""
    path = home() / "mlflow.db"
    return path if tracking_uri() == f"sqlite:///{path}" else None


def forget_sent() -> None:
    """Let every journal be sent again, to a database that holds nothing."""
    for path in journals_dir().glob("*.sent.json"):
        path.unlink()


def is_remote() -> bool:
    """Return whether MLflow is reached over a network, so that it can be away."""
    return tracking_uri().startswith(("http://", "https://"))


def mlflow_is_there() -> bool:
    """Return whether there may be an MLflow to ask; a file of it is made when a run needs it."""
    path = tracking_uri().partition("sqlite:///")[2]
    return not path or Path(path).exists()


def shown_uri() -> str:
    """Return the tracking URI as people may see it."""
    return without_password(tracking_uri())


def ui_page(server: str, route: str = "/experiments", **query: str) -> str:
    """Return a page of MLflow's UI, in its mode for training.

    MLflow opens in its mode for agents, where checkpoints are called agent versions; it reads
    the mode behind the hash only.

    Args:
        server: Where MLflow answers, such as ``http://127.0.0.1:5000``; empty for a link that a
            page of MLflow itself shows.
        route: Which page.
        query: What else the page is told.
    """
    return f"{server}/#{route}?{urlencode({'workflowType': 'machine_learning'} | query)}"


def mlflow_url(name: str, page: str = "") -> str | None:
    """Return what leads from Prefect to a journal's run in MLflow; None so far.

    Args:
        name: The journal.
        page: A part of the run's page, such as ``artifacts/preview.html``; empty for the whole.
    """
    sent = read_sent(name)
    if sent.run_id is None:
        return None
    page = f"/experiments/{sent.experiment_id}/runs/{sent.run_id}/{page}".rstrip("/")
    return ui_page(shown_uri(), page) if is_remote() else MLFLOW_PATH + page


def run_page(server: str, experiment: str, run: str) -> str:
    """Return the page of an MLflow run."""
    return ui_page(server, f"/experiments/{experiment}/runs/{run}")


def ui_server() -> str:
    """Return where MLflow shows its pages, or will once ``mypt up`` runs."""
    return shown_uri() if is_remote() else os.environ.get("MYPT_MLFLOW_UI", MLFLOW_UI)


def ui_answers() -> bool:
    """Return whether a server shows MLflow's pages as far as is known here."""
    return is_remote() or "MYPT_MLFLOW_UI" in os.environ


def without_password(text: str) -> str:
    """Return ``text`` without the user and password of the tracking URI."""
    user, at, _ = urlsplit(tracking_uri()).netloc.rpartition("@")
    return text.replace(user + at, "") if at else text


def artifacts_uri(experiment: str) -> str:
    """Return where an experiment's artifacts lie when no server decides it."""
    return (home() / "artifacts" / files.digest_bytes(experiment.encode())[:12]).as_uri()


def homes_before(database: Path) -> set[Path]:
    """Return where this home was when the artifacts of MLflow's experiments found their places."""
    with closing(sqlite3.connect(database)) as opened:
        known = opened.execute("SELECT name, artifact_location FROM experiments").fetchall()
    found = set()
    for name, location in known:
        folder = Path(url2pathname(urlsplit(location or "").path))
        if folder.parts[-2:] == Path(artifacts_uri(name)).parts[-2:]:
            found.add(folder.parents[1])
    return found - {home()}


def read_sent(name: str) -> Sent:
    """Return how far a journal was sent to the MLflow of now.

    A state that is missing, damaged or of another MLflow counts as nothing sent: sending
    again changes nothing.
    """
    own = own_database()
    target = files.digest_bytes((own.name if own else tracking_uri()).encode())
    try:
        state = Sent.model_validate_json(_path(name).read_bytes())
    except (FileNotFoundError, ValidationError):
        return Sent(target=target)
    return state if state.target == target else Sent(target=target)


def write_sent(name: str, state: Sent) -> None:
    """Keep how far a journal was sent."""
    files.write_json(_path(name), state.model_dump(mode="json"))


def _path(name: str) -> Path:
    return journals_dir() / f"{name}.sent.json"


def overview_url(server: str, experiment: str) -> str:
    """Return the page that lists an experiment's pipelines, the best first."""
    return ui_page(server, f"/experiments/{experiment}/runs", viewStateShareKey=_VIEW)


def experiment_tags(experiment: str) -> dict[str, str]:
    """Return the tags of an experiment that hold the view, and a link to it on every page."""
    view = {
        "searchFilter": f"tags.`{KIND_TAG}` = '{PIPELINE}'",
        "orderByKey": f"metrics.`{RANKED_BY}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [
            f"{kind}.`{name}`" for kind, names in _COLUMNS.items() for name in names
        ],
        "columnOrder": [_NAME],  # the others follow as they are
        "columnWidths": {_NAME: _WIDTH},
    }
    return {
        f"mlflow.sharedViewState.{_VIEW}": json.dumps(view),
        NOTE_TAG: f"[Pipelines, the best first]({overview_url('', experiment)})",
    }
