"""What the Prefect UI shows of a run: the only file that imports pandas or draws plots."""

import base64
import io
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
import pandas as pd
from matplotlib.figure import Figure
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.runtime import flow_run
from pydantic import Field

from mypt.data.manifest import Density, MaskStats
from mypt.evaluation.ranking import SweepReport
from mypt.inspection.checks.findings import LEVELS, ValidationReport
from mypt.pages.render import plot
from mypt.parsing import Frozen
from mypt.text import counted, markdown, shorten, visible
from tasks.tracking.destination import mlflow_url
from tasks.tracking.records import Metrics, now, read

_PATIENCE = 2.0
"""Seconds that all artifacts of a process wait in all for a Prefect API that does not answer."""
_LINK_SECONDS = 60.0
_waited = 0.0
Curve = Sequence[tuple[int, float]]
Link = Callable[[], str | None]
"""Gives a page's address as soon as it is known."""
_PANELS = (
    ("nats per supervised token", ("loss", "val_loss")),
    ("supervised share of a step", ("batch_density",)),
    ("learning rate", ("learning_rate",)),
)
_DIGITS = 4
"""Of a figure, behind the point; MLflow has all of them."""
_BUSY = 503
_LONGEST = 160
_POINTS = 500
"""Most points of a curve; a longer one is thinned evenly."""


class Shown(Frozen):
    """One part of a run's page in Prefect."""

    key: str
    """By which Prefect finds the same part of other runs."""
    description: str
    rows: tuple[dict[str, Any], ...] = ()
    """Of a table."""
    text: str = ""
    """Markdown; empty for a table."""
    page: tuple[str, str] | None = None
    """A journal, and the file of its run in MLflow that a link below the text leads to."""


class MadeBy(Frozen):
    """When a stage was made and by which flow run, and what that run's page showed of it."""

    time: int = Field(default_factory=now)
    flow_run: str | None = Field(default_factory=lambda: flow_run.id)
    """Its id; None outside of Prefect."""
    name: str = Field(default_factory=lambda: flow_run.name or "")
    shown: tuple[Shown, ...] = ()

    def __str__(self) -> str:
        return self._said(self.name)

    def show_again(self) -> None:
        """Show on the page of this run what that one showed, and say so."""
        note = self._said(f"[{markdown(self.name)}](/runs/flow-run/{self.flow_run})")
        for part in self.shown:
            show(part, f"Reused, {note}. ")  # first, since lists cut descriptions

    def _said(self, run: str) -> str:
        when = datetime.fromtimestamp(self.time / 1000, UTC)
        by = f" by flow run {run}" if self.flow_run else ""
        return f"made {when:%Y-%m-%d %H:%M} UTC{by}"


_kept: ContextVar[list[Shown] | None] = ContextVar("shown", default=None)


@contextmanager
def collected() -> Iterator[list[Shown]]:
    """Yield the list of what the block shows, in Prefect or not."""
    shown: list[Shown] = []
    token = _kept.set(shown)
    try:
        yield shown
    finally:
        _kept.reset(token)


def mask_statistics(name: str, stats: MaskStats) -> None:
    """Show whose tokens a mask supervises."""
    groups = {
        "": {"all": stats.total},
        "split": stats.by_split,
        "role": stats.by_role,
        "source": stats.by_source,
    }
    rows = [
        _density(f"{group} {member}".strip(), density)
        for group, members in groups.items()
        for member, density in members.items()
    ]
    description = (
        f"Supervised tokens of {name}: {stats.total.density:.1%}."
        f" {stats.rows_unsupervised:,} of {stats.rows:,} rows have none."
    )
    _table(f"mask-statistics-{name}", pd.DataFrame(rows), description)


