"""A dataset on the terminal: conversations with their supervised tokens in colour."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from mypt.config import MaskPolicy
from mypt.data.dataset import Dataset, open_dataset
from mypt.data.manifest import Split
from mypt.data.masking import Rule
from mypt.data.preview_report import render_diff, render_manifest, render_report
from mypt.data.rowview import RowView, iter_rows, read_row, reasons, token_texts
from mypt.data.spans import KINDS, ROLES
from mypt.data.tokenizer import Tokenizer
from mypt.errors import DataError
from mypt.text import shown, visible

__all__ = ["render_diff", "render_manifest", "render_report", "render_rows"]

SUPERVISED = "bold green"
UNSUPERVISED = ""
PROGRAM = "dim"
"""Style of headers and ends that are not supervised."""
OPEN, CLOSE = "\u27e6", "\u27e7"
"""Stand around supervised tokens where the output has no colour."""


def render_rows(
    path: Path,
    *,
    split: Split = "train",
    row: int | None = None,
    rows: int = 3,
    search: str | None = None,
    why: bool = False,
) -> Iterator[RenderableType]:
    """Yield rows of a dataset as things that rich can print, one at a time.

    Args:
        path: The dataset's folder.
        split: Which split.
        row: This row only, counted from 0.
        rows: At most so many rows.
        search: Only rows that say this, whatever its case.
        why: A table of the row's tokens with id, role, kind and the deciding rule.

    Raises:
        DataError: If there is no such row, none says ``search``, or the dataset is damaged.
    """
    dataset = open_dataset(path)
    policy = None if dataset.manifest.mask is None else dataset.manifest.mask.policy
    chosen = (
        iter([read_row(dataset, split, row)])
        if row is not None
        else search_rows(dataset, split, search)
    )
    found = False
    for _, view in zip(range(rows if row is None else 1), chosen, strict=False):
        found = True
        tokens = shown_tokens(view, dataset.tokenizer, policy)
        yield _title(view)
        yield _why_table(tokens) if why else RowText(tuple(tokens))
    if search is not None and not found:
        raise DataError(
            f"{path}: no row of {split} says {shown(search)}; look for a shorter text, or in the"
            " other split with --split"
        )


def search_rows(dataset: Dataset, split: Split, text: str | None = None) -> Iterator[RowView]:
    """Yield the rows that say ``text``, whatever its case; all rows where it is None."""
    wanted = None if text is None else text.casefold()
    for view in iter_rows(dataset, split):
        if wanted is None or any(wanted in s.casefold() for s in view.said(dataset.tokenizer)):
            yield view


@dataclass(frozen=True, slots=True)
class ShownToken:
    """One token as it is printed."""

    position: int
    id: int
    text: str
    """Visible characters only."""
    role: str
    kind: str
    message: int
    supervised: bool | None
    """None before masking."""
    rule: Rule | None


@dataclass(frozen=True, slots=True)
class RowText:
    """A row as running text, a turn a paragraph."""

    tokens: tuple[ShownToken, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Give the text its colours, or brackets where there are none."""
        colours = console.color_system is not None
        text, before = Text(), 0
        for (message, style), run in groupby(self.tokens, lambda t: (t.message, _style(t))):
            said = "".join(token.text for token in run)
            marked = style == SUPERVISED and not colours
            text.append("\n" * (message != before))
            text.append(f"{OPEN}{said}{CLOSE}" if marked else said, style=style)
            before = message
        yield text
        yield Text()


def _style(token: ShownToken) -> str:
    if token.supervised:
        return SUPERVISED
    return PROGRAM if token.kind in ("header", "end") else UNSUPERVISED


def shown_tokens(
    view: RowView, tokenizer: Tokenizer, policy: MaskPolicy | None
) -> list[ShownToken]:
    """Return every token of a row with all that is known about it."""
    texts = token_texts(tokenizer, view.tokens)
    rules = reasons(view, policy)
    found = []
    spans = [] if view.spans is None else list(zip(view.spans, rules, strict=True))
    for position, text in enumerate(texts):
        while spans and position >= spans[0][0]["stop"]:
            spans.pop(0)
        span, rule = spans[0] if spans else (None, None)
        found.append(
            ShownToken(
                position=position,
                id=int(view.tokens[position]),
                text=text,
                role="" if span is None else ROLES[span["role"]],
                kind="" if span is None else KINDS[span["kind"]],
                message=0 if span is None else int(span["message"]),
                supervised=None if view.mask is None else bool(view.mask[position]),
                rule=rule,
            )
        )
    return found


def _title(view: RowView) -> Text:
    count = f"{len(view.tokens)} tokens"
    if view.mask is not None:
        count += f", {int(view.mask.sum())} supervised ({view.mask.mean():.0%})"
    return Text(f"{view.split} row {view.index}", style="bold").append(
        f"  {visible(view.source)}  {visible(view.where)}  {count}", style="not bold dim"
    )


def _why_table(tokens: list[ShownToken]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in (("token", "right"), ("id", "right"), ("text", "left"), ("role", "left"),
                          ("kind", "left"), ("mask", "right"), ("rule", "left")):  # fmt: skip
        table.add_column(name, justify=justify, no_wrap=name != "rule")  # type: ignore[arg-type]
    for token in tokens:
        text = token.text.replace("\n", "\\n").replace(" ", "\u00b7")
        rule = "" if token.supervised is None else str(token.rule or "made by hand")
        mask = "" if token.supervised is None else str(int(token.supervised))
        cells = (str(token.position), str(token.id), text, token.role, token.kind, mask, rule)
        table.add_row(*(Text(cell) for cell in cells), style=_style(token))
    return table
