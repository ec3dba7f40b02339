"""Runs as they are compared: what their journals say, or what MLflow kept of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mypt.errors import ConfigError, MyptError
from mypt.inspection.diff import DatasetDiff
from mypt.inspection.diff import diff as diff_datasets
from mypt.parsing import Frozen
from mypt.provenance.comparison import Comparison
from mypt.provenance.search import Search
from tasks.tracking.destination import GATE_TAG, mlflow_is_there, read_sent, shown_uri
from tasks.tracking.records import (
    DatasetInput,
    Metrics,
    Opened,
    Params,
    Tags,
    names,
    read,
)

_SHOWN = 5
_MACHINE = "system/"


class StoredRun(Frozen):
    """A run of a pipeline or of a stage."""

    id: str
    """MLflow's id; the journal's name where MLflow has not got it yet."""
    title: str
    """What people call it."""
    params: dict[str, str]
    """What was asked for, and what the gate decided."""
    metrics: dict[str, float]
    """The last value of each."""
    datasets: tuple[DatasetInput, ...]

    def __str__(self) -> str:
        return f"{self.title} {self.id[:8]}"


def find_run(text: str) -> StoredRun:
    """Return the run that ``text`` means: an id, its beginning, a journal, or what it is called.

    Journals on this machine are asked first; MLflow only if none of them is meant.

    Raises:
        ConfigError: If there is none, or several.
        MyptError: If MLflow has to be asked and is away.
    """
    found = list(_journals(text)) or list(_in_mlflow(text))
    if not found:
        raise ConfigError(
            f"{text}: no dataset, no model, and no run by that id or name; expected one of them;"
            f" MLflow at {shown_uri()} lists the runs"
        )
    if len(found) > 1:
        listed = ", ".join(f"{run.id[:12]} ({_told_apart(run)})" for run in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ConfigError(f"{text}: {len(found)} runs are called so; name one: {listed}{more}")
    return found[0]


def compare_runs(a: StoredRun, b: StoredRun) -> Comparison:
    """Compare two runs: what was asked for, what was read, what came of it."""
    dataset, note = _datasets(a, b)
    return Comparison(
        a=str(a),
        b=str(b),
        settings={
            key: (a.params.get(key, ""), b.params.get(key, ""))
            for key in dict.fromkeys((*a.params, *b.params))
            if a.params.get(key) != b.params.get(key)
        },
        dataset=dataset,
        dataset_note=note,
        metrics={
            key: (a.metrics.get(key), b.metrics.get(key))
            for key in dict.fromkeys((*a.metrics, *b.metrics))
            if not key.startswith(_MACHINE)
        },
    )


def _journals(text: str) -> Iterator[StoredRun]:
    """Yield the runs of the journals that ``text`` may mean, the newest first."""
    by_id, by_title = [], []
    for name in names():
        first = next(read(name), None)
        if first is None or not isinstance(first.record, Opened):
            continue
        if name == text or read_sent(name).is_called(text):
            by_id.append((first.record.time, name))
        if first.record.title == text:
            by_title.append((first.record.time, name))
    for _, name in sorted(by_id or by_title, reverse=True):
        yield _read_run(name)


def _read_run(journal: str) -> StoredRun:
    title, datasets = journal, {}
    params: dict[str, str] = {}
    metrics: dict[str, float] = {}
    for line in read(journal):
        match line.record:
            case Opened():
                title = line.record.title
            case Params():
                params |= line.record.values
            case Tags():
                params |= _decided(line.record.values)
            case Metrics():
                metrics |= line.record.values
            case DatasetInput():
                datasets[line.record.name] = line.record
    return StoredRun(
        id=read_sent(journal).run_id or journal,
        title=title,
        params=params,
        metrics=metrics,
        datasets=tuple(datasets.values()),
    )


def _in_mlflow(text: str) -> Iterator[StoredRun]:
    """Yield the runs that MLflow alone knows: of another machine, or of a home that is gone."""
    if not mlflow_is_there():
        return
    from tasks.tracking.client import Failure, Tracker

    try:
        found = Tracker().called(text)
    except Failure as error:
        raise MyptError(f"MLflow at {shown_uri()} does not answer ({error}); try again") from None
    for run in found:
        yield StoredRun(
            id=run.info.run_id,
            title=run.info.run_name,
            params=run.data.params | _decided(run.data.tags),
            metrics=run.data.metrics,
            datasets=tuple(map(_read_input, run.inputs.dataset_inputs)),
        )


def _read_input(found: Any) -> DatasetInput:
    tags = {tag.key: tag.value for tag in found.tags}
    return DatasetInput(
        name=found.dataset.name,
        digest=tags.get("digest", found.dataset.digest),
        path=str(json.loads(found.dataset.source).get("uri", "")),
        context=tags.get("mlflow.data.context", ""),
    )


def _decided(tags: dict[str, str]) -> dict[str, str]:
    return {GATE_TAG: tags[GATE_TAG]} if GATE_TAG in tags else {}


def _told_apart(run: StoredRun) -> str:
    return run.params.get("policy") or run.params.get("name") or run.title


def _datasets(a: StoredRun, b: StoredRun) -> tuple[DatasetDiff | None, str]:
    """Compare what the runs were trained on; of two folders that are there, row by row."""
    one, other = _trained_on(a), _trained_on(b)
    if one is None or other is None:
        return None, f"{a if one is None else b} read no dataset"
    if one.digest == other.digest:
        return None, "both read the same dataset"
    places = []
    for record in (one, other):
        found = Search(Path(record.path)).dataset(record.path, record.digest)
        if found is None:
            return None, f"the dataset {record.path} is not there any more"
        places.append(found[0])
    return diff_datasets(*places), ""


def _trained_on(run: StoredRun) -> DatasetInput | None:
    by_context = {record.context: record for record in run.datasets}
    return by_context.get("train") or next(iter(run.datasets), None)