def validation_findings(name: str, report: ValidationReport) -> None:
    """Show what a validation found, worst first."""
    frame = pd.DataFrame(
        [
            {
                "level": finding.level,
                "finding": finding.code,
                "count": finding.count,
                "meaning": finding.message,
                "for example": "; ".join(str(place) for place in finding.examples[:3]),
            }
            for finding in report.findings
        ],
        columns=["level", "finding", "count", "meaning", "for example"],
    )
    counts = ", ".join(counted(report.count(level), level) for level in LEVELS)
    _table(f"validation-{name}", frame, f"{name}: {counts}.")


def scores(name: str, columns: Mapping[str, Mapping[str, float | None]]) -> None:
    """Show the figures of several models side by side, one column a model."""
    frame = pd.DataFrame(columns).round(_DIGITS).rename_axis("figure").reset_index()
    description = (
        f"Evaluation of {name}, figures named as in MLflow: losses in nats per supervised token,"
        " shares from 0 to 1."
    )
    _table(f"evaluation-{name}", frame, description)


def ranking(name: str, report: SweepReport) -> None:
    """Show the combinations of a sweep, the one in front first."""
    rows = []
    for one in report.ranked:
        row: dict[str, Any] = {"combination": one.name, "own loss": one.val_loss}
        for what, figure in (("exact match", one.exact_match), ("loss", one.loss)):
            if figure:
                interval = f"{figure.low:+.{_DIGITS}f} to {figure.high:+.{_DIGITS}f}"
                row |= {what: figure.mean, f"{what}: 95 % of the change": interval}
        rows.append(row)
    frame = pd.DataFrame(rows).round(_DIGITS)
    _table(f"sweep-{name}", frame, f"Sweep of {name}: {report.why}.")


def loss_curves(
    name: str,
    curves: Mapping[str, Curve],
    groups: Mapping[str, Mapping[str, tuple[float, float]]],
) -> None:
    """Show losses in nats per supervised token over optimizer steps, and what the last are made of.

    Args:
        name: The model's.
        curves: By what they are called.
        groups: By source, class and role: of training, of validation.
    """
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for label, curve in curves.items():
        if curve:
            axes.plot(*zip(*curve, strict=True), label=label, marker="o" if len(curve) < 30 else "")
    axes.set(xlabel="optimizer step", ylabel="nats per supervised token", title=name)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    image = base64.b64encode(buffer.getvalue()).decode()
    text = f"![losses of {name}](data:image/png;base64,{image})"
    rows: list[tuple[str, ...]] = [("", "group", "train", "val"), ("---",) * 4]
    for by, members in groups.items():
        for member, losses in members.items():
            figures = ("" if math.isnan(loss) else f"{loss:.{_DIGITS}f}" for loss in losses)
            rows.append((by, markdown(member), *figures))
    if len(rows) > 2:
        text += "\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)
    about = f"Losses of {name} over optimizer steps."
    show(Shown(key=artifact_key(f"loss-{name}"), description=about, text=text))


def mlflow_link(title: str, where: str, url: Link) -> None:
    """Show where the same run is in MLflow, as soon as ``url`` says so."""

    def link() -> None:
        found = _awaited(url)
        if found is not None:  # else MLflow is away; whoever waits for it says so
            text = f"[{markdown(title)} in MLflow]({found}), kept in `{where}`"
            about = "The way to the same run in MLflow."
            create_markdown_artifact(visible(text), key="mlflow-run", description=about)

    _publish(link, wait=False)


def preview(name: str, text: str, page: tuple[str, str]) -> None:
    """Show some rows of a dataset, and where all of its preview page is, as soon as it is known.

    Args:
        name: The dataset's.
        text: The rows.
        page: The journal of the run in MLflow that has the whole page, and the page's name there.
    """
    about = f"Rows of {name}."
    show(Shown(key=artifact_key(f"preview-{name}"), description=about, text=text, page=page))


