"""The command that puts two things side by side; it starts no torch and no Prefect."""

from pathlib import Path
from typing import Literal

from rich.console import RenderableType

from flows.console import Console, print_json
from mypt.errors import ConfigError
from mypt.parsing import Frozen


def diff(a: str, b: str, *, json: bool = False) -> int:
    """Compare two datasets, checkpoints or MLflow runs: rows, settings, density, figures.

    Args:
        a: The older dataset; or a model's name, its folder or a step folder; or a run's id (its
            first digits will do) or name.
        b: The newer one, of the same kind.
        json: Print the result as JSON.
    """
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
    from tasks.runs import find_run

    find_run(text)


def _diff_runs(a: str, b: str) -> tuple[Frozen, RenderableType]:
    from flows.environment import prepare_environment

    prepare_environment()
    from mypt.evaluation import comparison_table
    from tasks.runs import compare_runs, find_run

    found = compare_runs(find_run(a), find_run(b))
    return found, comparison_table.render(found)


def _diff_datasets(a: str, b: str) -> tuple[Frozen, RenderableType]:
    from mypt.inspection import diff as diffs
    from mypt.inspection import terminal as preview_report

    found = diffs.diff(Path(a), Path(b))
    return found, preview_report.render_diff(found)


def _diff_models(a: str, b: str) -> tuple[Frozen, RenderableType]:
    from mypt.evaluation import comparison_table
    from mypt.home import checkpoint_to_use
    from mypt.provenance import comparison

    found = comparison.compare_checkpoints(checkpoint_to_use(a), checkpoint_to_use(b))
    return found, comparison_table.render(found)
