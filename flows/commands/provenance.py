"""Commands that ask where a checkpoint came from, and prove it. None starts Prefect or MLflow."""

from itertools import chain, count
from pathlib import Path

from flows.console import Console, check_new, print_json, print_json_rows, print_lines
from mypt.errors import ConfigError


def lineage(
    checkpoint: str | None = None,
    *,
    verify: bool = False,
    rows: bool = False,
    row: str | None = None,
    uses: str | None = None,
    html: Path | None = None,
    json: bool = False,
) -> int:
    """Say what made a checkpoint: parents, dataset, masks, raw files; no server needed.

    Args:
        checkpoint: A name, a model folder or a step folder.
        verify: Hash everything again; exit 1 and name what changed.
        rows: List every source row it was trained on, its parents' too, and how often.
        row: FILE:LINE, one source row: whether it was learned, how often, and its twins.
        uses: Instead of a checkpoint: a dataset or raw file (or its digest); lists the
            checkpoints under MYPT_HOME/models that saw it.
        html: Write the chain as one self-contained page with a drawing.
        json: Print the answer as JSON.
    """
    if uses is not None:
        _check_alone(
            "--uses", "the checkpoint and the other flags", checkpoint, verify, rows, row, html
        )
        return _uses(uses, json)
    if html is not None:
        check_new(html)
    if checkpoint is None:
        raise ConfigError("lineage wants a checkpoint, or --uses with a dataset or raw file")
    from mypt.home import find_checkpoint

    step_folder = find_checkpoint(checkpoint)
    if rows or row is not None:
        _check_alone("--rows or --row", "the other flags", verify, html, rows and row)
        return _rows(step_folder, row, json)
    from mypt.training import trace

    found = trace.trace(step_folder, verify=verify)
    if html is not None:
        from mypt.training import lineage_html

        lineage_html.write_page(found, html)
    if json:
        print_json(found.model_dump(mode="json"))
    elif html is not None:
        print_lines([f"lineage: {html}"])
    else:
        Console().print(trace.render(found))
    return 0 if found.ok else 1


def reproduce(checkpoint: str, *, out_dir: Path | None = None, json: bool = False) -> int:
    """Make a checkpoint again from the raw files; exit 1 and say where it parts, if it does.

    Args:
        checkpoint: A name, a model folder or a step folder.
        out_dir: A new folder for all that is made; default: one under MYPT_HOME/reproductions.
        json: Print the stages as JSON.
    """
    from mypt.home import find_checkpoint, home
    from mypt.training import reproduction
    from mypt.training.lineage import read_lineage
    from tasks.progress import watch

    step_folder = find_checkpoint(checkpoint)
    found = read_lineage(step_folder)
    name = f"{found.model_name}-{step_folder.name}-{found.digest[:8]}"
    folder = out_dir or _unused(home() / "reproductions" / name)
    if json:
        made = reproduction.reproduce(step_folder, folder)
        print_json(made.model_dump(mode="json"))
        return 0 if made.ok else 1

    def tell(stage: reproduction.Stage) -> None:
        print_lines([f"{stage.outcome}: {stage.name} {stage.recorded[:12]}"])
        print_lines(f"  {line}" for line in stage.details)

    made = reproduction.reproduce(step_folder, folder, tell=tell, watch=watch)
    if not made.ok:
        print_lines(made.notes)
    print_lines([f"{'the same bits' if made.ok else 'not the same'}; made in {folder}"])
    return 0 if made.ok else 1


def _unused(folder: Path) -> Path:
    """Return the folder, or the first of name-2, name-3, ... where it is taken."""
    names = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(path for path in chain((folder,), names) if not path.exists())


def _rows(step_folder: Path, row: str | None, json: bool) -> int:
    """Print the exposure of a checkpoint, or of one row to it."""
    from mypt.training import exposure_tables as tables
    from mypt.training import row_lookup
    from mypt.training.exposure import exposure

    place = None if row is None else row_lookup.parse_place(row)
    seen = exposure(step_folder)
    if place is not None:
        found = row_lookup.find_row(seen, *place)
        if json:
            print_json(tables.found_values(found) | {"problems": seen.problems})
        else:
            Console().print(tables.render_found(found, place[1]), soft_wrap=True)
            print_lines(seen.problems)
    elif json:
        print_json_rows(tables.exposure_values(seen), map(tables.row_values, seen.rows()))
    else:
        print_lines([tables.HEADING])
        print_lines(map(tables.row_line, seen.rows()))
        Console().print(tables.render_exposure(seen))
    return 1 if seen.problems else 0


def _uses(what: str, json: bool) -> int:
    from mypt.training import exposure_tables as tables
    from mypt.training.uses import find_uses

    found = find_uses(what)
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        Console().print(tables.render_uses(found))
    return 1 if found.problems else 0


def _check_alone(flag: str, without: str, *others: object) -> None:
    if any(others):
        raise ConfigError(f"{flag} answers a question of its own; leave {without} out")
