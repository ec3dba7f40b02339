"""Rows of earlier datasets beside new ones, as shares of the tokens that training reads.

What is learned later pushes out what was learned before; some of it read again holds that up.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mypt import files
from mypt.data.building import build
from mypt.data.dataset import Dataset, open_dataset
from mypt.data.manifest import Count, Making, Manifest, Replay, SourceRecord
from mypt.data.preparation.encoding import Encoded
from mypt.data.preparation.shard_writer import ShardWriter, row_keys, select_rows
from mypt.data.shards import ShardView
from mypt.data.spans import RowWeights
from mypt.errors import ConfigError, DataError
from mypt.references import DatasetRef

_TOLERANCE = 0.2
"""Part of a share by which whole rows may miss it."""


class Earlier(NamedTuple):
    """A dataset of which some is read again."""

    name: str
    """What people call it; its sources are ``NAME/SOURCE`` from then on."""
    dataset: DatasetRef
    """Tokens and spans, without masks."""
    share: float
    """Of the training tokens that are read, in the end."""


def replay(
    dataset: DatasetRef, earlier: Sequence[Earlier], out_dir: Path, *, reuse: bool = False
) -> DatasetRef:
    """Put rows of earlier datasets beside those of a dataset, in a new folder.

    Which rows, their content decides; each source of an earlier dataset has the part that it had
    in the training on that. Only rows of ``train`` are read again, and only ``train`` gets them:
    what is forgotten is measured on the earlier datasets themselves.

    Args:
        dataset: Tokens and spans, without masks, whose shards the new folder shares.
        earlier: What is read again.
        out_dir: The new dataset's folder.
        reuse: As for :func:`mypt.data.dataset.tokenize`.

    Raises:
        ConfigError: If ``out_dir`` exists and may not be reused, or the tokenizers differ.
        DataError: If an earlier dataset has too few rows, or a dataset is no tokens alone.
        ManifestError: If a dataset is damaged or not the one that was meant.
    """
    own = open_dataset(dataset.path, digest=dataset.digest)
    opened = [open_dataset(one.dataset.path, digest=one.dataset.digest) for one in earlier]
    for found in (own, *opened):
        _check(found, own)
    recipe = replay_recipe(dataset, earlier)

    def make(folder: Path) -> Manifest:
        for record in own.manifest.files():
            (folder / record.name).parent.mkdir(exist_ok=True)
            files.link_or_copy(own.path / record.name, folder / record.name)
        return _mixed(own, list(zip(earlier, opened, strict=True)), folder, recipe)

    return build(out_dir, make, recipe if reuse else None)


def replay_recipe(dataset: DatasetRef, earlier: Sequence[Earlier]) -> str:
    """Return the digest of all that decides what a dataset with replayed rows holds."""
    shares = [[one.name, one.dataset.digest, one.share] for one in earlier]
    return files.digest_json([dataset.digest, shares])


def _check(found: Dataset, own: Dataset) -> None:
    manifest = found.manifest
    if manifest.tokenizer.digest != own.manifest.tokenizer.digest:
        raise ConfigError(
            f"{found.path}: tokenizer {manifest.tokenizer_name} {manifest.tokenizer.digest[:12]},"
            f" and {own.path} has {own.manifest.tokenizer.digest[:12]}; prepare one with"
            " --tokenizer_from the other"
        )
    by_hand = any(shard.spans is None or shard.rows is None for shard in manifest.shards)
    if by_hand or manifest.mask or manifest.pairs or manifest.making is None:
        what = "made by hand" if by_hand else "pairs" if manifest.pairs else "masked already"
        raise DataError(
            f"{found.path}: {what}; expected tokens and spans alone, of 'mypt prepare' without"
            " masks, to be masked once their rows are together"
        )


def _mixed(
    own: Dataset, earlier: Sequence[tuple[Earlier, Dataset]], folder: Path, recipe: str
) -> Manifest:
    """Write the rows that are read again, and return the metadata of all."""
    manifest, weights = own.manifest, RowWeights()
    assert manifest.making, "it was looked for"
    weights.numbered(manifest.row_weights)
    smallest = min(source.weight for source in manifest.sources)
    total = _read(own) / smallest / (1 - sum(one.share for one, _ in earlier))
    sources, again = list(manifest.sources), []
    tokens, n_vocab = manifest.making.config.shard_tokens, manifest.n_vocab
    with ShardWriter(folder, tokens, n_vocab, after=manifest.shards) as writer:
        for one, dataset in earlier:
            scale, n_before = one.share * total / _read(dataset), writer.n_tokens
            for index, source in enumerate(dataset.manifest.sources):
                shards = [s for s in dataset.shards("train") if s.record.source == index]
                quota = scale * source.weight * sum(s.record.n_tokens for s in shards)
                chosen = _chosen(shards, quota, f"{one.name}/{source.name}")
                sources.append(_account(one.name, source, dataset, index, chosen, smallest))
                for shard, rows in zip(shards, chosen, strict=True):
                    assert shard.spans is not None, "it was looked for"
                    assert shard.rows is not None
                    kept = select_rows(
                        Encoded(shard.tokens, shard.spans, shard.rows, np.empty(0)), rows
                    )
                    weights.add(kept.spans, dataset.manifest.row_weights)
                    writer.append("train", len(sources) - 1, kept)
            _check_share(one, writer.n_tokens - n_before, one.share * total)
            assert dataset.manifest.making, "it was looked for"
            config = dataset.manifest.making.config
            again.append(Replay(name=one.name, config=config, share=one.share))
        shards_of_all = writer.close()
    chats = any(found.manifest.kind == "chat" for found in (own, *(d for _, d in earlier)))
    before = manifest.making
    update = {
        "kind": "chat" if chats else "text",
        "parent": manifest.digest,
        "recipe": recipe,
        "sources": tuple(sources),
        "shards": shards_of_all,
        "row_weights": weights.table,
        "making": Making(config=before.config, policies=before.policies, replays=tuple(again)),
    }
    return manifest.model_copy(update=update)


def _read(dataset: Dataset) -> float:
    """Return the training tokens of a dataset, each source's as often as its weight says."""
    sources = dataset.manifest.sources
    return sum(s.n_tokens * sources[s.source].weight for s in dataset.manifest.split("train"))


