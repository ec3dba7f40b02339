"""Two checkpoints side by side: what was asked for, what was read, what came of it."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from mypt.config import Preset
from mypt.errors import DataError
from mypt.inspection.diff import DatasetDiff
from mypt.inspection.diff import diff as diff_datasets
from mypt.parsing import Frozen
from mypt.provenance.search import Search
from mypt.training.checkpoints.state import read_history, read_state
from mypt.training.lineage import Lineage, read_lineage

Pair = tuple[str, str]
_MODELS = ("base", "base_plain", "sft", "from_scratch")
_SCORES = ("val_loss", "perplexity", "stop_recall")


class Comparison(Frozen):
    """What differs between two checkpoints or two runs, and the figures of both."""

    a: str
    """Model and step, or what the run is called."""
    b: str
    settings: dict[str, Pair] = Field(default_factory=dict)
    """Config keys that differ, then whatever else decided the weights: in a and in b."""
    dataset: DatasetDiff | None = None
    """None if they were trained on the same, or if one is not there any more."""
    dataset_note: str = ""
    """Why the datasets were not compared."""
    metrics: dict[str, tuple[float | None, float | None]] = Field(default_factory=dict)
    """Figures of a and of b; None where one was never measured."""


def compare_checkpoints(a: Path, b: Path) -> Comparison:
    """Compare two step folders; no model is run.

    Raises:
        CheckpointError: If a lineage cannot be read.
        DataError: If a dataset or an evaluation that is there is damaged.
    """
    one, other = read_lineage(a), read_lineage(b)
    dataset, note = _datasets(a, one, b, other)
    figures = _figures(a, one), _figures(b, other)
    return Comparison(
        a=f"{one.model_name} step {one.step}",
        b=f"{other.model_name} step {other.step}",
        settings=_differing(_settings(one), _settings(other)),
        dataset=dataset,
        dataset_note=note,
        metrics={
            name: (figures[0].get(name), figures[1].get(name))
            for name in dict.fromkeys((*figures[0], *figures[1]))
        },
    )


def _settings(lineage: Lineage) -> dict[str, str]:
    """Return everything that decided the weights, as text."""
    data, parent, code = lineage.dataset, lineage.parent, lineage.code
    values: dict[str, Any] = {k: getattr(lineage.config, k) for k in Preset.model_fields}
    del values["name"]  # and nothing else, though a dump may leave out what is at its default
    values |= {
        "dataset": data.digest[:12],
        "policy": lineage.policy,
        "tokenizer": f"{data.tokenizer_name} {data.tokenizer[:12]}",
        "template": data.template[:12],
        "base model": f"{parent.model_name} step {parent.step} {parent.weights[:12]}"
        if parent
        else "none",
        "code": f"mypt {code.version} {code.digest[:12]}",
        "torch": code.libraries.get("torch", "unknown"),
        "machine": " ".join(map(str, lineage.compute.model_dump().values())),
    }
    return {key: str(value) for key, value in values.items()}


def _differing(a: dict[str, str], b: dict[str, str]) -> dict[str, Pair]:
    return {key: (a[key], b[key]) for key in a if a[key] != b[key]}


def _datasets(a: Path, one: Lineage, b: Path, other: Lineage) -> tuple[DatasetDiff | None, str]:
    if one.dataset.digest == other.dataset.digest:
        return None, "both were trained on the same dataset"
    found = [
        Search(folder.absolute()).dataset(lineage.dataset.path, lineage.dataset.digest)
        for folder, lineage in ((a, one), (b, other))
    ]
    for place, lineage in zip(found, (one, other), strict=True):
        if place is None:
            return None, f"the dataset {lineage.dataset.path} is not there any more"
    before, after = (place[0] for place in found if place)
    return diff_datasets(before, after), ""


def _figures(folder: Path, lineage: Lineage) -> dict[str, float]:
    state = read_state(folder)
    losses = [loss for loss in read_history(folder, lineage.step).loss if not math.isnan(loss)]
    epoch = lineage.epoch
    values: dict[str, float | None] = {
        "steps": lineage.step,
        "tokens read": lineage.tokens,
        "tokens learned": lineage.supervised,
        "epochs": lineage.step / epoch.steps if epoch and epoch.steps else None,
        "mask density": lineage.density,
        "loss of the last step": losses[-1] if losses else None,
        "train loss": state.train_loss,
        "val loss": state.val_loss,
        "best val loss": state.best_val_loss,
        **_scores(folder, lineage.digest),
    }
    return {key: value for key, value in values.items() if value is not None}


def _scores(folder: Path, digest: str) -> dict[str, float]:
    """Return what the newest evaluation of a checkpoint measured, nothing if there is none."""
    found: dict[str, float] = {}
    for path in _evaluations(folder):
        try:
            report = json.loads(path.read_bytes())
            for model in filter(None, map(report.get, _MODELS)):
                if model["checkpoint"]["digest"] == digest:
                    found |= _measured(model)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            raise DataError(
                f"{path}: not what mypt writes; evaluate again, or move the file away"
            ) from None
    return found


def _measured(model: dict[str, Any]) -> dict[str, float]:
    """Return the figures of one model of an evaluation, under the form it was asked in."""
    values = {name.replace("_", " "): model[name] for name in _SCORES}
    values |= {f"exact match {task}": share for task, share in model["exact_match"].items()}
    form = model["form"]
    return {f"{form}: {key}": value for key, value in values.items() if value is not None}


def _evaluations(folder: Path) -> Iterator[Path]:
    """Yield the evaluations that lie around a checkpoint, by name: a clock decides nothing."""
    roots = Search(folder.absolute()).roots
    paths = {path for root in roots for path in root.glob("evaluations/*/evaluation.json")}
    yield from sorted(paths)
