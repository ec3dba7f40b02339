"""What a training came to, where a person reads it: a table, the checkpoint, what to type next."""

from pathlib import Path

from rich.table import Table

from flows.console import Console, print_lines
from mypt.home import checkpoint_to_use, find_checkpoint
from mypt.training.checkpoints.state import read_state
from mypt.training.lineage import read_lineage

_AGAIN = "next: the same command again, which goes on from here"
_NEXT = """\
next: mypt generate {0} --prompt 'Hello'
      mypt evaluate {0}
      mypt serve {0}"""


def show_training(folder: Path, seconds: float | None = None) -> None:
    """Print where a model stands, and the next commands if its training is over.

    Args:
        folder: The model's folder, or one of its step folders.
        seconds: How long this part of it took; None is not known.
    """
    model = folder if (folder / "latest").is_file() else folder.parent
    last = find_checkpoint(model)
    lineage, state = read_lineage(last), read_state(last)
    ago = state.step % lineage.config.eval_interval if state.finished is None else 0
    figures = {
        "steps": f"{state.step:,} of {lineage.config.max_iters:,}",
        "train loss": _loss(state.train_loss),
        "val loss": _loss(state.val_loss),
        "best val loss": _loss(state.best_val_loss),
        "tokens": f"{state.tokens:,}",
        "supervised": f"{state.supervised:,}",
        "seconds": "" if seconds is None else f"{seconds:,.1f}",
    }
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, value in figures.items():
        if value:
            table.add_column(name, justify="right")
    table.add_row(*(value for value in figures.values() if value))
    console = Console()
    console.print()
    console.print(table)
    if ago:
        console.print(f"losses of step {state.step - ago:,}, which was evaluated last")
    used = checkpoint_to_use(model)
    best = "" if used == last else "best "
    console.print(f"{best}checkpoint: {used}", markup=False, soft_wrap=True)
    if best:
        console.print(f"last checkpoint: {last}", markup=False, soft_wrap=True)
    print_lines([_AGAIN] if state.finished is None else _NEXT.format(model.name).splitlines())


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
