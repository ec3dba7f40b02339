"""What changed from one dataset to another: rows, settings, and how density moved."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mypt.data.dataset import Dataset, open_dataset
from mypt.data.manifest import SPLITS, Density, Manifest, Split
from mypt.data.policies import policy_words
from mypt.data.shards import origin
from mypt.inspection.checks.findings import EXAMPLES, Where
from mypt.parsing import Frozen

_ROW = np.dtype([("digest", "<u8"), ("split", "u1"), ("shard", "<u4"), ("row", "<u4")])


class DatasetDiff(Frozen):
    """Rows are the same if they say the same, wherever they came from."""

    a: str
    """Digest of the older dataset."""
    b: str
    """Digest of the newer one."""
    same: int
    """Rows of b that stand in a, in the same split."""
    added: int
    """Rows of b that a has not."""
    removed: int
    """Rows of a that b has not."""
    changed: int
    """Rows that come from the same file and line and say something else."""
    moved: int
    """Rows that stand in the other split."""
    masked_anew: int | None = None
    """Rows of which other tokens are supervised; None unless both hold the same rows in order."""
    settings: tuple[str, ...] = ()
    """What differs besides rows: tokenizer, template, mask policy."""
    density: dict[str, tuple[Density, Density]] = Field(default_factory=dict)
    """In all, by role and by source: in a and in b."""
    examples: tuple[Where, ...] = ()
    """The first rows that were added, removed or changed, else of those that were masked anew."""


def diff(a: Path, b: Path) -> DatasetDiff:
    """Compare two datasets.

    Raises:
        ManifestError: If one of them is damaged.
    """
    old, new = open_dataset(a), open_dataset(b)
    before, after = _rows(old), _rows(new)
    gone, come = _without(before, after), _without(after, before)
    kept = len(after) - len(come)
    moved = kept - _common(before, after)
    places = {_origin(old, row) for row in gone}
    changed = [row for row in come if _origin(new, row) in places]
    origins = {_origin(new, row) for row in changed}
    masks = _masked_anew(old, new, before, after)
    shown = () if masks is None else masks[:EXAMPLES]
    examples = tuple(_examples(old, new, gone, come, origins))
    return DatasetDiff(
        a=old.manifest.digest,
        b=new.manifest.digest,
        same=kept - moved,
        added=len(come) - len(changed),
        removed=len(gone) - len(origins),
        changed=len(changed),
        moved=moved,
        masked_anew=None if masks is None else len(masks),
        settings=tuple(_settings(old.manifest, new.manifest)),
        density=_density(old.manifest, new.manifest),
        examples=examples or tuple(_place(new, row, "masked anew") for row in shown),
    )


def _masked_anew(
    old: Dataset, new: Dataset, before: NDArray[np.void], after: NDArray[np.void]
) -> NDArray[np.void] | None:
    """Return the rows whose weights differ; None unless the two have the same tokens and masks."""
    if old.manifest.mask is None or new.manifest.mask is None:
        return None
    if old.tokenizer.digest != new.tokenizer.digest or not np.array_equal(before, after):
        return None
    found = []
    then, now = (np.array(one.manifest.mask.weights) for one in (old, new) if one.manifest.mask)
    for number, split in enumerate(SPLITS):
        pairs = zip(old.shards(split), new.shards(split), strict=True)
        for index, (one, other) in enumerate(pairs):
            if other.rows is None or one.mask is None:
                return None
            places = np.flatnonzero(then[one.mask] != now[np.asarray(other.mask)])
            hit = np.unique(np.searchsorted(other.rows["start"], places, side="right")) - 1
            rows = after[(after["split"] == number) & (after["shard"] == index)]
            found.append(rows[hit])
    return np.concatenate(found)


def _rows(dataset: Dataset) -> NDArray[np.void]:
    """Return eight bytes of every row's digest and where the row stands, 17 bytes a row."""
    found = [np.empty(0, _ROW)]
    for number, split in enumerate(SPLITS):
        for index, shard in enumerate(dataset.shards(split)):
            if shard.rows is None:
                continue
            rows = np.empty(len(shard.rows), _ROW)
            rows["digest"] = np.ascontiguousarray(shard.rows["digest"]).view("<u8")[::2]
            rows["split"], rows["shard"], rows["row"] = number, index, np.arange(len(rows))
            found.append(rows)
    return np.concatenate(found)


