"""Two checkpoints side by side as rich prints them."""

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from mypt.inspection.terminal import render_diff
from mypt.provenance.comparison import Comparison, Pair
from mypt.text import visible


def render(diff: Comparison) -> RenderableType:
    """Return what differs: settings, figures, and the rows that were trained on."""
    parts: list[RenderableType] = [
        _table(diff, "differs", diff.settings),
        _table(
            diff,
            "figures",
            {key: (_number(a), _number(b)) for key, (a, b) in diff.metrics.items()},
            "right",
        ),
    ]
    if diff.dataset is None:
        parts.append(Text(visible(diff.dataset_note), style="dim"))
    else:
        parts.append(render_diff(diff.dataset))
    return Group(*parts)


def _table(
    diff: Comparison, title: str, rows: dict[str, Pair], justify: JustifyMethod = "left"
) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(title)
    for name in (diff.a, diff.b):
        table.add_column(Text(visible(name)), justify=justify, overflow="fold")
    for key, cells in rows.items():
        table.add_row(Text(visible(key)), *(Text(visible(cell)) for cell in cells))
    if not rows:
        table.add_row("nothing")
    return table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 1 else f"{value:.4f}"
