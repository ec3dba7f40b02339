"""Records as MLflow's calls: with `traces.py` the only file that imports mlflow (D41)."""

import json
import logging
import os
import re
import runpy
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mlflow import MlflowClient
from mlflow.db import upgrade
from mlflow.entities import (
    Dataset,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.entities import DatasetInput as MlflowInput
from mlflow.exceptions import MlflowException as Failure
from mlflow.store import db_migrations
from sqlalchemy.exc import SQLAlchemyError

from mypt.errors import MyptError
from mypt.home import home
from mypt.references import CheckpointRef
from mypt.text import markdown, visible
from mypt.training.lineage import read_lineage
from tasks.databases import make_whole, replace_text, revisions_in
from tasks.tracking.destination import (
    NOTE_TAG,
    PREFECT_TAG,
    artifacts_uri,
    experiment_tags,
    forget_sent,
    homes_before,
    is_remote,
    own_database,
    tracking_uri,
)
from tasks.tracking.models import MLMODEL, crown, export_mlflow, register
from tasks.tracking.records import (
    Artifact,
    CheckpointRecord,
    DatasetInput,
    Described,
    Ended,
    MeasuredOn,
    Metrics,
    Opened,
    Params,
    Record,
    Reused,
    Tags,
    Text,
    Traces,
    Upload,
)
from tasks.tracking.traces import Answers

__all__ = ["JOURNAL_TAG", "Failure", "MlflowRun", "Tracker", "is_gone", "is_refusal", "refuses_run"]


JOURNAL_TAG = "mypt.journal"
"""MLflow tag that holds the journal's name; by it a run is found again."""
_METRICS = 1000  # MLflow's limits of one request
_PAIRS = 100
_PARAM_LENGTH = 6000
_TAG_LENGTH = 8000
_INPUT_TAG_LENGTH = 500
_DIGEST_LENGTH = 36
_REFUSED = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "ENDPOINT_NOT_FOUND",
)
_DELETED = ("INVALID_PARAMETER_VALUE", "INVALID_STATE")  # a broken file is a bad request
Item = TypeVar("Item")


def is_gone(error: Failure) -> bool:
    """Return whether MLflow says that it does not have what was written to."""
    return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")


def is_refusal(error: Failure) -> bool:
    """Return whether MLflow answered, and does not take what it was sent."""
    return error.error_code in _REFUSED


def refuses_run(error: Failure) -> bool:
    """Return whether MLflow does not take a run at all: somebody deleted it or its experiment."""
    return error.error_code in _DELETED


def make_database() -> None:
    """Make the database of this home whole, if MLflow is to use it; the journals fill a new one.

    Raises:
        Failure: If that cannot be.
    """
    if (path := own_database()) is None:
        return

    def build(place: Path) -> None:
        upgrade.main([f"sqlite:///{place}"], standalone_mode=False)

    try:
        make_whole(path, revisions_in(Path(db_migrations.__file__).parent), build, forget_sent)
        for old in homes_before(path):
            replace_text(path, f"{old.as_uri()}/", f"{home().as_uri()}/")
            replace_text(path, f"{old}/", f"{home()}/")
    except (SQLAlchemyError, sqlite3.Error, OSError, MyptError) as error:
        raise Failure(f"{path}: cannot be made ({error})".splitlines()[0]) from error


class MlflowRun(NamedTuple):
    """An MLflow run, and the journal that it mirrors."""

    id: str
    experiment: str
    """Id of the experiment that it is in."""
    pipeline: str
    """That experiment's name; the pipeline's checkpoints are registered under it."""
    journal: str


