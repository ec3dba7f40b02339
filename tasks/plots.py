"""The course of a training as one picture, drawn from what its journal says."""

import io
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from tasks.records import Metrics, read

Curve = Sequence[tuple[int, float]]
_PANELS = (
    ("nats per supervised token", ("loss", "val_loss")),
    ("supervised share of a step", ("batch_density",)),
    ("learning rate", ("learning_rate",)),
)
_POINTS = 500
"""Most points of a curve; a longer one is thinned evenly."""


def training_plot(journal: str, title: str) -> str:
    """Return losses, supervised share and learning rate over steps, as SVG.

    Args:
        journal: Name of the training's journal.
        title: What people call the training.
    """
    curves = _curves(journal)
    figure = Figure(figsize=(8, 7), layout="constrained")
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
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": title}):  # the same curves are the same bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


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