def _chosen(shards: Sequence[ShardView], quota: float, name: str) -> list[NDArray[np.bool_]]:
    """Return which rows of each shard, (R,), together have nearest to ``quota`` tokens.

    Raises:
        DataError: If there are fewer.
    """
    tables = [shard.rows for shard in shards if shard.rows is not None]
    if not tables:
        return []
    rows = np.concatenate(tables)
    order = np.argsort(row_keys(rows), kind="stable")
    ends = np.cumsum((rows["stop"] - rows["start"])[order].astype(np.int64))
    if quota > ends[-1]:
        raise DataError(
            f"replay of {name}: {quota:,.0f} tokens would be its share, and there are {ends[-1]:,}"
            " to train on; lower the share, or bring more data"
        )
    n_rows = int(np.argmin(np.abs(np.append(0, ends) - quota)))
    chosen = np.zeros(len(rows), np.bool_)
    chosen[order[:n_rows]] = True
    return np.split(chosen, np.cumsum([len(table) for table in tables])[:-1])


def _check_share(one: Earlier, found: int, wanted: float) -> None:
    """Refuse rows that are too long to make up a small share.

    Raises:
        DataError: If they have far more or fewer tokens than were asked for.
    """
    if abs(found - wanted) > _TOLERANCE * wanted:
        raise DataError(
            f"replay of {one.name}: {wanted:,.0f} tokens are {one.share:g} of all, and whole rows"
            f" have {found:,} at the nearest; cut its texts into shorter rows, or raise the share"
        )


def _account(
    name: str,
    source: SourceRecord,
    dataset: Dataset,
    index: int,
    chosen: Sequence[NDArray[np.bool_]],
    weight: float,
) -> SourceRecord:
    """Return the record of a source of which some rows are read again, and the others counted."""
    n_rows = sum(int(rows.sum()) for rows in chosen)
    kept = sum(s.n_rows for s in dataset.manifest.shards if s.source == index)
    left = Count(reason="not read again, by their content", rows=kept - n_rows)
    return source.model_copy(
        update={
            "name": f"{name}/{source.name}",
            "weight": weight,
            "dropped": (*source.dropped, *([left] if left.rows else [])),
            "notes": (*source.notes, Count(reason=f"read again from {name}", rows=n_rows)),
        }
    )
