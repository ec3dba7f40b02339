"""Shards made by hand become a dataset: checked, digested, and given their metadata."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from mypt import files
from mypt.data.building import one_builder
from mypt.data.manifest import (
    METADATA,
    SPLITS,
    TOKENIZER_STATE,
    Manifest,
    MaskRecord,
    Shard,
    SourceFile,
    SourceRecord,
    Split,
    record_file,
    write_manifest,
)
from mypt.data.mask_files import mask_stats
from mypt.data.rendering.base_template import BaseTemplate
from mypt.data.shards import MASK, TOKENS, check_ids, shard_name, view_shard
from mypt.data.tokenizer import Tokenizer, load_tokenizer
from mypt.errors import ConfigError, DataError, MaskError, MissingFileError
from mypt.references import DatasetRef

_SHARD: Final = re.compile(r"shard_(\d{3,})(_mask)?\.bin")
_ADVICE: Final = "save tokens as uint32 and masks as uint8, one value for each token"
_CAUSES: Final = {
    0.5: "the mask looks like 64-bit numbers",
    1: "the mask looks like 32-bit numbers, or both like 64-bit ones",
    2: "the tokens look like 16-bit numbers, or the mask does",
    8: "the tokens look like 64-bit numbers",
}
"""What went wrong when a token file is so many times its mask's size; 4 is right."""


def adopt(
    folder: str | Path, tokenization: str | None = None, template: str | None = None
) -> DatasetRef:
    """Give a folder of shards made by hand its metadata, in place.

    It holds ``train/`` and ``val/`` with ``shard_000.bin`` (uint32 ids) and, for all shards
    or for none, ``shard_000_mask.bin`` (one byte a token). An empty ``val/`` says that there
    is no validation split. Source: the loss-masking guide, "Creating Masks Manually".

    Args:
        folder: The folder; nothing that is in it changes.
        tokenization: What the ids mean; must agree with a ``tokenizer_state.json`` that is
            already there. None takes that one, else gpt2, as the guide does.
        template: What wrote the turns, likewise. None takes mypt where no id is a special token
            but the one that ends a document.

    Raises:
        DataError: If a shard cannot be what it should be; the message says which and why.
        MaskError: If a mask is missing, is not aligned, holds more than 0 and 1, or if all
            masks together supervise nothing.
        ConfigError: If the folder has metadata already, or there is no such tokenization.
    """
    place = Path(folder)
    if not place.is_dir():
        raise MissingFileError(f"{place}: no such folder; expected one that holds train/ and val/")
    with one_builder(place):
        if (place / METADATA).exists():
            raise ConfigError(
                f"{place / METADATA} exists and is never overwritten; if mypt made it the dataset"
                " needs no adoption, else move the file away"
            )
        shards = tuple(shard for split in SPLITS for shard in _find(place, split))
        tokenizer = _tokenizer(place, tokenization, template)
        told = template is not None or (place / TOKENIZER_STATE).exists()
        for shard in shards:
            _check_values(place, shard, tokenizer)
        mask = _check_masks(place, shards)
        for shard in shards:
            _check_specials(place, shard, tokenizer, told)
        if not (place / TOKENIZER_STATE).exists():
            tokenizer.write(place)
        manifest = Manifest(
            kind="text" if mask is None else "chat",
            tokenizer=record_file(place, TOKENIZER_STATE),
            tokenizer_name=tokenizer.name,
            n_vocab=tokenizer.n_vocab,
            template=tokenizer.template.digest,
            sources=(_source(place, shards),),
            shards=shards,
            mask=mask,
        )
        return DatasetRef(path=str(place), digest=write_manifest(place, manifest).digest)


def _find(folder: Path, split: Split) -> Iterator[Shard]:
    """Record the shards of a split after checking that every file in it belongs to one."""
    if not (folder / split).is_dir():
        raise DataError(
            f"{folder / split}: no such folder; expected shards there"
            + (", or an empty folder to go without validation" if split == "val" else "")
        )
    names = sorted(path.name for path in (folder / split).iterdir())
    matches = {name: _SHARD.fullmatch(name) for name in names}
    indices = sorted({int(match[1]) for match in matches.values() if match})
    expected = {
        Path(shard_name(split, i, part)).name
        for i in range(len(indices))
        for part in (TOKENS, MASK)
    }
    for name in names:
        if name not in expected:
            raise DataError(
                f"{folder / split / name}: found among {len(indices)} shards, expected only"
                " shard_000.bin, shard_000_mask.bin and so on without a gap; a file under another"
                " name would be left out, rename or move it"
            )
    if split == "train" and not indices:
        raise DataError(f"{folder / split}: no shard_000.bin found; expected at least one shard")
    for index in range(len(indices)):
        yield _record(folder, split, index)