class Tracker:
    """One MLflow. Everything may be said twice, and changes nothing the second time.

    Only explicit run ids are used: MLflow's fluent functions belong to a thread.
    """

    def __init__(self) -> None:
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails is raised, too
        make_database()
        self._client = MlflowClient(tracking_uri(), tracking_uri())
        self._answers = Answers(self._client, tracking_uri())
        self._experiments: dict[str, str] = {}

    def run(self, journal: str, first: Opened) -> MlflowRun:
        """Return the run of a journal, found by its tag or new."""
        experiment = self._experiment(first.experiment)
        # Two homes have journals of one name where both train the same; they began at two times.
        mine = f"tags.`{JOURNAL_TAG}` = '{journal}' and attributes.start_time = {first.time}"
        user = os.environ.get("USER", "unknown")
        source = {"mlflow.source.name": "mypt", "mlflow.source.type": "LOCAL"}
        tags = {JOURNAL_TAG: journal, "mlflow.user": user} | source | first.tags
        found = self._client.search_runs([experiment], mine)
        run = found[0] if found else None
        tags = {key: _cut(value, _TAG_LENGTH) for key, value in tags.items()}
        run = run or self._client.create_run(experiment, first.time, tags, visible(first.title))
        return MlflowRun(run.info.run_id, experiment, first.experiment, journal)

    def apply(self, run: MlflowRun, records: Sequence[Record]) -> None:
        """Say what some records say, metrics first.

        Raises:
            Failure: If MLflow is away or refuses something.
        """
        self._log(run, (record for record in records if isinstance(record, Metrics)))
        for record in records:
            self._apply_one(run, record)

    def called(self, text: str) -> list[Any]:
        """Return MLflow's runs of an id or of a name, whoever wrote them.

        Raises:
            Failure: If MLflow is away.
        """
        quoted = text.replace("'", "")
        for key in ("run_id", "run_name"):
            if found := self._search(f"attributes.{key} = '{quoted}'"):
                return found
        return []

    def follow_prefect(self, server: str) -> None:
        """Let the links to a Prefect of this machine lead to where it is now.

        Args:
            server: Where it is, such as ``http://127.0.0.1:4200``.

        Raises:
            Failure: If MLflow is away.
        """
        here = f"tags.`{PREFECT_TAG}` LIKE 'http://127.0.0.1:%'"
        while moved := self._search(f"{here} AND tags.`{PREFECT_TAG}` != '{server}'"):
            for run in moved:
                was = run.data.tags[PREFECT_TAG]
                links = {
                    key: value.replace(f"{was}/", f"{server}/")
                    for key, value in run.data.tags.items()
                    if f"{was}/" in value
                }
                self._tag(run.info.run_id, {PREFECT_TAG: server} | links)

    def _search(self, wanted: str) -> list[Any]:
        experiments = [found.experiment_id for found in self._client.search_experiments()]
        return list(self._client.search_runs(experiments, wanted))

    def crown(self, digests: Sequence[str]) -> set[str]:
        """Mirror who is champion; return those that the registry does not list.

        Raises:
            Failure: If MLflow is away.
        """
        return crown(self._client, digests)

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            # A server of its own decides where its artifacts lie.
            location = None if is_remote() else artifacts_uri(name)
            known = found.tags if found else {}
            made = found.experiment_id if found else self._client.create_experiment(name, location)
            for key, value in experiment_tags(made).items():
                if key not in known:  # what people changed there stays
                    self._client.set_experiment_tag(made, key, value)
            self._experiments[name] = made
        return self._experiments[name]

    def _apply_one(self, run: MlflowRun, record: Record) -> None:
        match record:
            case Opened():
                # Its tags are those that it was made with: who goes on with a run does not own it.
                self._client.update_run(run.id, status="RUNNING")
            case Params():
                params = [Param(k, _cut(v, _PARAM_LENGTH)) for k, v in record.values.items()]
                for block in _blocks(params, _PAIRS):
                    self._client.log_batch(run.id, params=block)
            case Tags():
                self._tag(run.id, record.values)
            case Reused() if record.page:
                link = f"[{markdown(record.title)}]({record.page})"
                when = datetime.fromtimestamp(record.begun / 1000, UTC)
                self._describe(run.id, f"- {link}, begun {when:%Y-%m-%d %H:%M} UTC by another run")
            case Described():
                self._describe(run.id, "\n".join(record.lines), first=True)
            case DatasetInput():
                self._client.log_inputs(run.id, datasets=[_mlflow_input(record)])
            case CheckpointRecord():
                self._checkpoint(run, record)
            case Upload():
                self._upload(run, record)
            case Traces():
                model = self._model_anywhere(record.checkpoint)
                self._answers.send(run.id, run.experiment, record, model)
            case Artifact() if Path(record.path).is_file():
                self._client.log_artifact(run.id, record.path, record.folder or None)
            case Artifact():
                self._tag(run.id, {f"mypt.gone.{Path(record.path).name}": record.path})
            case Text():
                self._client.log_text(run.id, record.text, record.name)
            case Ended():
                self._client.set_terminated(run.id, record.status, record.time)

    def _log(self, run: MlflowRun, records: Iterable[Metrics], model: str | None = None) -> None:
        metrics = []
        for record in records:
            about = self._about(run, record.subject, model)
            metrics += [
                Metric(key, value, record.time, record.step, **about)
                for key, value in record.values.items()
            ]
        for block in _blocks(metrics, _METRICS):
            self._client.log_batch(run.id, metrics=block)

    def _about(
        self, run: MlflowRun, subject: MeasuredOn | None, model: str | None
    ) -> dict[str, str]:
        if subject is None or not (model := model or self._model(run, subject.checkpoint)):
            return {}
        digest = subject.digest[:_DIGEST_LENGTH]
        return {"model_id": model, "dataset_name": subject.dataset, "dataset_digest": digest}

    def _model(self, run: MlflowRun, digest: str, source: str | None = None) -> str | None:
        """Return the id of the logged model of a checkpoint, that of run ``source`` if given."""
        found = self._client.search_logged_models([run.experiment], f"tags.digest = '{digest}'")
        models = [model for model in found if source in (None, model.source_run_id)]
        return str(models[0].model_id) if models else None

    def _model_anywhere(self, digest: str) -> str | None:
        """Return the id of a logged model of a checkpoint, whatever trained it."""
        all_of_them = [found.experiment_id for found in self._client.search_experiments()]
        found = self._client.search_logged_models(all_of_them, f"tags.digest = '{digest}'")
        return str(found[0].model_id) if found else None

    def _checkpoint(self, run: MlflowRun, record: CheckpointRecord) -> None:
        """Make a checkpoint a logged model: its weights stay where they are."""
        model = self._model(run, record.digest, source=run.id) or self._new_model(run, record)
        outputs = self._client.get_run(run.id).outputs
        if model not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
            self._client.log_outputs(run.id, [LoggedModelOutput(model, record.step)])
        if record.parent and (base := self._model(run, record.parent)):
            self._client.log_inputs(run.id, models=[LoggedModelInput(base)])
        if record.measured:
            self._log(run, [record.measured], model)
        if Path(record.path).is_dir():  # by now it may be pruned
            ref = CheckpointRef(path=record.path, digest=record.digest, step=record.step)
            self._fill(model, ref, record.name, weights=False)
            register(self._client, run.pipeline, run.id, record, model)

    def _new_model(self, run: MlflowRun, record: CheckpointRecord) -> str:
        facts = {"digest": record.digest, "weights": record.weights, "path": record.path}
        model = self._client.create_logged_model(
            run.experiment,
            re.sub(r"[^A-Za-z0-9_-]+", "-", record.name),
            run.id,
            facts | {"step": str(record.step)},
            {key: _cut(value, _TAG_LENGTH) for key, value in record.params.items()},
            "checkpoint",
        )
        self._client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def _upload(self, run: MlflowRun, record: Upload) -> None:
        model, name = self._model(run, record.checkpoint.digest), record.name
        if model is not None and Path(record.checkpoint.path).is_dir():
            self._fill(model, record.checkpoint, name, weights=True)
        else:
            self._tag(run.id, {f"mypt.gone.{name}": record.checkpoint.path})

    def _fill(self, model: str, ref: CheckpointRef, name: str, *, weights: bool) -> None:
        """Put into a logged model's folder what MLflow loads, unless it is there."""
        step = Path(ref.path)
        files = read_lineage(step).files if weights else ()
        needed = {MLMODEL, *(f"{step.name}/{file.name}" for file in files)}
        places = (None, step.name) if weights else (None,)
        listed = [self._client.list_logged_model_artifacts(model, place) for place in places]
        if needed <= {found.path for page in listed for found in page}:
            return
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "model"
            export_mlflow(step, out, ref, name, weights=weights)
            self._client.log_model_artifacts(model, str(out))

    def _describe(self, run_id: str, text: str, *, first: bool = False) -> None:
        """Add Markdown to a run's description, once, before or behind what is there."""
        before = self._client.get_run(run_id).data.tags.get(NOTE_TAG, "")
        if text not in before:
            parts = (text, before) if first else (before, text)
            self._tag(run_id, {NOTE_TAG: "\n\n".join(part for part in parts if part)})

    def _tag(self, run_id: str, values: dict[str, str]) -> None:
        tags = [RunTag(key, _cut(value, _TAG_LENGTH)) for key, value in values.items()]
        for block in _blocks(tags, _PAIRS):
            self._client.log_batch(run_id, tags=block)


def _mlflow_input(record: DatasetInput) -> MlflowInput:
    columns = [
        {"name": name, "type": kind, "required": True} for name, kind in record.columns.items()
    ]
    dataset = Dataset(
        name=record.name,
        digest=record.digest[:_DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": record.path}),
        schema=json.dumps({"mlflow_colspec": columns}) if columns else None,
        profile=json.dumps(record.profile) if record.profile else None,
    )
    tags = {"mlflow.data.context": record.context, "digest": record.digest, **record.tags}
    return MlflowInput(dataset, [InputTag(k, _cut(v, _INPUT_TAG_LENGTH)) for k, v in tags.items()])


def _cut(value: str, length: int) -> str:
    """Return ``value`` fit to be shown, or as much as MLflow takes and how long it was."""
    value = visible(value)
    note = f" [cut: {len(value)} characters in all]"
    return value if len(value) <= length else value[: length - len(note)] + note


def _blocks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


if __name__ == "__main__":  # MLflow's own command, which would make the database in its place
    make_database()
    runpy.run_module("mlflow", run_name="__main__", alter_sys=True)
