"""Rows against rows: which stand twice, and which stand on both sides of the split."""

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mypt.data.checks.rendering import check_digest, check_rendering, place, read_back
from mypt.data.checks.report import EXAMPLES, Findings
from mypt.data.checks.text import check_text, tag_pattern
from mypt.data.dataset import Dataset
from mypt.data.manifest import SPLITS, Split
from mypt.data.rowview import count_rows, iter_rows, read_row

RENDERED = 2000
"""Rows of each split, evenly spread, that are rendered and encoded once more."""

Digests = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class _Split:
    """Sixteen bytes a row are all that is kept of a split, whatever its rows hold."""

    exact: Digests
    """(R,) first eight bytes of the digest of what was read."""
    folded: Digests
    """(R,) the same over case-folded text with white space folded."""


def check_rows(dataset: Dataset, findings: Findings) -> int:
    """Read every row once, then compare the rows with each other.

    Returns:
        How many rows were rendered and encoded once more.
    """
    if any(shard.rows is None for split in SPLITS for shard in dataset.shards(split)):
        return 0  # made by hand: nobody recorded where a row ends
    rendered = 0
    found = {}
    for split in SPLITS:
        found[split], again = _read_split(dataset, split, findings)
        rendered += again
        _check_doubled(dataset, split, found[split], findings)
    _check_leaks(dataset, found["train"], found["val"], findings)
    return rendered


def _read_split(dataset: Dataset, split: Split, findings: Findings) -> tuple[_Split, int]:
    tags = tag_pattern(dataset.tokenizer)
    step = max(1, -(-count_rows(dataset, split) // RENDERED))
    folded: array[int] = array("Q")
    rendered = 0
    for view in iter_rows(dataset, split):
        row = read_back(view, dataset.tokenizer)
        check_digest(view, row, findings)
        folded.frombytes(check_text(view, row, tags, findings))
        if view.index % step == 0:
            check_rendering(view, row, dataset.tokenizer, findings)
            rendered += 1
    exact = [_first_eight(shard.rows) for shard in dataset.shards(split) if shard.rows is not None]
    digests = _Split(
        np.concatenate([np.empty(0, np.uint64), *exact]), np.array(folded, dtype=np.uint64)
    )
    return digests, rendered


def _first_eight(rows: NDArray[np.void]) -> Digests:
    return np.ascontiguousarray(rows["digest"]).view(np.uint64)[::2]


def _copies(digests: Digests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows that repeat an earlier row, and the row just before each that is equal."""
    order = np.argsort(digests, kind="stable")
    same = digests[order[1:]] == digests[order[:-1]]
    later, before = order[1:][same], order[:-1][same]
    in_order = np.argsort(later)
    return later[in_order], before[in_order]


def _check_doubled(dataset: Dataset, split: Split, rows: _Split, findings: Findings) -> None:
    exact, twins = _copies(rows.exact)
    _add(dataset, split, "doubled", exact, twins, findings)
    folded, near = _copies(rows.folded)
    new = ~np.isin(folded, exact)
    _add(dataset, split, "doubled_folded", folded[new], near[new], findings)


def _check_leaks(dataset: Dataset, train: _Split, val: _Split, findings: Findings) -> None:
    exact = np.isin(val.exact, train.exact)
    folded = np.isin(val.folded, train.folded) & ~exact
    for code, leaks, known, digests in (
        ("leak", exact, train.exact, val.exact),
        ("leak_folded", folded, train.folded, val.folded),
    ):
        rows = np.flatnonzero(leaks)
        twins = [int(np.flatnonzero(known == digests[row])[0]) for row in rows[:EXAMPLES]]
        _add(dataset, "val", code, rows, np.array(twins, dtype=np.int64), findings, "train row")


def _add(
    dataset: Dataset,
    split: Split,
    code: str,
    rows: NDArray[np.int64],
    twins: NDArray[np.int64],
    findings: Findings,
    what: str = "row",
) -> None:
    for row, twin in zip(rows[:EXAMPLES], twins[:EXAMPLES], strict=True):
        view = read_row(dataset, split, int(row))
        findings.add(code, place(view, f"as {what} {twin}"), 0)
    if len(rows):
        findings.add(code, count=len(rows))
