"""What a journal's lines say: one record a line, read without MLflow (D41)."""

import time
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from mypt.errors import MyptError
from mypt.home import home
from mypt.parsing import Frozen
from mypt.references import CheckpointRef, HomePath
from mypt.text import markdown, visible, visible_json

Status = Literal["FINISHED", "FAILED", "KILLED"]

ID_DIGITS = 6
"""Least digits by which a run's id may be given."""


def now() -> int:
    """Return the time as journals and MLflow count it: milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Opened(Frozen):
    """A run begins, or goes on where it stopped; always a journal's first line."""

    kind: Literal["opened"] = "opened"
    time: int = Field(default_factory=now)
    experiment: str
    title: str
    """What people call the run."""
    parent: str | None = None
    """The journal of the run that this one belongs to."""
    tags: dict[str, str] = Field(default_factory=dict)


class Params(Frozen):
    """What the run was asked to do."""

    kind: Literal["params"] = "params"
    values: dict[str, str]


class MeasuredOn(Frozen):
    """What figures are about: a checkpoint, scored on a split of a dataset."""

    checkpoint: str
    """Digest of its lineage."""
    dataset: str
    """Name of the dataset, as its input record says."""
    digest: str
    """Digest of the dataset."""


class Metrics(Frozen):
    """Figures of one step; one that is no number is left out when they are written."""

    model_config = ConfigDict(allow_inf_nan=True)

    kind: Literal["metrics"] = "metrics"
    time: int = Field(default_factory=now)
    step: int = 0
    values: dict[str, float]
    subject: MeasuredOn | None = None
    """None: they are about the run alone."""


class CheckpointRecord(Frozen):
    """A checkpoint that the run wrote."""

    kind: Literal["checkpoint"] = "checkpoint"
    time: int = Field(default_factory=now)
    name: str
    """Model and step."""
    step: int
    path: HomePath
    """The step folder."""
    digest: str
    """Of its lineage."""
    weights: str
    """Digest of its weights."""
    parent: str | None
    """Digest of the checkpoint that training began with."""
    params: dict[str, str]
    """What decided it."""
    aliases: tuple[str, ...] = ()
    """By which names it is found among the pipeline's checkpoints from now on."""
    kept: tuple[int, ...] = ()
    """Steps of the same training that lie on disk now; others were pruned."""
    measured: Metrics | None = None
    """What was measured at its step, as it was written before; None if nothing was."""


class Upload(Frozen):
    """The weights of a checkpoint that another run wrote shall lie in MLflow, too."""

    kind: Literal["upload"] = "upload"
    name: str
    """What people call the checkpoint."""
    checkpoint: CheckpointRef


class Tags(Frozen):
    """What was learned about the run while it ran."""

    kind: Literal["tags"] = "tags"
    values: dict[str, str]


class Reused(Frozen):
    """The run used, or went on with, what a run below another one made."""

    kind: Literal["reused"] = "reused"
    journal: str
    """Of the run that made it, which stays below its first parent."""
    title: str
    """What people call it."""
    page: str = ""
    """Where MLflow shows it; found as the record is sent."""
    begun: int = 0
    """When it began; found likewise."""


class Described(Frozen):
    """What a person wants to know of the run without opening a file: lines of Markdown."""

    kind: Literal["described"] = "described"
    lines: tuple[str, ...]
    pages: tuple[tuple[str, str, str], ...] = ()
    """Files to look at: what a link says, the journal of the run that has the file, its name."""
    beside: tuple[str, str] | None = None
    """Journals of two runs whose answers stand side by side on a page."""

    @classmethod
    def of(
        cls,
        facts: dict[str, str],
        *pages: tuple[str, str, str],
        beside: tuple[str, str] | None = None,
    ) -> Self:
        """Return a line a fact, which begins with what it is about."""
        lines = tuple(f"- **{what}**: {markdown(said)}" for what, said in facts.items())
        return cls(lines=lines, pages=pages, beside=beside)


