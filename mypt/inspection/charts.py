"""Histograms over all rows of a dataset, as coordinates for a small drawing."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mypt.data.dataset import Dataset, ShardView
from mypt.data.manifest import SPLITS
from mypt.data.spans import ROLE
from mypt.inspection.checks.findings import DENSITY_BOUNDS
from mypt.inspection.checks.masks import supervised_in

WIDTH, BASE, HEIGHT = 480, 140, 116
"""Width of the drawing, its base line, and the height of the tallest bar."""
DENSITY_BINS = 25
LENGTH_BINS = 30


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a histogram."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, slots=True)
class Tick:
    """One label of the axis."""

    x: float
    label: str
    anchor: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A histogram, ready to be drawn."""

    title: str
    note: str
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    bands: tuple[Bar, ...] = ()
    """What lies behind the bars: the range that is expected."""


def density_chart(dataset: Dataset) -> Chart:
    """Return how many rows have which supervised share.

    Documents stay out beside conversations: they are supervised wholly or not at all.
    """
    found, documents = [np.empty(0)], [np.empty(0)]
    for split in SPLITS:
        for shard in dataset.shards(split):
            if shard.rows is not None and shard.mask is not None:
                length = np.maximum(1, shard.rows["stop"] - shard.rows["start"]).astype(float)
                shares = supervised_in(shard.rows, shard.mask) / length
                text = _is_text(shard)
                found.append(shares[~text])
                documents.append(shares[text])
    chats, texts = np.concatenate(found), np.concatenate(documents)
    shown = chats if len(chats) else texts
    edges = np.linspace(0, 1, DENSITY_BINS + 1)
    counts, _ = np.histogram(shown, edges)
    labels = [f"{a:.0%} to {b:.0%}" for a, b in pairwise(edges)]
    low, high = DENSITY_BOUNDS
    median = f", median {np.median(shown):.0%}" if len(shown) else ""
    left_out = f"; {len(texts):,} documents left out" if len(chats) and len(texts) else ""
    return Chart(
        "Supervised share of each row",
        f"{len(shown):,} rows{median}; shaded: {low:.0%} to {high:.0%}{left_out}",
        _bars(counts, labels),
        tuple(_tick(share, f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)),
        (Bar(low * WIDTH, 0, (high - low) * WIDTH, 0, ""),),
    )


def _is_text(shard: ShardView) -> NDArray[np.bool_]:
    """Return which rows of a shard are documents."""
    if shard.rows is None or shard.spans is None:
        return np.zeros(0, dtype=bool)
    first = np.searchsorted(shard.spans["conversation"], np.arange(len(shard.rows)))
    role = shard.spans["role"][np.minimum(first, len(shard.spans) - 1)]
    return np.asarray(role == ROLE["text"])


def length_chart(dataset: Dataset) -> Chart:
    """Return how many rows have which length; bins grow with the length where lengths differ."""
    found = [np.empty(0, np.int64)]
    for split in SPLITS:
        for shard in dataset.shards(split):
            if shard.rows is not None:
                found.append((shard.rows["stop"] - shard.rows["start"]).astype(np.int64))
    lengths = np.concatenate(found)
    if not len(lengths):
        return Chart("Length of each row", "nobody recorded where rows end", (), ())
    low, high = max(1, int(lengths.min())), int(lengths.max()) + 1
    edges = np.unique(np.geomspace(low, max(high, low + 1), LENGTH_BINS + 1).round().astype(int))
    counts, _ = np.histogram(np.maximum(lengths, low), edges)
    labels = [f"{a:,} to {b - 1:,} tokens" for a, b in pairwise(edges)]
    places = np.linspace(0, len(edges) - 1, 5).round().astype(int)
    return Chart(
        "Length of each row",
        f"{len(lengths):,} rows, median {int(np.median(lengths)):,} tokens, longest"
        f" {int(lengths.max()):,}",
        _bars(counts, labels),
        tuple(_tick(p / (len(edges) - 1), f"{edges[p]:,}") for p in dict.fromkeys(places.tolist())),
    )


def _bars(counts: NDArray[np.int64], labels: list[str]) -> tuple[Bar, ...]:
    width = WIDTH / len(counts)
    tallest = max(1, int(counts.max(initial=0)))
    bars = []
    for index, (count, label) in enumerate(zip(counts.tolist(), labels, strict=True)):
        height = max(2.0, HEIGHT * count / tallest) if count else 0.0
        bars.append(
            Bar(
                round(index * width, 2),
                round(BASE - height, 2),
                round(width, 2),
                round(height, 2),
                f"{label}: {count:,} rows",
            )
        )
    return tuple(bars)


def _tick(share: float, label: str) -> Tick:
    anchor = "start" if share == 0 else "end" if share == 1 else "middle"
    return Tick(round(share * WIDTH, 2), label, anchor)
