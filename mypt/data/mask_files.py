"""Masks on disk: made from the spans beside them, shard by shard, and counted."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mypt import files
from mypt.config import MaskPolicy
from mypt.data.manifest import (
    TOKENIZER_STATE,
    Density,
    Manifest,
    MaskRecord,
    MaskStats,
    Shard,
    SourceRecord,
    record_file,
)
from mypt.data.masking import mask_from_spans, weight_table
from mypt.data.policies import policy_words
from mypt.data.shards import MASK, ShardView, origin, shard_name, view_shard
from mypt.data.spans import KIND, ROLES
from mypt.data.tokenizer import load_tokenizer
from mypt.errors import MaskError


def mask_stats(shards: Iterable[ShardView], sources: Sequence[SourceRecord]) -> MaskStats:
    """Count what the masks of ``shards`` select, one shard at a time.

    Args:
        shards: Shards of any splits; their spans, where there are any, tile their tokens.
        sources: The dataset's sources.

    Raises:
        MaskError: If a shard has no mask.
    """
    splits, roles, names = _Groups(), _Groups(), _Groups()
    n_rows = n_unsupervised = 0
    for shard in shards:
        if shard.mask is None:
            raise MaskError(f"{shard.record.tokens.name} has no mask; make one with 'mypt mask'")
        whole = Density(tokens=len(shard.mask), supervised=int(np.count_nonzero(shard.mask)))
        splits.add(shard.record.split, whole)
        names.add(sources[shard.record.source].name, whole)
        for role, density in _by_role(shard.mask, shard.spans):
            roles.add(role, density)
        if shard.rows is not None:
            n_rows += len(shard.rows)
            n_unsupervised += int((supervised_in(shard.mask, shard.rows) == 0).sum())
    return MaskStats(
        total=splits.total(),
        by_split=splits.densities,
        by_role=roles.densities,
        by_source=names.densities,
        rows=n_rows,
        rows_unsupervised=n_unsupervised,
    )


def supervised_in(mask: NDArray[np.uint8], parts: NDArray[np.void]) -> NDArray[np.int64]:
    """Return how many tokens of each part are supervised, (P,).

    Args:
        mask: (N,) of 0 and, where a token is supervised, another number.
        parts: (P,) spans or rows that tile the N tokens; a part may be empty.
    """
    counts = np.zeros(len(parts), dtype=np.int64)
    filled = parts["stop"] > parts["start"]  # reduceat would give an empty part its neighbour
    starts = parts["start"][filled].astype(np.int64)
    if starts.size:
        counts[filled] = np.add.reduceat(mask != 0, starts, dtype=np.int64)
    return counts


def _by_role(
    mask: NDArray[np.uint8], spans: NDArray[np.void] | None
) -> Iterable[tuple[str, Density]]:
    if spans is None:
        return
    tokens = (spans["stop"] - spans["start"]).astype(np.int64)
    supervised = supervised_in(mask, spans)
    for number in np.unique(spans["role"]):
        of_role = spans["role"] == number
        yield (
            ROLES[number],
            Density(tokens=int(tokens[of_role].sum()), supervised=int(supervised[of_role].sum())),
        )


class _Groups:
    """Densities by name, added up."""

    def __init__(self) -> None:
        self.densities: dict[str, Density] = {}

    def add(self, name: str, more: Density) -> None:
        old = self.densities.get(name, Density())
        self.densities[name] = Density(
            tokens=old.tokens + more.tokens, supervised=old.supervised + more.supervised
        )

    def total(self) -> Density:
        found = self.densities.values()
        return Density(
            tokens=sum(density.tokens for density in found),
            supervised=sum(density.supervised for density in found),
        )


def write_masks(
    folder: Path, manifest: Manifest, policy: MaskPolicy, *, as_asked: bool = False
) -> Manifest:
    """Write a mask beside each shard of ``folder`` and return the metadata with them.

    Args:
        folder: The dataset.
        manifest: Its metadata.
        policy: Whose tokens are supervised.
        as_asked: Learn reasoning that says nothing unless the policy says otherwise, as datasets
            did before there was a choice.

    Raises:
        MaskError: If the shards have no spans, a row wants a tool's result supervised, the policy
            weighs a source that is not there or gives too many weights, or it supervises nothing in
            the whole dataset.
    """
    keeps = policy.skip_empty_reasoning is False or policy.reasoning_above or not policy.reasoning
    if not (as_asked or keeps):
        above = _empty_reasoning(folder, manifest)
        policy = policy.model_copy(update={"reasoning_above": above})
    names = [source.name for source in manifest.sources]
    for word in policy.weights:
        if word.startswith("source:") and word.removeprefix("source:") not in names:
            raise MaskError(f"policy: no source is called {word[7:]!r}; found {', '.join(names)}")
    table = weight_table(policy, names, manifest.row_weights)
    shards = tuple(_write_mask(folder, shard, manifest, policy, table) for shard in manifest.shards)
    stats = mask_stats((view_shard(folder, shard) for shard in shards), manifest.sources)
    if not stats.total.supervised:
        raise MaskError(
            f"no token is supervised by policy {policy_words(policy)!r}: the rows hold"
            f" {', '.join(stats.by_role) or 'nothing'}; choose roles that are there, or look at the"
            " rows' own train marks"
        )
    record = MaskRecord(policy=policy, stats=stats, weights=table)
    return manifest.model_copy(update={"shards": shards, "mask": record})


def _empty_reasoning(folder: Path, manifest: Manifest) -> int:
    """Return how many tokens reasoning has that is its tags alone; 0 where there is none.

    Such a stretch is the shortest there is, since whatever is said adds a token.
    """
    shortest: tuple[int, bytes] | None = None
    for shard in manifest.shards:
        view = view_shard(folder, shard)
        if view.spans is None:
            continue
        spans = view.spans[view.spans["kind"] == KIND["reasoning"]]
        if not len(spans):
            continue
        lengths = (spans["stop"] - spans["start"]).astype(np.int64)
        span = spans[int(lengths.argmin())]
        if shortest is None or lengths.min() < shortest[0]:
            tokens = np.asarray(view.tokens[span["start"] : span["stop"]])
            shortest = int(lengths.min()), tokens.tobytes()
    if shortest is None:
        return 0
    length, tokens_of = shortest
    said = load_tokenizer(folder / TOKENIZER_STATE).decode(np.frombuffer(tokens_of, np.uint32))
    return 0 if re.sub(r"<[^<>]*>|\[/?\w+\]|\s", "", said) else length


def _write_mask(
    folder: Path,
    shard: Shard,
    manifest: Manifest,
    policy: MaskPolicy,
    table: tuple[float, ...],
) -> Shard:
    view = view_shard(folder, shard)
    if view.spans is None:
        raise MaskError(
            f"{shard.tokens.name} was made by hand and has no spans, so nobody knows who wrote its"
            " tokens; prepare the raw files with 'mypt prepare' to mask them by a policy"
        )
    source = manifest.sources[shard.source]
    mask = mask_from_spans(
        view.spans,
        shard.n_tokens,
        policy,
        source=source.name,
        row_weights=manifest.row_weights,
        table=table,
        row_name=lambda row: origin(view, source, row),
    )
    name = shard_name(shard.split, shard.index, MASK)
    with files.create(folder / name) as file:
        file.write(np.ascontiguousarray(mask).data)
    return shard.model_copy(update={"mask": record_file(folder, name)})
