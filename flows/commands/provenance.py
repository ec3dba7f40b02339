"""Commands that ask where a checkpoint came from, and prove it. None starts Prefect or MLflow."""

from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.commands.names import full_name
from flows.console import Console, check_new, print_json, print_json_rows, print_lines
from mypt.errors import ConfigError
from mypt.text import visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from mypt.provenance.descendants import Uses
    from mypt.provenance.exposure import Exposure, RowExposure
    from mypt.provenance.row_lookup import Found

HEADING = f"{'times':>7} {'learned':>9} {'read':>9}  row"


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
        checkpoint: A name or its beginning, a model folder or a step folder.
        verify: Hash everything again; exit 1 and name what changed.
        rows: List every source row it was trained on, its parents' too, and how often.
        row: FILE:LINE, one source row: whether it was learned, how often, and its twins.
        uses: Instead of a checkpoint: a dataset or raw file (or its digest); lists the
            checkpoints under MYPT_HOME/models that saw it.
        html: Write the chain as one self-contained page.
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

    step_folder = find_checkpoint(full_name(checkpoint))
    if rows or row is not None:
        _check_alone("--rows or --row", "the other flags", verify, html, rows and row)
        return _rows(step_folder, row, json)
    from mypt.provenance import trace

    found = trace.trace(step_folder, verify=verify)
    if html is not None:
        from mypt.provenance import lineage_page

        lineage_page.write_page(found, html)
    if json:
        print_json(found.model_dump(mode="json"))
    elif html is not None:
        print_lines([f"lineage: {html}"])
    else:
        Console().print(trace.render(found))
    return 0 if found.ok else 1


def reproduce(checkpoint: str, *, out_dir: Path | None = None, json: bool = False) -> int:
    """Make a checkpoint again from the raw files; exit 1 and say where it parts.

    Args:
        checkpoint: A name or its beginning, a model folder or a step folder.
        out_dir: A new folder for all that is made; default: one under MYPT_HOME/reproductions.
        json: Print the stages as JSON.
    """
    from mypt.home import find_checkpoint, home
    from mypt.provenance import reproduction
    from mypt.training.lineage import read_lineage
    from tasks.progress import watch

    step_folder = find_checkpoint(full_name(checkpoint))
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


def sign(directory: str, *, key: Path) -> int:
    """Sign a checkpoint or dataset, so that whoever has your public key can believe it.

    Args:
        directory: A model's name, a model folder, a step folder or a dataset.
        key: Your private key as PEM, such as 'openssl genpkey -algorithm ed25519' writes; the
            password of one that has one stands in the variable MYPT_KEY_PASSWORD.
    """
    from mypt.provenance import signing

    print_lines([f"signed: {signing.sign(signing.place_of(full_name(directory)), key)}"])
    return 0


def verify(directory: str, *, key: Path) -> int:
    """Check who signed a checkpoint or dataset, and all of its chain that lies here.

    Args:
        directory: A model's name, a model folder, a step folder or a dataset.
        key: The signer's public key as PEM.
    """
    from mypt.provenance import signing

    folder = signing.place_of(full_name(directory))
    absent = signing.verify(folder, key)
    print_lines([f"{folder}: signed with {key}, every byte that is here as it was signed"])
    print_lines(f"not here, so not hashed: {line}" for line in absent)
    return 0


def _unused(folder: Path) -> Path:
    """Return the folder, or the first of name-2, name-3, ... where it is taken."""
    names = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(path for path in chain((folder,), names) if not path.exists())


def _rows(step_folder: Path, row: str | None, json: bool) -> int:
    """Print the exposure of a checkpoint, or of one row to it."""
    from mypt.provenance import row_lookup
    from mypt.provenance.exposure import exposure

    place = None if row is None else row_lookup.parse_place(row)
    seen = exposure(step_folder)
    if place is not None:
        found = row_lookup.find_row(seen, *place)
        if json:
            print_json(found_values(found) | {"problems": seen.problems})
        else:
            Console().print(render_found(found, place[1]), soft_wrap=True)
            print_lines(seen.problems)
    elif json:
        print_json_rows(exposure_values(seen), map(row_values, seen.rows()))
    else:
        print_lines([HEADING])
        print_lines(map(row_line, seen.rows()))
        Console().print(render_exposure(seen))
    return 1 if seen.problems else 0


def _uses(what: str, json: bool) -> int:
    from mypt.provenance.descendants import find_uses

    found = find_uses(what)
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        Console().print(render_uses(found))
    return 1 if found.problems else 0


def _check_alone(flag: str, without: str, *others: object) -> None:
    if any(others):
        raise ConfigError(f"{flag} answers a question of its own; leave {without} out")


def row_line(row: "RowExposure") -> str:
    """Return one row as a line under :data:`HEADING`."""
    return (
        f"{row.times:>7} {row.learned:>9} {row.read:>9}  {visible(row.file)}:{row.line}"
        f"  ({visible(row.training)}, {visible(row.source)}{', val' * (row.split == 'val')})"
    )


def row_values(row: "RowExposure") -> dict[str, Any]:
    """Return one row as JSON values."""
    return row._asdict() | {"passes": round(row.passes, 4)}


def exposure_values(exposure: "Exposure") -> dict[str, Any]:
    """Return all but the rows as JSON values."""
    return {
        "sources": [
            source.model_dump() | {"passes": round(source.passes, 4)}
            for source in exposure.sources()
        ],
        "warnings": exposure.warnings(),
        "problems": exposure.problems,
    }


def found_values(found: "Found") -> dict[str, Any]:
    """Return what became of one row as JSON values."""
    return {
        "line": found.line,
        "rows": [row_values(row) for row in found.rows],
        "twins": [row_values(row) for row in found.twins],
        "changed": found.changed,
    }


def render_exposure(exposure: "Exposure") -> "RenderableType":
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
        *(Text(f"warning: {visible(line)}", style="yellow") for line in exposure.warnings()),
        *(Text(visible(line), style="red") for line in exposure.problems),
    )


def render_found(found: "Found", line: int) -> "RenderableType":
    """Return what became of one row.

    Args:
        found: As :func:`mypt.provenance.row_lookup.find_row` returned it.
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


def render_uses(uses: "Uses") -> "RenderableType":
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
