"""Histograms over all rows of a dataset, as plots that take their colours from the page."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mypt.data.dataset import Dataset, ShardView
from mypt.data.manifest import SPLITS
from mypt.data.spans import ROLE
from mypt.inspection.checks.findings import DENSITY_BOUNDS
from mypt.inspection.checks.masks import supervised_in
from mypt.pages.render import COLOURS, plot
from mypt.text import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DENSITY_BINS = 25
LENGTH_BINS = 30


class Histogram(NamedTuple):
    """A histogram, ready to be shown."""

    title: str
    note: str
    svg: str


def density_histogram(dataset: Dataset) -> Histogram:
    """Return how many rows have which supervised share.

    Documents stay out beside conversations: they are supervised wholly or not at all.
    """
    chats, texts = row_shares(dataset)
    shares = chats if len(chats) else texts
    low, high = DENSITY_BOUNDS
    median = f", median {np.median(shares):.0%}" if len(shares) else ""
    left_out = f"; {counted(len(texts), 'document')} left out" if len(chats) and len(texts) else ""

    def finish(axes: "Axes") -> None:
        axes.axvspan(low, high, color=COLOURS["accent"], alpha=0.1, linewidth=0, zorder=0)
        axes.set(xlim=(0, 1), xlabel="supervised share of a row")
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")

    return _histogram(
        "Supervised share of each row",
        f"{counted(len(shares), 'row')}{median}; shaded: {low:.0%} to {high:.0%}{left_out}",
        shares,
        np.linspace(0, 1, DENSITY_BINS + 1),
        finish,
    )


def length_histogram(dataset: Dataset) -> Histogram:
    """Return how many rows have which length; bins grow with the length."""
    title, lengths = "Length of each row", row_lengths(dataset)
    if not len(lengths):
        return Histogram(title, "nobody recorded where rows end", "")
    low, longest = max(1, int(lengths.min())), int(lengths.max())
    high = max(low, longest) + 1
    edges = np.unique(np.geomspace(low, high, LENGTH_BINS + 1).round().astype(int))
    ticks = np.unique(edges[np.linspace(0, len(edges) - 1, 5).round().astype(int)]).tolist()

    def finish(axes: "Axes") -> None:
        axes.set(xscale="log", xlim=(low, high), xlabel="tokens of a row, logarithmic")
        axes.minorticks_off()
        axes.set_xticks(ticks, [f"{min(tick, longest):,}" for tick in ticks])

    median = int(np.median(lengths))
    note = f"{counted(len(lengths), 'row')}, median {median:,} tokens, longest {longest:,}"
    return _histogram(title, note, np.maximum(lengths, low), edges, finish)


def row_shares(dataset: Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the supervised share of every conversation, and of every document."""
    chats, texts = [np.empty(0)], [np.empty(0)]
    for split in SPLITS:
        for shard in dataset.shards(split):
            if shard.rows is not None and shard.mask is not None:
                length = np.maximum(1, shard.rows["stop"] - shard.rows["start"]).astype(float)
                shares = supervised_in(shard.rows, shard.mask) / length
                text = _is_text(shard)
                chats.append(shares[~text])
                texts.append(shares[text])
    return np.concatenate(chats), np.concatenate(texts)


def _is_text(shard: ShardView) -> NDArray[np.bool_]:
    """Return which rows of a shard are documents."""
    if shard.rows is None or shard.spans is None:
        return np.zeros(0, dtype=bool)
    first = np.searchsorted(shard.spans["conversation"], np.arange(len(shard.rows)))
    role = shard.spans["role"][np.minimum(first, len(shard.spans) - 1)]
    return np.asarray(role == ROLE["text"])


def row_lengths(dataset: Dataset) -> NDArray[np.int64]:
    """Return the tokens of every row; none where nobody recorded rows."""
    shards = (shard for split in SPLITS for shard in dataset.shards(split))
    rows = (shard.rows for shard in shards if shard.rows is not None)
    found = ((one["stop"] - one["start"]).astype(np.int64) for one in rows)
    return np.concatenate([np.empty(0, np.int64), *found])


def _histogram(
    title: str,
    note: str,
    values: NDArray[np.generic],
    edges: NDArray[np.generic],
    finish: "Callable[[Axes], None]",
) -> Histogram:
    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.hist(values, edges.tolist(), rwidth=0.9, color=COLOURS["bar"])
        axes.grid(axis="y")
        axes.locator_params(axis="y", nbins=4, integer=True)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        finish(axes)

    return Histogram(title, note, plot(title, (5.2, 2.2), draw))
