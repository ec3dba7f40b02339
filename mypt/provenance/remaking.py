"""A dataset made again from its raw files, by what its lineage says was asked for."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mypt import files
from mypt.config import PrepareConfig, Source
from mypt.data.dataset import mask, prepare, tokenize
from mypt.data.manifest import TOKENIZER_STATE, Manifest, SourceRecord, read_manifest
from mypt.data.reading.sources import source_name
from mypt.data.replay import Earlier, replay
from mypt.data.tokenizer import find_template
from mypt.errors import ConfigError, DataError
from mypt.provenance.search import Search
from mypt.training.circumstances import record_dataset
from mypt.training.lineage import DatasetRecord

_NAMES_SHOWN = 8


def missing_files(record: DatasetRecord, search: Search) -> tuple[str, ...]:
    """Return a line for each raw file that is gone or changed; generated ones are made again."""
    return tuple(
        f"{file.path}: gone, or its bytes changed since they were read"
        for source, asked in _pairs(record)
        if asked.exercises is None and asked.package is None
        for file in source.files
        if search.unchanged_file(file) is None
    )


def make_again(
    record: DatasetRecord, folder: Path, search: Search, tokenizers: Iterable[Path]
) -> Path:
    """Make a dataset as it was made, from the same raw files wherever they lie now.

    Args:
        record: What was asked for and what was read then.
        folder: A new folder; the dataset appears below it, and what it was masked from.
        search: Finds the raw files.
        tokenizers: Folders that may hold the tokenizer it used, if that came from elsewhere.

    Raises:
        DataError: If a raw file, the tokenizer or the template is not what it was.
    """
    making = record.making
    assert making is not None, "the caller has looked"
    sources = [
        _relocated(asked, source, search, folder / "raw" / f"{number:03d}")
        for number, (source, asked) in enumerate(_pairs(record))
    ]
    config, *replayed = (
        asked.model_copy(
            update={"sources": tuple(sources.pop(0) for _ in asked.sources)}
            | _rendering(asked, record, search, tokenizers)
        )
        for asked in (making.config, *(one.config for one in making.replays))
    )
    first, *later = making.policies
    n_before = len(later) + bool(replayed)
    names = [f"{folder.name}-{number}" for number in range(n_before)] + [folder.name]
    places = [folder / name for name in names]
    policy = record.mask.policy if record.mask else None
    # What skips nothing found nothing to skip, or is of a mypt that did not look.
    as_asked = policy is None or not policy.reasoning_above
    if first is None:
        made = tokenize(config, places[0])
    else:
        made = prepare(config, first, places[0], as_asked=as_asked)
    if replayed:
        earlier = [
            Earlier(one.name, tokenize(asked, folder / f"replayed-{number}"), one.share)
            for number, (one, asked) in enumerate(zip(making.replays, replayed, strict=True))
        ]
        made = replay(made, earlier, places.pop(1))
    for policy, place in zip(later, places[1:], strict=True):
        assert policy is not None, "only the first may be absent"
        made = mask(made.path, policy, place, as_asked=as_asked)
    return Path(made.path)


def differences(record: DatasetRecord, made: Path, original: Manifest | None) -> tuple[str, ...]:
    """Return what of a dataset is not what it was, a line each.

    Args:
        record: What it was.
        made: What it is now.
        original: Metadata of the dataset as it was, where that still lies somewhere.
    """
    manifest = read_manifest(made)
    now = record_dataset(made, manifest)
    lines = [
        f"{key}: {_short(old)} then, {_short(new)} now"
        for key in ("kind", "tokens", "tokenizer_name", "tokenizer", "template")
        if (old := getattr(record, key)) != (new := getattr(now, key))
    ]
    for before, after in zip(record.sources, now.sources, strict=True):
        if [file.sha256 for file in before.files] != [file.sha256 for file in after.files]:
            lines.append(f"source {before.name}: its files hold other bytes now")
        elif (before.rows_read, before.dropped) != (after.rows_read, after.dropped):
            lines.append(f"source {before.name}: other rows were read or dropped from it")
    if original is not None:
        known = {file.name: file.digest for file in original.files()}
        other = [file.name for file in manifest.files() if known.get(file.name) != file.digest]
        lines += [f"{name}: other bytes than then" for name in other[:_NAMES_SHOWN]]
        lines += [f"and {len(other) - _NAMES_SHOWN} more files"] * (len(other) > _NAMES_SHOWN)
    return tuple(lines) or ("its tables agree; the shards' bytes do not",)


def _pairs(record: DatasetRecord) -> Iterable[tuple[SourceRecord, Source]]:
    """Return each source as it was read with what was asked for."""
    assert record.making is not None, "the caller has looked"
    return zip(record.sources, record.making.sources, strict=True)


def _relocated(asked: Source, read: SourceRecord, search: Search, folder: Path) -> Source:
    """Return a source that reads the same files, in the same order, where they lie now."""
    if asked.exercises is not None or asked.package is not None:
        return asked
    found = [search.unchanged_file(file) for file in read.files]
    update = {"name": source_name(asked)}
    if len(found) == 1:
        return asked.model_copy(update=update | {"path": str(found[0])})
    folder.mkdir(parents=True)
    for number, (file, place) in enumerate(zip(read.files, found, strict=True)):
        if place is None:
            raise DataError(f"{file.path}: gone or changed while the datasets were made again")
        # The number keeps the order in which they were read; the name says how to unpack it.
        (folder / f"{number:06d}-{Path(file.path).name}").symlink_to(place)
    return asked.model_copy(update=update | {"path": str(folder)})


def _rendering(
    config: PrepareConfig, record: DatasetRecord, search: Search, tokenizers: Iterable[Path]
) -> dict[str, Any]:
    """Return the knobs that name the tokenizer or the template, as they must read now."""
    if config.tokenizer_from is not None:
        for folder in tokenizers:
            state = folder / TOKENIZER_STATE
            if state.is_file() and files.digest_file(state) == record.tokenizer:
                return {"tokenizer_from": str(folder)}
        raise DataError(
            f"{config.tokenizer_from}: the tokenizer {record.tokenizer[:12]} that came from there"
            " is in no checkpoint or dataset of the chain; put it back"
        )
    for name in (config.template, *map(str, search.files(config.template))):
        try:
            if find_template(name, config.tokenization).digest == record.template:
                return {"template": name}
        except ConfigError:
            continue
    raise DataError(
        f"template {config.template} is gone or changed; expected the one of digest"
        f" {record.template[:12]}; put it back"
    )


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
