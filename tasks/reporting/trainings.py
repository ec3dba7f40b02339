"""What a training tells its journal: figures, checkpoints, samples, what changed on resume."""

import math
import re
import time
from pathlib import Path

import psutil
import torch

from mypt.errors import CheckpointError
from mypt.home import find_checkpoint
from mypt.provenance.lineage_page import render_page
from mypt.provenance.trace import trace
from mypt.references import CheckpointRef
from mypt.training.checkpoints.folder import steps
from mypt.training.circumstances import changes_on_resume
from mypt.training.events import (
    CheckpointSaved,
    EvalReport,
    Event,
    Finished,
    Sample,
    Started,
    StepReport,
)
from mypt.training.lineage import LINEAGE, read_lineage
from mypt.training.plan import RunPlan
from tasks.assets import asset, dataset_asset, materialized, model_asset
from tasks.progress import groups_of
from tasks.reporting import artifacts
from tasks.reporting.artifacts import training_plot
from tasks.reporting.inputs import called, dataset_input, measured_on, plan_params
from tasks.stages import announce
from tasks.tracking.journal import Journal
from tasks.tracking.records import (
    Artifact,
    CheckpointRecord,
    Described,
    Metrics,
    Params,
    Tags,
    Text,
    flatten,
    read,
)

MODEL_MADE = "mypt.model.made"
"""Prefect event of a training that came to its end; a model that is found again makes none."""
_INTERVAL = 10.0
"""Seconds between two looks; one takes less than a millisecond."""
_MEGABYTE = 1e6
_SPLITS = ("train", "val")
_NO_NAME = r"[^\w.\- :]"
"""What MLflow takes in no name of a metric; before a slash it sees a group of charts."""
_ALIASES = {"latest": "newest", "best": "best"}
"""Pointers in a model folder, and what MLflow calls them: it keeps "latest" to itself."""


class Load:
    """Looks at the machine now and then; MLflow's own way asks its server from a thread."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._looked = float("-inf")
        psutil.cpu_percent()  # the first answer covers no time

    def look(self) -> dict[str, float]:
        """Return the figures, under MLflow's names; none if the last look was a moment ago."""
        now = time.monotonic()
        if now - self._looked < _INTERVAL:
            return {}
        self._looked = now
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_percentage": psutil.virtual_memory().percent,
            "process_memory_megabytes": self._process.memory_info().rss / _MEGABYTE,
        }
        used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        for index in range(torch.cuda.device_count() if used else 0):
            free, total = torch.cuda.mem_get_info(index)
            values[f"gpu_{index}_memory_usage_megabytes"] = (total - free) / _MEGABYTE
            values[f"gpu_{index}_memory_usage_percentage"] = 100 * (1 - free / total)
        return {f"system/{key}": value for key, value in values.items()}


