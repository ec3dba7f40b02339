"""The command that puts two things side by side; it starts no torch and no Prefect."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from flows.commands.names import full_name
from flows.console import Console, print_json
from mypt.errors import ConfigError
from mypt.parsing import Frozen
from mypt.text import visible

if TYPE_CHECKING:
    from mypt.provenance.comparison import Comparison, Pair


def diff(a: str, b: str, *, json: bool = False) -> int:
    """Compare two datasets, checkpoints or MLflow runs: rows, settings, density, figures.

    Args:
        a: The older dataset; or a model's name or its beginning, its folder or a step folder; or a
            run's id (its first digits will do) or name.
        b: The newer one, of the same kind.
        json: Print the result as JSON.
    """
    a, b = full_name(a), full_name(b)
    kinds = _kind(a), _kind(b)
    if kinds[0] != kinds[1] and "run" in kinds:
        _check_run(a if kinds[0] == "run" else b)
    if kinds[0] != kinds[1]:
        raise ConfigError(
            f"{a} and {b}: a {kinds[0]} and a {kinds[1]}; expected two of the same kind"
        )
    compare = {"dataset": _diff_datasets, "model": _diff_models, "run": _diff_runs}[kinds[0]]
    found, shown = compare(a, b)
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        Console().print(shown)
    return 0


def _kind(text: str) -> Literal["dataset", "model", "run"]:
    from mypt.data.manifest import METADATA
    from mypt.home import models_dir

    folder = Path(text)
    if (folder / METADATA).is_file() or (folder / "train").is_dir():
        return "dataset"
    return "model" if folder.is_dir() or (models_dir() / text).is_dir() else "run"


def _check_run(text: str) -> None:
    """Say that there is no such run either, if so."""
    from flows.environment import prepare_environment

    prepare_environment()
    from tasks.tracking.runs import find_run

    find_run(text)


def _diff_runs(a: str, b: str) -> tuple[Frozen, RenderableType]:
    from flows.environment import prepare_environment

    prepare_environment()
    from tasks.tracking.runs import compare_runs, find_run

    found = compare_runs(find_run(a), find_run(b))
    return found, render(found)


def _diff_datasets(a: str, b: str) -> tuple[Frozen, RenderableType]:
    from mypt.inspection.diff import diff
    from mypt.inspection.terminal import render_diff

    found = diff(Path(a), Path(b))
    return found, render_diff(found)


def _diff_models(a: str, b: str) -> tuple[Frozen, RenderableType]:
    from mypt.home import checkpoint_to_use
    from mypt.provenance import comparison

    found = comparison.compare_checkpoints(checkpoint_to_use(a), checkpoint_to_use(b))
    return found, render(found)


def render(diff: "Comparison") -> RenderableType:
    """Return what differs: settings, figures, and the rows that were trained on."""
    from mypt.inspection.terminal import render_diff

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
    diff: "Comparison", title: str, rows: "dict[str, Pair]", justify: JustifyMethod = "left"
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
    from mypt.inspection.terminal import ABSENT

    if value is None:
        return ABSENT
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 1 else f"{value:.4f}"
