"""Runs of one pipeline under different settings, side by side: which is best, and how surely."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mypt import files
from mypt.config import EvaluateConfig
from mypt.data.dataset import Dataset
from mypt.errors import CheckpointError
from mypt.evaluation.breakdown import paired_interval
from mypt.evaluation.exact_match import counts
from mypt.evaluation.measuring import load_subject, open_data, tokens_of
from mypt.evaluation.report_page import loss_curve, plain_ticks
from mypt.evaluation.scores import EvaluationReport, ModelScores
from mypt.evaluation.token_scores import TokenScores
from mypt.pages.render import COLOURS, plot, render
from mypt.parsing import Frozen
from mypt.references import DatasetRef, HomePath
from mypt.text import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXACT_MATCH, LOSS = "exact match", "loss"
_OWN: dict[str, Any] = {"color": COLOURS["accent"], "linewidth": 1.4}
_OTHER: dict[str, Any] = {"color": COLOURS["soft"], "linewidth": 0.8, "alpha": 0.35}
_PANELS = 24
"""Most combinations whose curves a page shows."""


class SweptRun(Frozen):
    """One run of a sweep, and what its own evaluation says."""

    settings: dict[str, str]
    """What was varied, and how, but for the seed."""
    seed: int
    policy: str
    """Whose tokens the fine-tuned model learned, in words."""
    mask_density: float
    scores: ModelScores
    """Of the fine-tuned model, as its summary has them."""
    evaluation: HomePath
    """The whole report, as a file."""
    digest: str
    """Of that file."""

    @property
    def name(self) -> str:
        """What tables call the run's combination."""
        return named(self.settings)


class Compared(Frozen):
    """A figure of one combination, beside that of the one in front."""

    mean: float
    """Over its seeds."""
    change: float
    low: float
    """The 95 % interval of the change, from paired draws of seeds and of questions or rows."""
    high: float


class Ranked(Frozen):
    """One combination of settings, over all its seeds."""

    settings: dict[str, str]
    seeds: int
    val_loss: float
    """Nats per token that it learns itself: another mask is a mean over other tokens."""
    exact_match: Compared | None
    """None where nothing was asked."""
    loss: Compared | None
    """Over the tokens that the first combination learns; None where they are not the same ones,
    since tokenizer or block size differ."""

    @property
    def name(self) -> str:
        """What tables call it."""
        return named(self.settings)


class SweepReport(Frozen):
    """What a sweep came to: ``sweep.json``."""

    name: str
    """The pipeline's."""
    figure: str
    """By which they are ranked: exact match, but loss where all answer alike or nothing was asked;
    empty where neither can be compared."""
    ranked: tuple[Ranked, ...]
    """The one in front first."""
    best: str
    """The one in front if it is surely better than all others, else empty."""
    why: str
    """In words."""
    runs: tuple[SweptRun, ...]
    """In the order in which they ran."""


@dataclass(frozen=True, slots=True)
class _Figure:
    """One figure of a combination with S seeds, over N questions or rows."""

    mean: float
    parts: NDArray[np.float64]
    """(S, N) each times its weight."""
    weight: NDArray[np.float64 | np.int64]
    """(N,)"""


def named(settings: Mapping[str, str]) -> str:
    """Return settings as one line; of none, that only seeds differ."""
    return ", ".join(f"{knob}={value}" for knob, value in settings.items()) or "as in the file"