class TrainingReport:
    """Writes the events of one training into its journal; files only, and never far behind."""

    def __init__(self, run: Journal, plan: RunPlan) -> None:
        self._run, self._plan, self._load = run, plan, Load()
        self._params = flatten(plan.preset) | plan_params(plan)
        self._measured: dict[int, Metrics] = {}
        self._said: list[str] = []
        self._groups: dict[str, dict[str, tuple[float, float]]] = {}
        run.write(Params(values=self._params))
        for context in ("train", "validation"):
            run.write(dataset_input(plan.dataset, context))
        data, began = plan.dataset, plan.parent
        named = f"{began.model_name} step {began.step}" if began else "random weights"
        facts = {
            "learned": plan.policy,
            "data": called(data.path, data.digest),
            "parent": called(named, began.digest) if began else named,
        }
        pages = (("curves", run.name, "training.svg"), ("lineage", run.name, "lineage.html"))
        run.write(Described.of(facts, *pages))

    def take(self, event: Event) -> None:
        """Write down what an event says."""
        match event:
            case Started() if event.step:
                self._resumed(event.step)
            case StepReport():
                self._run.write(Metrics(step=event.step, values=_figures(event)))
                if load := self._load.look():
                    self._run.write(Metrics(step=event.step, values=load))
                self._said.clear()
            case EvalReport():
                values = {"train_loss": event.train_loss, "val_loss": event.val_loss}
                # All are kept: a checkpoint may be reported after the next evaluation.
                self._measured[event.step] = Metrics(step=event.step, values=values)
                groups = groups_of(event)
                values = values | {
                    f"{split}_{by}/{re.sub(_NO_NAME, '-', name)}": loss
                    for by, members in groups.items()
                    for name, losses in members.items()
                    for split, loss in zip(_SPLITS, losses, strict=True)
                }
                self._groups = groups or self._groups
                self._run.write(self._measured[event.step].model_copy(update={"values": values}))
            case Sample():
                self._said.append(f"{event.prompt}\n-> {event.answer}\n")
                name = f"samples/step_{event.step:06d}.txt"
                self._run.write(Text(name=name, text="\n".join(self._said)))
            case CheckpointSaved():
                self._checkpoint(event.checkpoint)
            case Finished():
                self._finished(event.checkpoint)

    def _resumed(self, step: int) -> None:
        before = read_lineage(find_checkpoint(self._plan.model_name))
        changed = "; ".join(changes_on_resume(before, self._plan.preset)) or "nothing changed"
        self._run.write(Tags(values={f"resumed.step_{step:06d}": changed}))

    def _checkpoint(self, saved: CheckpointRef) -> None:
        folder = Path(saved.path)
        try:
            lineage = read_lineage(folder)
        except CheckpointError:
            if folder.is_dir():
                raise
            return  # pruned meanwhile by the checkpoint after it
        prefix = "base-" if lineage.dataset.kind == "text" else ""
        self._run.write(
            CheckpointRecord(
                name=f"{lineage.model_name} step {saved.step}",
                step=saved.step,
                path=saved.path,
                digest=saved.digest,
                weights=lineage.weights,
                parent=lineage.parent.digest if lineage.parent else None,
                params=self._params,
                aliases=tuple(
                    f"{prefix}{alias}"
                    for pointer, alias in _ALIASES.items()
                    if _names(folder.parent / pointer, folder)
                ),
                kept=steps(folder.parent),
                measured=self._val_loss(saved),
            )
        )

    def _val_loss(self, saved: CheckpointRef) -> Metrics | None:
        """Return the validation loss at a checkpoint's step; time and step as it was written."""
        found = self._measured.get(saved.step)
        if found is None or not math.isfinite(loss := found.values["val_loss"]):
            return None
        subject = measured_on(saved, self._plan.dataset)
        return found.model_copy(update={"values": {"val_loss": loss}, "subject": subject})

    def _finished(self, checkpoint: CheckpointRef) -> None:
        """Hand over the checkpoint but for its weights, its whole chain, and the curves."""
        folder, name = Path(checkpoint.path), self._plan.model_name
        lineage = read_lineage(folder)
        for file in (*(record.name for record in lineage.files), LINEAGE):
            if not file.endswith(".safetensors"):  # uploaded where a pipeline asks for it
                self._run.write(Artifact(path=str(folder / file), folder="checkpoint"))
        self._run.write(Tags(values={"checkpoint": checkpoint.path, "weights": lineage.weights}))
        seen = {"tokens_read": float(lineage.tokens), "tokens_learned": float(lineage.supervised)}
        self._run.write(Metrics(step=lineage.step, values=seen))
        self._run.write(Text(name="lineage.html", text=render_page(trace(folder))))
        self._run.write(Text(name="training.svg", text=training_plot(self._run.name, name)))
        curves: dict[str, list[tuple[int, float]]] = {"loss": [], "val_loss": []}
        for line in read(self._run.name):
            if isinstance(line.record, Metrics):
                for label in curves.keys() & line.record.values.keys():
                    curves[label].append((line.record.step, line.record.values[label]))
        artifacts.loss_curves(name, curves, self._groups)
        facts = {"digest": checkpoint.digest, "path": checkpoint.path}
        parent, data = lineage.parent, self._plan.dataset
        made_of = {"dataset": data.digest, "parent": parent.digest if parent else None}
        announce(MODEL_MADE, name, **facts, **made_of)
        upstream = [dataset_asset(data), *([asset("models", parent.model_name)] if parent else [])]
        materialized(model_asset(checkpoint), upstream, step=checkpoint.step, **facts)


def _figures(event: StepReport) -> dict[str, float]:
    return {
        "loss": event.loss,
        "learning_rate": event.learning_rate,
        "grad_norm": event.grad_norm,
        "supervised_tokens": event.supervised,
        "batch_density": event.supervised / event.tokens,
        "tokens_per_second": event.tokens / event.seconds,
        "supervised_tokens_per_second": event.supervised / event.seconds,
    }


def _names(pointer: Path, folder: Path) -> bool:
    return pointer.is_file() and pointer.read_text().strip() == folder.name
