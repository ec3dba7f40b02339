"""One checkpoint's scores as a table for the terminal."""

from typing import TYPE_CHECKING

from mypt.evaluation.scores import ModelScores, TokenReport, harness_metrics
from mypt.text import visible

if TYPE_CHECKING:
    from rich.table import Table


def render(scores: ModelScores) -> "Table":
    """Return what was measured, a line a figure, as something that rich can print."""
    from rich.table import Table

    table = Table(title=f"{scores.model} at {scores.checkpoint.path}", show_header=False)
    scored = f"{scores.supervised:,} of {scores.available:,} supervised tokens"
    table.add_row("validation loss", f"{scores.val_loss:.4f} nats", scored)
    table.add_row("perplexity", f"{scores.perplexity:.3f}", "")
    for task, share in scores.exact_match.items():
        table.add_row(f"exact match, {task}", f"{share:.1%}", f"asked as {scores.form}")
    if scores.stop_recall is not None:
        table.add_row("answers that stop", f"{scores.stop_recall:.1%}", f"of {scores.asked}")
        table.add_row("answers that leak role tags", _share(scores.leak_rate), "")
        table.add_row("repeated stretches", _share(scores.repetition), "of four tokens")
    for task, metric in harness_metrics([scores]):
        value = scores.harness[task][metric]
        table.add_row(f"harness, {visible(task)}", f"{value:.4f}", visible(metric))
    if scores.tokens is not None:
        _add_tokens(table, scores.tokens)
    return table


def _add_tokens(table: "Table", tokens: TokenReport) -> None:
    if tokens.bits_per_byte is not None:
        table.add_row("bits per byte", f"{tokens.bits_per_byte:.4f}", "")
    table.add_row("stop recall", _share(tokens.stop_recall), "where a turn ends")
    table.add_row("false stops", _share(tokens.false_stops), "where it goes on")
    for group, members in tokens.groups.items():
        for name, found in members.items():
            said = f"{found.tokens:,} tokens, {found.accuracy:.1%} right"
            table.add_row(f"{group}, {visible(name)}", f"{found.loss:.4f} nats", said)


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"
