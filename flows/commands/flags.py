"""What people type, as types: whole numbers, a file of data, where its turns are."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token

from mypt.config import FieldMapping, Format, Markup, Preparation, PrepareConfig, Preset
from mypt.errors import ConfigError
from mypt.parsing import parse_config, read_json

EXAMPLES = {"preset": "configs/tiny_sft.json", "pipeline": "configs/demo.json"}
_KNOBS = {
    "turns_field": "turns",
    "role_field": "role",
    "text_field": "text",
    "role_names": "roles",
    "by_order": "by_order",
    "join": "join",
}


def _whole(_: type, tokens: Sequence[Token]) -> int:
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value[:60]!r} is no whole number") from None


Whole = Annotated[int, Parameter(converter=_whole)]
MaybeWhole = Annotated[int | None, Parameter(converter=_whole)]


class PrepareFile(PrepareConfig):
    """What ``mypt prepare --config`` reads: the data, and who prepares them."""

    preparation: Preparation = Preparation()
    """Who prepares; no part of what is made."""

    def data(self) -> PrepareConfig:
        """Return what decides the dataset."""
        return PrepareConfig(**{key: getattr(self, key) for key in PrepareConfig.model_fields})


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFlags:
    """The flags that say how the files hold their rows."""

    encoding: str = "utf-8"
    """What the bytes of text files mean, such as latin-1, cp1252 or utf-16."""
    rows_at: str = ""
    """Where the rows of a .json file lie, a.b being b inside a; default: found by content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingFlags:
    """The flags that belong to ``--format mapping``; those left out keep their defaults."""

    turns_field: str | None = None
    """For --format mapping: the field of the list of turns; a.b is b inside a."""
    role_field: str | None = None
    """For --format mapping: the field of a turn that says who speaks."""
    text_field: str | None = None
    """For --format mapping: the field of a turn that holds the text."""
    role_names: str | None = None
    """For --format mapping: e.g. human=user,gpt=assistant."""
    by_order: bool = False
    """For --format mapping: who speaks first is the user, the other one the assistant."""
    join: str | None = None
    """For --format mapping: text between turns of one role in a row; default a line feed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingFlags:
    """How the rows of the input files are understood."""

    turns: str = ""
    """Which field of a row says what, in order, as in
    system=about?,user=question,assistant=answer; a question mark: rows may lack it."""
    side: Literal["chosen", "rejected"] = "chosen"
    """Which answer of preference rows is read; the other is counted."""
    pairs: bool = False
    """Both answers of preference rows, as pairs for objective dpo, ipo or simpo."""
    markup: Markup | None = None
    """How text was rendered with role tags, for --format rendered; default: found in each text."""
    group_by: str = ""
    """Column that says which conversation a row of one message belongs to."""
    parts: str = ""
    """Fields of messages, and tags in texts, that hold a quoted document or a citation, as in
    context=documents,cite=source."""
    assistant: str = ""
    """Name of who is the assistant, in an export of a chat between people."""
    strict: bool = False
    """Refuse fields that are neither read nor known to say nothing; else they are counted."""
    unread: str = ""
    """With --strict: fields that may stay unread, joined by commas; they are counted."""
    reasoning_tags: str = "think"
    """Tags around reasoning at the beginning of an assistant's text, joined by commas; none leaves
    them, and <tool_call>, as text."""


def parse_reading(
    format: Format,
    mapping: MappingFlags | None,
    rows: ReadingFlags | None,
    held: FileFlags | None,
) -> dict[str, Any]:
    """Return the knobs of a source that say how its rows are understood.

    Raises:
        ConfigError: As :func:`parse_mapping` does.
    """
    fields = parse_mapping(format, mapping or MappingFlags())
    how = {"format": format, "mapping": fields and fields.model_dump()}
    return how | asdict(rows or ReadingFlags()) | asdict(held or FileFlags())


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFlags:
    """The flags that say who prepares; the dataset is the same."""

    engine: Literal["serial", "process", "dask"] | None = None
    """Who prepares: serial, process (by default, from 32 MB on) or dask; the data are the same."""
    workers: MaybeWhole = None
    """How many processes; default: one a core."""
    address: str | None = None
    """Scheduler of a Dask cluster whose machines see the same files."""


def parse_engine(asked: Preparation, flags: EngineFlags) -> Preparation:
    """Return who prepares: what a file asks for, but for what the flags say.

    Raises:
        ConfigError: If they contradict each other.
    """
    given = {flag: value for flag, value in asdict(flags).items() if value is not None}
    return parse_config(asked.model_dump() | given, Preparation, "the command line")


def parse_mapping(format: Format, flags: MappingFlags) -> FieldMapping | None:
    """Return the mapping that the flags mean; None for every other format.

    Raises:
        ConfigError: If the format is another one, or ``role_names`` holds no pairs.
    """
    given = {flag: value for flag, value in asdict(flags).items() if value not in (None, False)}
    if format != "mapping":
        if given:
            names = ", ".join(f"--{flag}" for flag in given)
            raise ConfigError(f"{names}: expected only together with --format mapping")
        return None
    values = {_KNOBS[flag]: value for flag, value in given.items()}
    if flags.role_names is not None:
        values["roles"] = _pairs(flags.role_names)
    return parse_config(values, FieldMapping, "--role_names")


def _pairs(names: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in names.split(","):
        theirs, equals, ours = (part.strip() for part in pair.partition("="))
        if not (theirs and equals and ours) or theirs in found:
            raise ConfigError(
                f"--role_names: {pair[:60]!r} is no new pair; expected each name once, as in"
                " human=user,gpt=assistant"
            )
        found[theirs] = ours
    return found


def check_kind(path: Path, wanted: Literal["preset", "pipeline"]) -> None:
    """Refuse a config file of the other kind; by their first level of keys they are told apart.

    Raises:
        ConfigError: If it is one, or cannot be read.
    """
    keys = read_json(path, EXAMPLES[wanted]).keys()
    pipeline = bool(keys & {"base", "chat", "pretrain", "sft", "stages"})
    if wanted == "preset" and pipeline:
        raise ConfigError(
            f"{path}: the config of a pipeline; expected a preset such as {EXAMPLES[wanted]}, or"
            f" 'mypt run {path}'"
        )
    if wanted == "pipeline" and not pipeline and keys & Preset.model_fields.keys() - {"name"}:
        raise ConfigError(
            f"{path}: a preset, of one training; expected the config of a pipeline such as"
            f" {EXAMPLES[wanted]}, or 'mypt train --config_file {path}'"
        )