def _without(rows: NDArray[np.void], others: NDArray[np.void]) -> NDArray[np.void]:
    """Return the rows that ``others`` lack, a row that stands twice counted twice."""
    return rows[_rank(rows["digest"]) >= _counts(others["digest"], rows["digest"])]


def _common(rows: NDArray[np.void], others: NDArray[np.void]) -> int:
    """Return how many rows both have in the same split."""
    return sum(
        int((_rank(own) < _counts(other, own)).sum())
        for number in range(len(SPLITS))
        for own, other in [
            (rows["digest"][rows["split"] == number], others["digest"][others["split"] == number])
        ]
    )


def _rank(digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return for each item how many equal ones stand before it."""
    order = np.argsort(digests, kind="stable")
    first = np.searchsorted(digests[order], digests[order], side="left")
    rank = np.empty(len(digests), dtype=np.int64)
    rank[order] = np.arange(len(digests)) - first
    return rank


def _counts(among: NDArray[np.uint64], digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return for each digest how often it stands ``among`` others."""
    ordered = np.sort(among)
    counts: NDArray[np.int64] = np.searchsorted(ordered, digests, side="right")
    return counts - np.searchsorted(ordered, digests, side="left")


def _origin(dataset: Dataset, row: np.void) -> tuple[str, str]:
    """Return the source of a row, and file and line."""
    shard = dataset.shards(SPLITS[row["split"]])[row["shard"]]
    source = dataset.manifest.sources[shard.record.source]
    return source.name, origin(shard, source, int(row["row"]))


def _settings(a: Manifest, b: Manifest) -> Iterator[str]:
    for name, old, new in (
        ("tokenizer", a.tokenizer_name, b.tokenizer_name),
        ("tokenizer state", a.tokenizer.digest[:12], b.tokenizer.digest[:12]),
        ("template", a.template[:12], b.template[:12]),
        ("mask policy", _policy(a), _policy(b)),
    ):
        if old != new:
            yield f"{name}: {old} -> {new}"


def _policy(manifest: Manifest) -> str:
    return policy_words(manifest.mask.policy) if manifest.mask else "no mask"


def _density(a: Manifest, b: Manifest) -> dict[str, tuple[Density, Density]]:
    old, new = _groups(a), _groups(b)
    return {name: (old.get(name, Density()), new.get(name, Density())) for name in old | new}


def _groups(manifest: Manifest) -> dict[str, Density]:
    if manifest.mask is None:
        return {}
    stats = manifest.mask.stats
    roles = {f"role {name}": density for name, density in stats.by_role.items()}
    sources = {f"source {name}": density for name, density in stats.by_source.items()}
    return {"in all": stats.total} | roles | sources


def _examples(
    old: Dataset,
    new: Dataset,
    gone: NDArray[np.void],
    come: NDArray[np.void],
    changed: set[tuple[str, str]],
) -> Iterator[Where]:
    for dataset, rows, what in ((new, come, "added"), (old, gone, "removed")):
        for row in rows[:EXAMPLES]:
            found = _origin(dataset, row)
            if found in changed and what == "removed":
                continue
            yield _place(dataset, row, "changed" if found in changed else what)


def _place(dataset: Dataset, row: np.void, what: str) -> Where:
    source, where = _origin(dataset, row)
    split: Split = SPLITS[row["split"]]
    before = sum(s.record.n_rows for s in dataset.shards(split)[: row["shard"]])
    return Where(
        split=split,
        row=before + int(row["row"]),
        where=where,
        detail=f"{what}, source {source}",
    )
