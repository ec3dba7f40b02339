"""Where a model is good and where it is not: its scored tokens, grouped and compared."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mypt.data.dataset import Dataset
from mypt.data.spans import ROLES
from mypt.errors import ConfigError, DataError
from mypt.evaluation.exact_match import interval
from mypt.evaluation.scores import Calibration, Difference, GroupScore, PairScores, TokenReport
from mypt.evaluation.token_scores import TokenScores
from mypt.training.batches.groups import CLASSES

_BINS = 10
_DRAWS = 1000
_SEED = 0
_LATER = 5
"""Turns from this one on are one group."""
_LENGTHS = (64, 256, 1024)
"""Conversations shorter than each of these are a group, longer ones the last."""


def describe(scores: TokenScores, dataset: Dataset) -> TokenReport:
    """Return loss, perplexity and accuracy by class, role, turn, source and length."""
    places = scores.places
    stops = np.isin(places["token"], dataset.tokenizer.stop_ids)
    n_bytes = int(places["n_bytes"].sum(dtype=np.int64))
    names = [source.name for source in dataset.manifest.sources]
    turns = np.minimum(places["turn"], _LATER)
    lengths = np.searchsorted(_LENGTHS, places["length"], side="right")
    limits = [f"below {limit:,}" for limit in _LENGTHS] + [f"{_LENGTHS[-1]:,} and more"]
    groups: dict[str, tuple[NDArray[np.integer], list[str]]] = {
        "class": (places["klass"], list(CLASSES)),
        "role": (places["role"], list(ROLES)),
        "turn": (turns, [*map(str, range(1, _LATER + 1)), f"{_LATER + 1} and later"]),
        "source": (places["source"], names),
        "length": (lengths, limits),
    }
    return TokenReport(
        all=_group(scores, np.ones(len(stops), bool)),
        groups={group: _groups(scores, *of) for group, of in groups.items()},
        stop_recall=_share(scores.said_stop[stops]),
        false_stops=_share(scores.said_stop[~stops]),
        bits_per_byte=(
            float(scores.loss.sum(dtype=np.float64)) / math.log(2) / n_bytes if n_bytes else None
        ),
        calibration=_calibration(scores),
    )


def difference(before: TokenScores, after: TokenScores) -> Difference:
    """Return by how much the loss changed, with an interval from paired resampling.

    Conversations are drawn, not tokens, since the tokens of one are alike; the same draw goes to
    both models. Both must have been scored on the same tokens.

    Raises:
        ConfigError: If they were not, since their block sizes differ.
    """
    _check_same(before, after)
    rows, row = np.unique(before.places["row"], return_inverse=True)
    change = np.bincount(row, after.loss.astype(np.float64) - before.loss).astype(np.float64)
    low, high = paired_interval(change[None], np.bincount(row))
    return Difference(
        before=before.mean,
        after=after.mean,
        change=after.mean - before.mean,
        low=low,
        high=high,
        tokens=len(before.loss),
        rows=len(rows),
    )


def paired_interval(
    change: NDArray[np.float64], weight: NDArray[np.float64 | np.int64]
) -> tuple[float, float]:
    """Return the 95 % interval of a mean change, from 1,000 paired draws.

    Drawn are rows, and seeds where there are several: the same ones for both sides of a change.

    Args:
        change: (S, N) of S seeds and N rows, each times the row's weight.
        weight: (N,) of the rows, such as their tokens.
    """
    random = np.random.default_rng(_SEED)
    n_seeds, n_rows = change.shape
    means = []
    for _ in range(_DRAWS):
        some = random.integers(0, n_rows, n_rows)
        seeds = random.integers(0, n_seeds, n_seeds) if n_seeds > 1 else slice(None)
        means.append(float(change[seeds].mean(axis=0)[some].sum() / weight[some].sum()))
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return low, high


def compare_pairs(before: TokenScores, after: TokenScores) -> PairScores:
    """Return how much more the chosen sides of preference pairs gained than the rejected ones.

    Args:
        before: Both sides of held-out pairs, by the model that training began with.
        after: The same tokens, by what it made.

    Raises:
        ConfigError: As :func:`difference`.
    """
    _check_same(before, after)
    gains = _by_side(before) - _by_side(after)  # nats lost are log-probability gained
    margins = gains[:, 0] - gains[:, 1]
    hits = int((margins > 0).sum())
    low, high = interval(hits, len(margins))
    margin_low, margin_high = paired_interval(margins[None], np.ones(len(margins)))
    return PairScores(
        pairs=len(margins),
        accuracy=hits / len(margins),
        low=low,
        high=high,
        margin=float(margins.mean()),
        margin_low=margin_low,
        margin_high=margin_high,
    )


def share_preferred(scores: TokenScores) -> float:
    """Return the share of preference pairs whose chosen side is likelier than the rejected one."""
    nats = _by_side(scores)
    return float((nats[:, 0] < nats[:, 1]).mean())


def _by_side(scores: TokenScores) -> NDArray[np.float64]:
    """Return (P, 2) summed nats of the chosen and the rejected side of each pair that was scored.

    Raises:
        DataError: If none was.
    """
    row = scores.places["row"].astype(np.int64)
    size = 2 * (int(row.max(initial=-1)) // 2 + 1)
    there = np.bincount(row, minlength=size).reshape(-1, 2).all(1)
    if not there.any():
        raise DataError("no preference pair of val was scored on both sides; raise block_size")
    nats = np.zeros(size)
    np.add.at(nats, row, scores.loss)
    return nats.reshape(-1, 2)[there]


def _check_same(before: TokenScores, after: TokenScores) -> None:
    if not np.array_equal(before.places, after.places):
        raise ConfigError(
            "two models of different block_size were scored on different tokens; compare a model"
            " with what was fine-tuned from it"
        )


def _groups(
    scores: TokenScores, member: NDArray[np.integer], names: Iterable[str]
) -> dict[str, GroupScore]:
    return {
        name: _group(scores, member == index)
        for index, name in enumerate(names)
        if (member == index).any()
    }


def _group(scores: TokenScores, chosen: NDArray[np.bool_]) -> GroupScore:
    loss = float(scores.loss[chosen].mean(dtype=np.float64))
    return GroupScore(
        tokens=int(chosen.sum()),
        loss=loss,
        perplexity=math.exp(loss),
        accuracy=float(scores.hit[chosen].mean()),
    )


def _share(found: NDArray[np.bool_]) -> float | None:
    return float(found.mean()) if len(found) else None


def _calibration(scores: TokenScores) -> tuple[Calibration, ...]:
    """Return how often the likeliest token was right, by how sure the model was of it."""
    number = np.minimum((scores.confidence * _BINS).astype(int), _BINS - 1)
    return tuple(
        Calibration(
            tokens=int((number == index).sum()),
            confidence=float(scores.confidence[number == index].mean(dtype=np.float64)),
            accuracy=float(scores.hit[number == index].mean()),
        )
        for index in range(_BINS)
        if (number == index).any()
    )
