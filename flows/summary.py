"""The last page of a run on the terminal: figures, dialogues, digests, and where all lies."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mypt.evaluation.scores import (
    Difference,
    EvaluationReport,
    ModelScores,
    PairScores,
    Summary,
)
from mypt.home import home
from mypt.text import shorten, visible

_LONGEST = 120
"""Characters of an answer that are shown."""


def show_summary(summary: Summary) -> None:
    """Print what a run came to; the last line is ``summary: PATH``.

    What its other stages made of the model before each comes first, each below its model's name.
    """
    for found in summary.others.values():
        _show(found, headed=True)
    _show(summary, headed=bool(summary.others))


def _show(summary: Summary, *, headed: bool) -> None:
    path = summary.path
    console = Console(highlight=False)
    report = EvaluationReport.model_validate(json.loads(Path(summary.evaluation).read_bytes()))
    model = Path(summary.checkpoint).parent.name
    console.print()
    if headed:
        console.print(f"{visible(model)}, beside the model before it", markup=False)
    console.print(render_report(report))
    asked = shlex.quote(report.dialogues[0].prompt if report.dialogues else "Hello")
    lines = [
        "",
        f"mask density: {summary.mask_density:.3f} of the tokens read,"
        f" {summary.supervised_tokens:,}, were learned ({summary.policy})",
        *(f"digest of {name}: {digest[:16]}" for name, digest in summary.digests.items()),
        f"checkpoint: {summary.checkpoint}",
        f"reports: {path.parent}",
        f"everything lies in {home()}; see it in both UIs with: mypt up",
        f"ask the model with: mypt generate {model} --prompt {asked}",
        f"talk with it on a page: mypt serve {model}",
        f"open it in Ollama: mypt export {model} {model}.gguf --to gguf"
        f" && ollama create {model} -f {model}.gguf.Modelfile",
        f"summary: {path}",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def render_report(report: EvaluationReport) -> RenderableType:
    """Return a comparison: a line for each way of asking, then the dialogues."""
    parts: list[RenderableType] = [_table(list(report.models.items()))]
    if report.pairs is not None:
        parts.append(Text(_moved(report.pairs)))
    parts += [Text(visible(_changed(name, found))) for name, found in report.sets.items()]
    for dialogue in report.dialogues:
        parts.append(_said("asked", dialogue.prompt))
        if dialogue.base is not None:
            parts.append(_said("base", dialogue.base, "dim"))  # for contrast, no result
        parts.append(_said("fine-tuned" if report.base else "model", dialogue.sft))
    return Group(*parts)


def _table(rows: Sequence[tuple[str, ModelScores]]) -> Table:
    tasks = list(dict.fromkeys(task for _, scores in rows for task in scores.exact_match))
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    pairs = any(scores.preferred is not None for _, scores in rows)
    preferred = ("pairs right",) * pairs
    for heading in ("loss", "perplexity", *preferred, *tasks, "stops"):
        table.add_column(heading, justify="right")
    for name, scores in rows:
        shares = [_share(scores.preferred)] * pairs
        shares += [_share(scores.exact_match.get(task)) for task in tasks]
        figures = (f"{scores.val_loss:.3f}", f"{scores.perplexity:.2f}")
        table.add_row(Text(visible(name)), *figures, *shares, _share(scores.stop_recall))
    scored, available = rows[0][1].supervised, rows[0][1].available
    of = "supervised tokens of val" + ", of the chosen sides" * pairs
    table.caption = f"loss: nats over {scored:,} of {available:,} {of}"
    table.caption_justify = "left"
    return table


def _changed(name: str, found: Difference) -> str:
    return (
        f"{name}: loss {found.before:.3f} -> {found.after:.3f}, change {found.change:+.3f}"
        f" (95 % between {found.low:+.3f} and {found.high:+.3f})"
    )


def _moved(found: PairScores) -> str:
    return (
        f"pairs: {found.accuracy:.1%} of {found.pairs:,} held out moved towards the chosen side"
        f" (95 % between {found.low:.1%} and {found.high:.1%}), margin {found.margin:+.3f} nats"
        f" (between {found.margin_low:+.3f} and {found.margin_high:+.3f})"
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _said(who: str, text: str, style: str = "") -> Text:
    short = shorten(text.replace("\n", "⏎"), _LONGEST)
    return Text.assemble((f"{who:14}", "dim"), (short, style))
