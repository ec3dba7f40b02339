"""The command that lists what there is; it starts no torch, no Prefect and no MLflow."""

from typing import TYPE_CHECKING, Any, Literal

from flows.console import Console, print_json, print_lines
from mypt.text import visible

if TYPE_CHECKING:
    from rich.table import Table

    from mypt.provenance.inventory import Listed

Kind = Literal["models", "datasets", "runs"]


def list_(kind: Kind | None = None, *, json: bool = False) -> int:
    """List models, datasets and runs, newest first; exit 1 where one is damaged.

    Args:
        kind: models, datasets or runs; default: all of them. Runs are those of whole pipelines
            and of stages that were started alone, as MLflow shows them.
        json: Print the list as JSON.
    """
    from mypt.provenance import inventory

    read = {"models": inventory.models, "datasets": inventory.datasets, "runs": runs}
    found = {name: find() for name, find in read.items() if kind in (None, name)}
    if json:
        print_json(
            {name: [one.model_dump(mode="json") for one in items] for name, items in found.items()}
        )
    else:
        for name, items in found.items():
            Console().print(render(name, items))
            print_lines(f"damaged: {one.name}: {one.problem}" for one in items if one.problem)
            print_lines([""] if kind is None else [])
    return 1 if any(one.problem for items in found.values() for one in items) else 0


def runs() -> "tuple[Listed, ...]":
    """Return the runs that have a journal and belong to no other run, newest first."""
    from mypt.provenance.inventory import newest_first
    from tasks.tracking.records import names

    return newest_first(one for name in names() if (one := _run(name)))


def _run(name: str) -> "Listed | None":
    from mypt.errors import MyptError
    from mypt.provenance.inventory import Listed, day
    from tasks.tracking.records import (
        DatasetInput,
        Ended,
        Metrics,
        Opened,
        Params,
        Tags,
        journal_path,
        read,
    )

    path, pairs = journal_path(name), False
    values: dict[str, Any] = {
        "name": name,
        "about": "not ended",
        "loss": None,
        "mask": "",
        "date": None,
    }
    try:
        for line in read(name):
            match line.record:
                case Opened(parent=str()):
                    return None
                case Opened(title=title, time=time):
                    values |= {"name": title, "date": day(time / 1000), "about": "not ended"}
                case Params(values={"policy": str(policy)}):
                    values["mask"] = policy
                case DatasetInput(context=read_for):
                    pairs = read_for == "prefer"  # whose loss is not in nats a token
                case Metrics(values=figures) if not pairs:  # of the stage that trained last
                    best = [of for key, of in figures.items() if key.endswith("best_val_loss")]
                    values["loss"] = best[-1] if best else values["loss"]
                case Tags(values={"reused": str()}):
                    values["reused"] = True
                case Ended(status=status):
                    values["about"] = status.lower()
    except (MyptError, OSError) as error:
        values["problem"] = str(error)
    if values.pop("reused", False):
        values |= {"about": "nothing new: all of it was reused", "loss": None}
    return Listed.model_validate({"kind": "run", "path": str(path)} | values)


def render(title: str, items: "tuple[Listed, ...]") -> "Table":
    """Return a list as a table; what nothing in it has gets no column."""
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    rows = [
        {
            title: one.name,
            "date": f"{one.date.astimezone():%Y-%m-%d %H:%M}" if one.date else "damaged",
            "": one.about,
            "size": "" if one.size is None else decimal(one.size),
            "best val loss": "" if one.loss is None else f"{one.loss:.4f}",
            "learned": one.mask,
            "parent": one.parent,
        }
        for one in items
    ]
    used = [key for key in (rows or [{title: title}])[0] if any(row[key] for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in used or [f"{title}: none"]:
        right = key in ("size", "best val loss")
        table.add_column(key, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(row[key])) for key in used))
    return table