def rank(
    name: str, runs: Sequence[SweptRun], dataset: DatasetRef, config: EvaluateConfig
) -> SweepReport:
    """Compare the combinations of a sweep: question by question, and on the same tokens.

    Args:
        name: The pipeline's.
        runs: One a combination and seed; each combination has the same seeds in the same order.
        dataset: Whose validation split all are scored on.
        config: How much of it.

    Raises:
        CheckpointError: If an evaluation was changed.
        MyptError: As :func:`mypt.evaluation.measuring.evaluate_model`.
    """
    groups: dict[str, list[SweptRun]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    exact, loss = _exact_match(groups), _losses(groups, dataset, config)
    figures = {EXACT_MATCH: exact, LOSS: loss}
    order = list(groups)
    if loss:
        order.sort(key=lambda group: loss[group].mean)
    if exact:
        order.sort(key=lambda group: -exact[group].mean)  # where they are alike, by loss
    differ = len({one.parts.tobytes() for one in exact.values()}) > 1
    figure = EXACT_MATCH if differ or (exact and not loss) else LOSS if loss else ""
    compared = {word: _compared(found, order[0]) for word, found in figures.items()}
    ranked = tuple(
        Ranked(
            settings=groups[group][0].settings,
            seeds=len(groups[group]),
            val_loss=fmean(run.scores.val_loss for run in groups[group]),
            exact_match=compared[EXACT_MATCH].get(group),
            loss=compared[LOSS].get(group),
        )
        for group in order
    )
    sure, why = _verdict(figure, {group: compared[figure][group] for group in order if figure})
    best = order[0] if sure else ""
    return SweepReport(
        name=name, figure=figure, ranked=ranked, best=best, why=why, runs=tuple(runs)
    )


def _compared(figures: dict[str, _Figure], front: str) -> dict[str, Compared]:
    found = {}
    for group, figure in figures.items():
        low, high = paired_interval(figure.parts - figures[front].parts, figure.weight)
        change = figure.mean - figures[front].mean
        found[group] = Compared(mean=figure.mean, change=change, low=low, high=high)
    return found


def _verdict(figure: str, compared: dict[str, Compared]) -> tuple[bool, str]:
    """Say whether the first is surely the best.

    Each of the others must be surely worse, so the more there are, the harder it is for chance.
    """
    if not figure:
        return False, "nothing was asked, and tokenizers or block sizes differ: not comparable"
    front, *others = compared
    if not others:
        return False, "there is nothing to compare it with"
    for group in others:
        found = compared[group]
        if found.low <= 0 <= found.high:
            return False, (
                f"no best: {group} may be as good as {front}, {figure} {found.change:+.4f}, 95 %"
                f" between {found.low:+.4f} and {found.high:+.4f}"
            )
    return True, (
        f"best: {front}; the 95 % interval of the {figure} of"
        f" {counted(len(others), 'other combination')} excludes its own"
    )


def _exact_match(groups: dict[str, list[SweptRun]]) -> dict[str, _Figure]:
    """Return each combination's answers, a task weighing the same whatever it asks."""
    found = {}
    for group, runs in groups.items():
        if any("overall" not in run.scores.exact_match for run in runs):
            return {}
        hits = [_report(run).sft.hits for run in runs]
        tasks = {task: len(marks) for task, marks in hits[0].items() if counts(task)}
        if not tasks:
            return {}
        weight = np.concatenate([np.full(n, 1 / n) for n in tasks.values()])
        marks = [[int(mark) for task in tasks for mark in of[task]] for of in hits]
        means = [run.scores.exact_match["overall"] for run in runs]
        found[group] = _Figure(fmean(means), np.array(marks) * weight, weight)
    same = len({figure.parts.shape for figure in found.values()}) == 1
    return found if same else {}  # a sweep over what is asked


def _report(run: SweptRun) -> EvaluationReport:
    path = Path(run.evaluation)
    if files.digest_file(path) != run.digest:
        raise CheckpointError(f"{path} was changed; remove its folder and sweep again")
    return EvaluationReport.model_validate_json(path.read_bytes())


def _losses(
    groups: dict[str, list[SweptRun]], dataset: DatasetRef, config: EvaluateConfig
) -> dict[str, _Figure]:
    """Return each combination's losses by row of the same tokens."""
    data, first = open_data(dataset), None
    found = {}
    for group, runs in groups.items():
        losses, means = [], []
        for run in runs:
            scored = _scored(run, data, config)
            first = first or scored
            if scored is None or first is None or not np.array_equal(scored.places, first.places):
                return {}
            rows, row = np.unique(scored.places["row"], return_inverse=True)
            losses.append(np.bincount(row, scored.loss.astype(np.float64), len(rows)))
            means.append(scored.mean)
        found[group] = _Figure(fmean(means), np.array(losses), np.bincount(row))
    return found


def _scored(run: SweptRun, data: Dataset, config: EvaluateConfig) -> TokenScores | None:
    subject = load_subject(run.scores.checkpoint)
    same = subject.tokenizer.digest == data.tokenizer.digest
    return tokens_of(subject, data, config) if same else None


def render_page(report: SweepReport) -> str:
    """Return the page: the table, and the curves of all combinations side by side.

    Raises:
        CheckpointError: If a checkpoint's history is damaged.
    """
    headings = ["seeds", "density", "own loss"]
    for figure in (EXACT_MATCH, LOSS):
        headings += [figure, "change", "95 %"]
    density = {run.name: run.mask_density for run in report.runs}
    return render(
        "sweep.html",
        styles=["page.css", "evaluation.css"],
        report=report,
        headings=headings,
        rows=[(one.name, _row(one, density[one.name])) for one in report.ranked],
        run_headings=["seed", "checkpoint", "own loss", "exact match"],
        runs=[(run.name, _run_row(run)) for run in report.runs],
        plots=_plots(report),
        left_out=max(0, len(report.ranked) - _PANELS),
    )


def _row(one: Ranked, density: float) -> list[str]:
    cells = [str(one.seeds), f"{density:.1%}", f"{one.val_loss:.4f}"]
    for figure in (one.exact_match, one.loss):
        cells += (
            [
                f"{figure.mean:.4f}",
                f"{figure.change:+.4f}",
                f"{figure.low:+.4f} to {figure.high:+.4f}",
            ]
            if figure
            else ["", "", ""]
        )
    return cells


def _run_row(run: SweptRun) -> list[str]:
    scores = run.scores
    exact = scores.exact_match.get("overall")
    shown = "" if exact is None else f"{exact:.4f}"
    return [str(run.seed), scores.checkpoint.digest[:12], f"{scores.val_loss:.4f}", shown]


def _plots(report: SweepReport) -> dict[str, str]:
    """Return a panel for each combination: its curves before those of all others."""
    curves = {
        run.scores.checkpoint.digest: loss_curve(run.scores.checkpoint) for run in report.runs
    }
    return {
        one.name: plot(
            f"Loss of {one.name}",
            (4.2, 2.4),
            partial(_panel, name=one.name, report=report, curves=curves),
        )
        for one in report.ranked[:_PANELS]
    }


def _panel(
    figure: "Figure",
    name: str,
    report: SweepReport,
    curves: dict[str, list[tuple[float, float]]],
) -> None:
    axes = figure.subplots()
    drawn = sorted(report.runs, key=lambda run: run.name == name)  # its own above the others
    for run in drawn:
        points = curves[run.scores.checkpoint.digest]
        own = run.name == name
        if points:
            axes.plot(*zip(*points, strict=True), **(_OWN if own else _OTHER))
    axes.set(yscale="log")
    plain_ticks(axes)
    axes.grid(axis="y")
