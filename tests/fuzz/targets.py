"""What arbitrary bytes are given to: each reader, config, manifest and checkpoint loader.

A target takes bytes and a folder of its own, and ends well or with a MyptError of one line.
Anything else that it raises is a fault.
"""

import gzip
import lzma
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import json5
import zstandard

from mypt import files, home
from mypt.config import (
    Format,
    MaskPolicy,
    PipelineConfig,
    PrepareConfig,
    Preset,
    Source,
    load_pipeline,
)
from mypt.data import shards
from mypt.data.manifest import METADATA, read_manifest
from mypt.data.reading.sources import open_source
from mypt.data.spans import SPAN_DTYPE
from mypt.data.template import Template
from mypt.data.vocabularies.vocabulary import read_state as read_tokenizer_state
from mypt.errors import MyptError
from mypt.parsing import read_config
from mypt.training import claim, lineage
from mypt.training.checkpoints import checkpoint, state
from mypt.training.checkpoints import state as history
from tasks.tracking import records
from tests.fuzz import foreign

Target = Callable[[bytes, Path], object]
FORMATS = get_args(Format)
PACKERS = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstandard.compress}


def check(target: Target, data: bytes, folder: Path) -> None:
    """Run a target; let pass only what a user may see."""
    try:
        target(data, folder)
    except MyptError as error:
        if len(str(error).splitlines()) != 1:
            raise ValueError("an error of several lines") from error


def read_raw(suffix: str, data: bytes, folder: Path) -> None:
    """Read a raw file; its format is chosen by the first byte."""
    path = folder / f"raw.{suffix}"
    path.write_bytes(data[1:])
    list(open_source(Source(path=str(path), format=FORMATS[data[0] % len(FORMATS)])))


def read_packed(packing: str, data: bytes, folder: Path) -> None:
    """Read a packed file: as it is, or, if the first byte is odd, packed from what follows."""
    path = folder / f"raw.jsonl.{packing}"
    path.write_bytes(PACKERS[packing](data[1:]) if data[0] % 2 else data[1:])
    list(open_source(Source(path=str(path))))


def read_as(model: type[Any], data: bytes, folder: Path) -> None:
    """Read a config."""
    path = folder / "config.json"
    path.write_bytes(data)
    load_pipeline(path) if model is PipelineConfig else read_config(path, model)


def read_sealed(name: str, read: Callable[[Path], object], data: bytes, folder: Path) -> None:
    """Read a JSON file of ours as it is, or, if its first byte is odd, with the right digest."""
    path = folder / name
    path.write_bytes(data[1:])
    if data[0] % 2:
        try:
            values = json5.loads(data[1:].decode())
            files.write_sealed(path, {k: v for k, v in values.items() if k != "digest"})
        except (ValueError, AttributeError, RecursionError):
            return
    read(folder)


def read_named(name: str, read: Callable[[Path], object], data: bytes, folder: Path) -> None:
    """Read a file of ours that no digest of its own guards."""
    (folder / name).write_bytes(data)
    read(folder / name)


TARGETS: dict[str, Target] = {
    **{
        suffix: partial(read_raw, suffix)
        for suffix in ("jsonl", "json", "csv", "tsv", "txt", "parquet")
    },
    **{packing: partial(read_packed, packing) for packing in PACKERS},
    "preset": partial(read_as, Preset),
    "prepare": partial(read_as, PrepareConfig),
    "pipeline": partial(read_as, PipelineConfig),
    "policy": partial(read_as, MaskPolicy),
    "template": partial(read_as, Template),
    "manifest": partial(read_sealed, METADATA, read_manifest),
    "lineage": partial(read_sealed, lineage.LINEAGE, lineage.read_lineage),
    "tokenizer_state": partial(read_named, "tokenizer_state.json", read_tokenizer_state),
    "trainer_state": partial(read_named, state.STATE, lambda path: state.read_state(path.parent)),
    "tensors": partial(read_named, lineage.WEIGHTS, checkpoint._read_tensors),
    "table": partial(read_named, "shard_000_spans.npy", lambda path: spans(path)),
    "history": partial(read_named, history.HISTORY, lambda p: history.read_history(p.parent, 2)),
    "run": partial(read_sealed, claim.RUN, claim.read_run),
    "pointer": partial(read_named, "latest", lambda path: home.find_checkpoint(path.parent)),
    "journal": lambda data, folder: read_journal(data, folder),
    **foreign.TARGETS,
}


def spans(path: Path) -> None:
    """Read a table of spans as a shard's reader does."""
    shards._map_table(path, SPAN_DTYPE)


def read_journal(data: bytes, folder: Path) -> None:
    """Read what a run wrote for MLflow."""
    path = folder / "tracking" / "run.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    with home.moved_home(folder):
        list(records.read("run"))