def show(part: Shown, note: str = "") -> None:
    """Show a part on the page of the Prefect run that is open.

    Args:
        part: What to show.
        note: What is said before its description.
    """
    if (kept := _kept.get()) is not None:
        kept.append(part)

    def create() -> None:
        # Every value in it was made plain where it stands; what steers a terminal is none anywhere.
        described, text = visible(f"{note}{part.description}"), visible(part.text)
        if not part.text:
            create_table_artifact(list(part.rows), key=part.key, description=described)
            return
        found = _awaited(partial(mlflow_url, *part.page)) if part.page else None
        more = f"\n\n[More rows, with the reason for each token, in MLflow]({found})"
        text += more if found else ""
        create_markdown_artifact(text, key=part.key, description=described)

    _publish(create, wait=part.page is None)


def _awaited(url: Link) -> str | None:
    deadline = time.monotonic() + _LINK_SECONDS
    while (found := url()) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _density(group: str, density: Density) -> dict[str, Any]:
    return {
        "tokens of": group,
        "tokens": density.tokens,
        "supervised": density.supervised,
        "density": f"{density.density:.1%}",
    }


def _table(key: str, frame: pd.DataFrame, description: str) -> None:
    rows = frame.map(_cell).astype(object).where(frame.notna(), None).to_dict("records")
    show(Shown(key=artifact_key(key), description=description, rows=tuple(rows)))


def _cell(value: Any) -> Any:
    """Return what JSON can hold of a figure, and a text as Markdown, which Prefect takes it for."""
    infinite = isinstance(value, float) and math.isinf(value)
    return markdown(str(value)) if infinite or isinstance(value, str) else value


def away(error: Exception) -> str:
    """Return in one line why Prefect's API did not take something, and that no harm is done."""
    if isinstance(error, httpx.HTTPStatusError):
        code = error.response.status_code
        why = f"it answered {code}{', too busy' if code == _BUSY else ''}"
    elif isinstance(error, httpx.HTTPError):
        why = f"it did not answer ({type(error).__name__})"
    else:
        why = shorten(str(error), _LONGEST) or type(error).__name__
    return f"{why}; the work goes on without"


def artifact_key(text: str) -> str:
    """Return ``text`` as Prefect wants keys: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _publish(create: Callable[[], object], *, wait: bool = True) -> None:
    """Call ``create`` in a Prefect run; an API that is away costs two seconds once and no run."""
    global _waited
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return

    def attempt() -> None:
        try:
            create()
        except Exception as error:  # a page that is not shown must not stop a training
            sys.stderr.write(f"mypt: an artifact is not shown in Prefect: {away(error)}\n")

    thread = threading.Thread(target=copy_context().run, args=(attempt,), daemon=True)
    thread.start()
    if not wait:
        return
    patience = max(0.0, _PATIENCE - _waited)
    thread.join(patience)
    if thread.is_alive():
        _waited += patience


def training_plot(journal: str, title: str) -> str:
    """Return losses, supervised share and learning rate over steps, as SVG.

    Args:
        journal: Name of the training's journal.
        title: What people call the training.
    """
    curves = _curves(journal)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(_PANELS), sharex=True, height_ratios=(3, 1, 1))
        for panel, (what, names) in zip(axes, _PANELS, strict=True):
            for name in names:
                if curve := _thinned(curves.get(name, [])):
                    panel.plot(*zip(*curve, strict=True), label=name, lw=1, marker=_marker(curve))
            panel.set_ylabel(what, fontsize=8)
            panel.grid(visible=True, alpha=0.3)
        axes[0].set_title(title)
        if axes[0].lines:
            axes[0].legend()
        axes[-1].set_xlabel("optimizer step")

    return plot(title, (8, 7), draw)


def _curves(journal: str) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in read(journal):
        if isinstance(line.record, Metrics):
            for name, value in line.record.values.items():
                curves.setdefault(name, []).append((line.record.step, value))
    return curves


def _thinned(curve: Curve) -> Curve:
    return curve[:: max(1, len(curve) // _POINTS)]


def _marker(curve: Curve) -> str:
    return "o" if len(curve) < 30 else ""
