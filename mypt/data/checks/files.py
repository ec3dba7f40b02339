"""Whether a dataset's files are there, whole, unchanged and of the layout they should have."""

from pathlib import Path

import numpy as np

from mypt import files
from mypt.data.checks.report import Findings, Place
from mypt.data.manifest import SPLITS, FileRecord, Manifest, Shard
from mypt.data.shards import open_table
from mypt.data.spans import ROW_DTYPE, SPAN_DTYPE
from mypt.data.tokenizer import load_tokenizer
from mypt.errors import MyptError

TOKEN_BYTES = 4
MASK_BYTES = 1


def check_files(folder: Path, manifest: Manifest, findings: Findings) -> None:
    """Check everything that can be said without looking at a token."""
    for record in manifest.files():
        _check_bytes(folder, record, findings)
    for shard in manifest.shards:
        _check_layout(folder, shard, findings)
    _check_names(folder, manifest, findings)
    _check_counts(manifest, findings)
    if not findings.broken:
        _check_tokenizer(folder, manifest, findings)


def _check_bytes(folder: Path, record: FileRecord, findings: Findings) -> None:
    path = folder / record.name
    if not path.is_file():
        findings.add("file_missing", Place(where=record.name))
    elif path.stat().st_size != record.size:
        detail = f"{path.stat().st_size} bytes found, {record.size} expected"
        findings.add("file_size", Place(where=record.name, detail=detail))
    elif files.digest_file(path) != record.digest:
        findings.add("file_changed", Place(where=record.name, detail="digest differs"))


def _check_layout(folder: Path, shard: Shard, findings: Findings) -> None:
    for record, width in ((shard.tokens, TOKEN_BYTES), (shard.mask, MASK_BYTES)):
        if record is not None and record.size != width * shard.n_tokens:
            detail = (
                f"{record.size} bytes found, {width * shard.n_tokens} expected for"
                f" {shard.n_tokens} tokens of {width} bytes"
            )
            findings.add("file_size", Place(where=record.name, detail=detail))
    for record, dtype, length in (
        (shard.spans, SPAN_DTYPE, None),
        (shard.rows, ROW_DTYPE, shard.n_rows),
    ):
        if record is not None and (folder / record.name).is_file():
            _check_array(folder, record, dtype, length, findings)


def _check_array(
    folder: Path, record: FileRecord, dtype: np.dtype[np.void], length: int | None, found: Findings
) -> None:
    try:
        array = open_table(folder / record.name)
    except ValueError as error:
        found.add("file_layout", Place(where=record.name, detail=f"no array ({error})"))
        return
    if array.dtype != dtype or array.ndim != 1:
        detail = f"{array.dtype} {array.shape} found, {dtype} in one dimension expected"
        found.add("file_layout", Place(where=record.name, detail=detail))
    elif length is not None and len(array) != length:
        detail = f"{len(array)} rows found, {length} expected"
        found.add("file_layout", Place(where=record.name, detail=detail))


def _check_names(folder: Path, manifest: Manifest, findings: Findings) -> None:
    listed = {record.name for record in manifest.files()}
    for split in SPLITS:
        numbers = [shard.index for shard in manifest.split(split)]
        if numbers != list(range(len(numbers))):
            findings.add("shard_numbers", Place(split=split, detail=f"found {numbers}"))
        for path in sorted((folder / split).glob("shard_*")):
            name = f"{split}/{path.name}"
            if name not in listed:
                findings.add("file_unlisted", Place(where=name))
    masked = [shard.mask is not None for shard in manifest.shards]
    if any(masked) and not all(masked):
        for shard in manifest.shards:
            if shard.mask is None:
                findings.add("mask_partial", Place(where=shard.tokens.name))


def _check_counts(manifest: Manifest, findings: Findings) -> None:
    """Check that rows read = rows kept + rows dropped, source by source."""
    for index, source in enumerate(manifest.sources):
        shards = [shard for shard in manifest.shards if shard.source == index]
        if any(shard.rows is None for shard in shards):
            continue  # made by hand: nobody counted
        kept = sum(shard.n_rows for shard in shards)
        dropped = sum(count.rows for count in source.dropped)
        if kept + dropped != source.rows_read:
            detail = f"{source.rows_read} read, {kept} kept, {dropped} dropped"
            findings.add("rows_lost", Place(where=source.name, detail=detail))


def _check_tokenizer(folder: Path, manifest: Manifest, findings: Findings) -> None:
    try:
        tokenizer = load_tokenizer(folder)
    except MyptError as error:
        findings.add("tokenizer_differs", Place(where=manifest.tokenizer.name, detail=str(error)))
        return
    for what, found, expected in (
        ("vocabulary", tokenizer.n_vocab, manifest.n_vocab),
        ("template", tokenizer.template.digest, manifest.template),
    ):
        if found != expected:
            detail = f"{what} {found} found, {expected} expected"
            findings.add("tokenizer_differs", Place(where=manifest.tokenizer.name, detail=detail))