class DatasetInput(Frozen):
    """A dataset that the run read."""

    kind: Literal["dataset"] = "dataset"
    name: str
    digest: str
    """All 64 digits; whoever shows fewer cuts them."""
    path: HomePath
    context: str
    """What it was read for, such as ``train`` or ``validation``."""
    tags: dict[str, str] = Field(default_factory=dict)
    profile: dict[str, int | float] = Field(default_factory=dict)
    """How many rows and tokens, and what share of them is supervised."""
    columns: dict[str, str] = Field(default_factory=dict)
    """What is known of each token, and its type in MLflow's words."""


class Told(Frozen):
    """What a model was asked, and what it said; MLflow calls it a trace."""

    time: int = Field(default_factory=now)
    asked: dict[str, JsonValue]
    said: str
    milliseconds: int = 0
    """How long the answer took."""
    tokens: tuple[int, int] | None = None
    """Read and written; None where nobody counted them."""
    failed: str = ""
    """Why there is no whole answer."""
    expected: str | None = None
    found: dict[str, bool] = Field(default_factory=dict)
    """What is known of the answer, such as whether it matches what is expected."""
    tags: dict[str, str] = Field(default_factory=dict)


class Traces(Frozen):
    """Some of the answers that a model gave, in order; a record holds few, so that it is quick."""

    kind: Literal["traces"] = "traces"
    model: str
    """Its name and step."""
    checkpoint: str
    """Digest of its lineage."""
    first: int
    """How many answers of the run come before these."""
    told: tuple[Told, ...]
    questions: str | None = None
    """Digest of all questions that are asked with these; None where they are nobody's list."""


class Artifact(Frozen):
    """A file that the run left."""

    kind: Literal["artifact"] = "artifact"
    path: HomePath
    """It is sent as it is then, so a file that is written once should be named."""
    folder: str = ""
    """Where it is shown; empty for the top."""


class Text(Frozen):
    """A small report that lies in no file of its own."""

    kind: Literal["text"] = "text"
    name: str
    text: str
    """With nothing in it that hides; pages are made so (:mod:`mypt.pages`)."""

    @field_validator("text")
    @classmethod
    def _show(cls, text: str, found: ValidationInfo) -> str:
        ways = {".json": visible_json, ".txt": visible}
        return ways.get(PurePath(found.data.get("name", "")).suffix, str)(text)


class Ended(Frozen):
    """The run is over, for now."""

    kind: Literal["ended"] = "ended"
    time: int = Field(default_factory=now)
    status: Status


Record = (
    Opened
    | Params
    | Metrics
    | Tags
    | Reused
    | Described
    | DatasetInput
    | CheckpointRecord
    | Upload
    | Traces
    | Artifact
    | Text
    | Ended
)
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


def flatten(value: object, prefix: str = "") -> dict[str, str]:
    """Return a config as one level of dotted keys; an empty list or object is one value."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, dict) and value:
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple) and value:
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        return {prefix: str(value)}
    flat: dict[str, str] = {}
    for key, inner in items:
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else key)
    return flat


class JournalLine(Frozen):
    """One record, and where the next one begins."""

    record: Record
    end: int
    """Bytes of the file up to and with this line."""


def journals_dir() -> Path:
    """Return the folder of all journals."""
    return home() / "tracking"


def journal_path(name: str) -> Path:
    """Return the file of the journal called ``name``."""
    return journals_dir() / f"{name}.jsonl"


def read(name: str, start: int = 0) -> Iterator[JournalLine]:
    """Yield the complete lines of a journal from byte ``start`` on.

    A line that is still being written, or that a killed process left torn, is not yielded.

    Raises:
        MyptError: If a complete line holds no record.
    """
    path = journal_path(name)
    with path.open("rb") as file:
        file.seek(start)
        end = start
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                record = _RECORD.validate_json(line)
            except ValidationError:
                raise MyptError(
                    f"{path}: the line that ends at byte {end} is damaged; expected one record a"
                    " line; move the file away to stop tracking that run"
                ) from None
            yield JournalLine(record=record, end=end)


def names() -> tuple[str, ...]:
    """Return the names of all journals."""
    return tuple(sorted(path.stem for path in journals_dir().glob("*.jsonl")))
