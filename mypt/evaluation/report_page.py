"""An evaluation as one self-contained page: figures, plots, answers; nothing is loaded."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mypt.data.manifest import MaskStats, read_manifest
from mypt.data.reading.exercises import TASKS
from mypt.evaluation.exact_match import interval
from mypt.evaluation.scores import EvaluationReport, ModelScores, PairScores, harness_metrics
from mypt.pages.render import COLOURS, plot, render
from mypt.references import CheckpointRef
from mypt.text import shorten, visible
from mypt.training.checkpoints.state import read_history

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_POINTS = 300
"""Points of a loss curve; each is the mean of as many steps as that takes."""
_NARROW, _WIDE = 8, 5000
"""Ratios of losses below which ticks stand evenly, and above which at powers of ten alone."""
Points = list[tuple[float, float]]
_SUPERVISED = COLOURS["accent"]
_DRAWN_IN = {"base": COLOURS["soft"], "fine-tuned": COLOURS["accent"], "model": COLOURS["accent"]}


def plots(report: EvaluationReport) -> dict[str, str]:
    """Return an SVG element for each title, or a line where there is no curve to draw.

    Raises:
        CheckpointError: If a checkpoint's history is damaged.
        ManifestError: If the dataset is.
    """
    models = {"base": report.base, "fine-tuned": report.sft} if report.base else {}
    models = models or {"model": report.sft}
    history = {name: loss_curve(scores.checkpoint) for name, scores in models.items()}
    sure = {name: _sureness(scores) for name, scores in models.items()}
    drawings: dict[str, str | Callable[[Figure], object]] = {
        "Loss while training": _no_curve(history, "at step {:g}: {:.4f} nats a supervised token")
        or partial(_history, curves=history),
        "Loss by class of token": partial(_classes, models=models),
        "Calibration": _no_curve(sure, "{:.1%} sure of the likeliest token, right in {:.1%}")
        or partial(_calibration, curves=sure),
    }
    if (record := read_manifest(Path(report.dataset.path)).mask) is not None:
        drawings["Supervised share of the chat data"] = partial(_density, stats=record.stats)
    return {
        title: draw if isinstance(draw, str) else plot(title, (6.4, 3.2), draw)
        for title, draw in drawings.items()
    }


def _no_curve(curves: dict[str, Points], said: str) -> str:
    """Return what single points say in words; nothing where one of the curves has more."""
    if any(len(points) > 1 for points in curves.values()):
        return ""
    found = [
        f"{name}, {said.format(*point)}" for name, points in curves.items() for point in points
    ]
    return f"No curve, since there is one point at most: {'; '.join(found) or 'none'}."


def _history(figure: "Figure", curves: dict[str, Points]) -> None:
    axes = figure.subplots()
    for name, points in curves.items():
        if points:
            axes.plot(*zip(*points, strict=True), label=name, color=_DRAWN_IN[name])
    axes.set(xlabel="optimizer step", ylabel="nats a supervised token", yscale="log")
    plain_ticks(axes)
    _finish(figure, axes)


def loss_curve(checkpoint: CheckpointRef) -> Points:
    """Return (step, mean loss) of a training's steps, as many to a point as are easily drawn.

    Raises:
        CheckpointError: If the checkpoint's history is damaged.
    """
    loss = np.array(read_history(Path(checkpoint.path), checkpoint.step).loss)
    lots = np.array_split(np.arange(len(loss)), min(_POINTS, max(1, len(loss))))
    known = [lot[np.isfinite(loss[lot])] for lot in lots]
    return [(float(lot.mean()) + 1, float(loss[lot].mean())) for lot in known if len(lot)]


def plain_ticks(axes: "Axes") -> None:
    """Write 0.5, 1, 2 and so on beside a logarithmic axis: losses seldom span a power of ten."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    low, high = axes.get_ylim()
    narrow, wide = high / low < _NARROW, high / low > _WIDE
    steps = (1.0,) if wide else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(MaxNLocator(5) if narrow else LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _classes(figure: "Figure", models: dict[str, ModelScores]) -> None:
    axes = figure.subplots()
    for index, (name, scores) in enumerate(models.items()):
        found = scores.tokens.groups["class"] if scores.tokens else {}
        places = np.arange(len(found)) + 0.4 * (index - (len(models) - 1) / 2)
        axes.bar(
            places, [group.loss for group in found.values()], 0.4, label=name, color=_DRAWN_IN[name]
        )
        axes.set_xticks(range(len(found)), list(found))
    axes.set(ylabel="nats a token")
    _finish(figure, axes)


def _sureness(scores: ModelScores) -> Points:
    bins = scores.tokens.calibration if scores.tokens else ()
    return [(found.confidence, found.accuracy) for found in bins]


def _calibration(figure: "Figure", curves: dict[str, Points]) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=COLOURS["bar"], linestyle="--", linewidth=1, label="calibrated")
    for name, points in curves.items():
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=name, color=_DRAWN_IN[name])
    axes.set(xlabel="how sure of the likeliest token", ylabel="how often it was right")
    _finish(figure, axes)


def _density(figure: "Figure", stats: MaskStats) -> None:
    """Draw whose tokens are supervised."""
    axes = figure.subplots()
    found = {"all": stats.total, **stats.by_role, **stats.by_source}
    axes.barh(range(len(found)), [density.density for density in found.values()], color=_SUPERVISED)
    axes.set_yticks(range(len(found)), [shorten(name, 40) for name in found])
    axes.invert_yaxis()
    axes.set(xlabel="share of tokens that are supervised", xlim=(0, 1))