def _record(folder: Path, split: Split, index: int) -> Shard:
    tokens, mask = (shard_name(split, index, part) for part in (TOKENS, MASK))
    if not (folder / tokens).is_file():
        raise DataError(f"{folder / tokens}: missing, though {mask} is there; expected both")
    size = (folder / tokens).stat().st_size
    has_mask = (folder / mask).is_file()
    if has_mask:
        _check_sizes(folder / tokens, size, (folder / mask).stat().st_size)
    if size == 0 or size % 4:
        raise DataError(
            f"{folder / tokens}: {size} bytes found, expected 4 for each token (uint32)"
        )
    return Shard(
        split=split,
        index=index,
        source=0,
        n_tokens=size // 4,
        n_rows=0,
        tokens=record_file(folder, tokens),
        spans=None,
        rows=None,
        mask=record_file(folder, mask) if has_mask else None,
    )


def _check_sizes(tokens: Path, size: int, mask_size: int) -> None:
    if size != 4 * mask_size:
        ratio = size / mask_size if mask_size else 0
        cause = _CAUSES.get(ratio, "they are not of the same tokens")
        raise MaskError(
            f"{tokens}: {size} bytes of tokens beside {mask_size} of mask, expected 4 bytes a token"
            f" and 1 a mask value; {cause}; {_ADVICE}"
        )


def _tokenizer(folder: Path, tokenization: str | None, template: str | None) -> Tokenizer:
    if not (folder / TOKENIZER_STATE).exists():
        return load_tokenizer(tokenization or "gpt2", template or "mypt")
    tokenizer = load_tokenizer(folder / TOKENIZER_STATE)
    if template not in (None, tokenizer.template.name):
        raise ConfigError(
            f"{folder / TOKENIZER_STATE}: template {tokenizer.template.name!r} found, --template"
            f" says {template!r}; name the one that wrote the turns, or move the file away"
        )
    if tokenization not in (None, tokenizer.name):
        raise ConfigError(
            f"{folder / TOKENIZER_STATE}: tokenizer {tokenizer.name!r} found, --tokenization says"
            f" {tokenization!r}; name the one that made the tokens, or move the file away"
        )
    return tokenizer


def _check_specials(folder: Path, shard: Shard, tokenizer: Tokenizer, told: bool) -> None:
    """Refuse special tokens that the template does not write: it would call them something else."""
    if isinstance(tokenizer.template, BaseTemplate):
        return
    vocabulary = tokenizer.vocabulary
    known = {vocabulary.begin, vocabulary.end, *(tokenizer.template.special_tokens if told else ())}
    odd = {i: token for token, i in tokenizer.special_tokens.items() if token not in known}
    tokens = view_shard(folder, shard).tokens
    found = np.flatnonzero(np.isin(tokens, np.array(sorted(odd), np.uint32)))
    if found.size:
        number = int(tokens[found[0]])
        own = f", {odd[number]}," if odd[number] in vocabulary.special_tokens else ""
        raise DataError(
            f"{folder / shard.tokens.name}: id {number}{own} found at token {found[0]}, and"
            f" {found.size - 1} more special ones; expected what wrote the turns: name it with"
            f" --template, and a base's own vocabulary with --tokenization hf:FOLDER"
        )


def _check_values(folder: Path, shard: Shard, tokenizer: Tokenizer) -> None:
    view = view_shard(folder, shard)
    check_ids(folder, view, tokenizer.n_vocab)
    if view.mask is None:
        if shard.n_tokens > 2 and not view.tokens[1::2].any():
            raise DataError(
                f"{folder / shard.tokens.name}: every second id is 0; {_CAUSES[8]}; {_ADVICE}"
            )
        return
    wrong = np.flatnonzero(view.mask > 1)
    if wrong.size:
        raise MaskError(
            f"{folder / shard_name(shard.split, shard.index, MASK)}: {view.mask[wrong[0]]} found at"
            f" token {wrong[0]}, and {wrong.size - 1} more that are neither 0 nor 1; a token of"
            " shards made by hand is learned or it is not"
        )


def _check_masks(folder: Path, shards: tuple[Shard, ...]) -> MaskRecord | None:
    unmasked = [shard.tokens.name for shard in shards if shard.mask is None]
    if len(unmasked) == len(shards):
        return None
    if unmasked:
        raise MaskError(
            f"{folder}: {len(unmasked)} of {len(shards)} shards have no mask, such as"
            f" {unmasked[0]}; expected one beside each, or none at all"
        )
    stats = mask_stats((view_shard(folder, shard) for shard in shards), [_source(folder, ())])
    if not stats.total.supervised:
        raise MaskError(f"{folder}: no token is supervised, all masks are 0; make them again")
    return MaskRecord(policy=None, stats=stats)


def _source(folder: Path, shards: tuple[Shard, ...]) -> SourceRecord:
    """Return the shards as their own raw files: what they were made from, nobody recorded."""
    names = [part.name for shard in shards for part in (shard.tokens, shard.mask) if part]
    found = (folder / name for name in names)
    return SourceRecord(
        name=folder.resolve().name,
        format="shards",
        weight=1.0,
        files=tuple(
            SourceFile(path=str(p), size=p.stat().st_size, sha256=files.sha256_file(p))
            for p in found
        ),
        rows_read=0,
    )
