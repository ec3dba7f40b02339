"""What a checkpoint was trained on, as lines and tables for the terminal."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mypt.text import visible
from mypt.training.exposure import Exposure, RowExposure
from mypt.training.row_lookup import Found
from mypt.training.uses import Uses

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

HEADING = f"{'times':>7} {'learned':>9} {'read':>9}  row"


def row_line(row: RowExposure) -> str:
    """Return one row as a line under :data:`HEADING`."""
    return (
        f"{row.times:>7} {row.learned:>9} {row.read:>9}  {visible(row.file)}:{row.line}"
        f"  ({visible(row.training)}, {visible(row.source)}{', val' * (row.split == 'val')})"
    )


def row_values(row: RowExposure) -> dict[str, Any]:
    """Return one row as JSON values."""
    return row._asdict() | {"passes": round(row.passes, 4)}


def exposure_values(exposure: Exposure) -> dict[str, Any]:
    """Return all but the rows as JSON values."""
    return {
        "sources": [
            source.model_dump() | {"passes": round(source.passes, 4)}
            for source in exposure.sources()
        ],
        "warnings": exposure.warnings(),
        "problems": exposure.problems,
    }


def found_values(found: Found) -> dict[str, Any]:
    """Return what became of one row as JSON values."""
    return {
        "line": found.line,
        "rows": [row_values(row) for row in found.rows],
        "twins": [row_values(row) for row in found.twins],
        "changed": found.changed,
    }


def render_exposure(exposure: Exposure) -> "RenderableType":
    """Return the sources of every training, then warnings and problems.

    Its columns: rows of the training split, those of which anything was learned, tokens
    learned, passes over the supervised tokens, and the most times that one row was learned.
    """
    from rich.console import Group
    from rich.text import Text

    table = _table("training", "source")
    for name in ("rows", "learned", "tokens", "passes", "most"):
        table.add_column(name, justify="right")
    for source in exposure.sources():
        table.add_row(
            Text(visible(source.training)),
            Text(visible(source.source)),
            f"{source.rows:,}",
            f"{source.rows_learned:,}",
            f"{source.learned:,}",
            f"{source.passes:.2f}",
            f"{source.times_most:,}",
        )
    return Group(
        table,
        *(Text(f"warning: {line}", style="yellow") for line in exposure.warnings()),
        *(Text(visible(line), style="red") for line in exposure.problems),
    )


def render_found(found: Found, line: int) -> "RenderableType":
    """Return what became of one row.

    Args:
        found: As :func:`mypt.training.row_lookup.find_row` returned it.
        line: The line that was asked for.
    """
    from rich.console import Group
    from rich.text import Text

    lines = [Text(HEADING, style="dim"), *(Text(row_line(row)) for row in found.rows)]
    if found.line != line:
        lines.insert(0, Text(f"no row begins at line {line}; this one begins before it"))
    for path in found.changed:
        lines.insert(0, Text(f"{visible(path)} held other bytes then; lines are those of then"))
    if found.twins:
        lines += [Text("the same, word for word, also stands in:", style="dim")]
        lines += [Text(row_line(row)) for row in found.twins]
    if not any(row.times for row in (*found.rows, *found.twins)):
        lines.append(Text("no token of it was ever learned"))
    return Group(*lines)


def render_uses(uses: Uses) -> "RenderableType":
    """Return which checkpoints saw something, and by which way."""
    from rich.console import Group
    from rich.text import Text

    table = _table("checkpoint", "through", "as", "dataset", "source")
    for use in uses.uses:
        dataset = Path(use.dataset).name
        cells = (use.name, ", ".join(use.through), use.what, dataset, use.source or "")
        table.add_row(*(Text(visible(cell)) for cell in cells))
    names = {use.checkpoint for use in uses.uses}
    return Group(
        *([table] if uses.uses else []),
        Text(f"{len(names)} of {uses.searched} checkpoints saw it", style="dim"),
        *(Text(visible(line), style="red") for line in uses.problems),
    )


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