def _finish(figure: "Figure", axes: "Axes") -> None:
    axes.grid(axis="y")
    drawn = axes.get_legend_handles_labels()[1]
    if len(drawn) > 1:  # above the plot: inside it covers what is drawn there
        figure.legend(loc="outside upper right", ncols=len(drawn))


def render_page(report: EvaluationReport) -> str:
    """Return the page; what models and data hold goes in as text.

    Raises:
        CheckpointError: If a checkpoint's history is damaged.
        ManifestError: If the dataset is.
    """
    return render(
        "evaluation.html",
        styles=["page.css", "evaluation.css"],
        report=report,
        headings=list(report.models),
        tiles=_pair_tiles(report.pairs) | _tiles(report.sft),
        scored=_scored(report),
        figures=_figures(list(report.models.values())),
        changes=_changes(report),
        group_headings=_group_headings(report),
        groups=_groups(report),
        plots=plots(report),
        **_asked(report.sft),
    )


def _asked(model: ModelScores) -> dict[str, Any]:
    """Return the questions of files with what was said, wrong answers first."""
    answers = [found for found in model.answers if found.task not in TASKS]
    if not answers:
        return {"asked": ()}
    right = sum(answer.right for answer in answers)
    low, high = interval(right, len(answers))
    return {
        "asked_summary": f"{right} of {len(answers)} right, word for word:"
        f" {right / len(answers):.1%}, 95 % between {low:.1%} and {high:.1%}.",
        "asked": [
            (
                found.question,
                [*map(visible, (found.expected, found.said)), "" if found.right else "wrong"],
            )
            for found in sorted(answers, key=lambda found: found.right)
        ],
    }


def _pair_tiles(found: PairScores | None) -> dict[str, str]:
    """Return what became of held-out preference pairs."""
    if found is None:
        return {}
    return {
        f"of {found.pairs:,} pairs moved towards the chosen side": f"{found.accuracy:.1%}",
        "nats of margin, the mean of pairs": f"{found.margin:+.3f}",
    }


def _scored(report: EvaluationReport) -> str:
    """Return what the losses are means of: another number of batches gives other losses."""
    model, most = report.sft, report.eval_iters
    batches = f", in at most {most:,} batches (eval_iters {most}; 0 scores all)" if most else ""
    asked = f" {model.asked:,} held-out questions were asked." if model.asked else ""
    return (
        f"Each loss is a mean over {model.supervised:,} of {model.available:,} supervised tokens of"
        f" the validation split{batches}.{asked}"
    )


def _tiles(model: ModelScores) -> dict[str, str]:
    """Return what a reader looks for first; nothing that was not measured."""
    shares = {
        "exact match": model.exact_match.get("overall"),
        "answers that stop": model.stop_recall,
        "answers that leak role tags": model.leak_rate,
        "tokens right": model.tokens.all.accuracy if model.tokens else None,
    }
    return {f"nats a token, over {model.supervised:,}": f"{model.val_loss:.4f}"} | {
        name: f"{share:.1%}" for name, share in shares.items() if share is not None
    }


def _changes(report: EvaluationReport) -> list[tuple[str, list[str]]]:
    """Return of each set of data: its tokens, the loss before and after, how sure the change is."""
    return [
        (
            name,
            [
                f"{found.tokens:,}",
                f"{found.before:.4f}",
                f"{found.after:.4f}",
                f"{found.low:+.4f} to {found.high:+.4f}",
                f"{found.change:+.4f}",
            ],
        )
        for name, found in report.sets.items()
    ]


def _figures(models: list[ModelScores]) -> list[tuple[str, list[str]]]:
    """Return each figure of all models, as text; of none where no model was asked."""
    tokens = [scores.tokens for scores in models]
    tasks = dict.fromkeys(task for scores in models for task in scores.exact_match)
    values: dict[str, list[float | None]] = {
        "loss, nats a token": [scores.val_loss for scores in models],
        "perplexity": [scores.perplexity for scores in models],
        "pairs whose chosen side is likelier": [scores.preferred for scores in models],
        "bits per byte": [t.bits_per_byte if t else None for t in tokens],
        "accuracy of tokens": [t.all.accuracy if t else None for t in tokens],
        "stop recall, where a turn ends": [t.stop_recall if t else None for t in tokens],
        "false stops": [t.false_stops if t else None for t in tokens],
        **{f"exact match, {task}": [s.exact_match.get(task) for s in models] for task in tasks},
        "answers that stop": [scores.stop_recall for scores in models],
        "answers that leak role tags": [scores.leak_rate for scores in models],
        "repeated stretches": [scores.repetition for scores in models],
        **{
            f"harness, {task}, {name}": [s.harness.get(task, {}).get(name) for s in models]
            for task, name in harness_metrics(models)
        },
    }
    return [
        (name, ["" if value is None else f"{value:.4f}" for value in row])
        for name, row in values.items()
        if any(value is not None for value in row)
    ]


def _group_headings(report: EvaluationReport) -> list[str]:
    if report.base is None:
        return ["tokens", "loss", "right"]
    return ["tokens", "loss, base", "fine-tuned", "right, base", "fine-tuned"]


def _groups(report: EvaluationReport) -> dict[str, list[tuple[str, list[str]]]]:
    """Return by group: of each member its tokens, and the loss and accuracy of each model."""
    models = [scores.tokens for scores in (report.base, report.sft) if scores and scores.tokens]
    if not models:
        return {}
    return {
        group: [
            (
                name,
                [f"{found.tokens:,}"]
                + [f"{of.groups[group][name].loss:.3f}" for of in models]
                + [f"{of.groups[group][name].accuracy:.1%}" for of in models],
            )
            for name, found in members.items()
        ]
        for group, members in models[-1].groups.items()
    }
