"""Rows, and reports about a dataset, on the terminal; what the data say goes in as plain text."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from mypt.config import MaskPolicy
from mypt.data.dataset import Dataset, open_dataset
from mypt.data.manifest import SPLITS, Density, Manifest, Split
from mypt.data.masking import Rule
from mypt.data.packing.accounts import LengthAccount
from mypt.data.policies import policy_words
from mypt.data.spans import KINDS, ROLES
from mypt.data.tokenizer import Tokenizer
from mypt.errors import DataError
from mypt.inspection.checks.findings import DENSITY_BOUNDS, LengthPreview, Level, ValidationReport
from mypt.inspection.diff import DatasetDiff
from mypt.inspection.rowview import (
    RowView,
    iter_rows,
    read_row,
    reasons,
    token_texts,
    with_other_sides,
)
from mypt.text import counted, shown, visible

__all__ = ["render_diff", "render_manifest", "render_report", "render_rows"]


STYLES: dict[Level, str] = {"error": "bold red", "warning": "yellow", "notice": "cyan"}
ABSENT = "\u2013"
"""Stands for the figure of what is not there."""
SHOWN = 3
"""Places printed for each finding; the JSON report has more."""
SUPERVISED = "bold green"
LIGHTER, HEAVIER = "green", "bold magenta"
"""Styles of what weighs less than 1, and more."""
UNSUPERVISED = ""
PROGRAM = "dim"
"""Style of headers and ends that are not supervised."""


def render_report(report: ValidationReport) -> RenderableType:
    """Return a validation report: figures, findings worst first, and the verdict."""
    stats = report.stats
    parts: list[RenderableType] = [_line("dataset", report.dataset[:12])]
    for split in SPLITS:
        if split in stats.rows:
            parts.append(_line(split, _size(stats.rows[split], stats.tokens[split])))
    if stats.total.tokens:
        low, high = DENSITY_BOUNDS
        parts += [
            _line("rendered", f"{counted(stats.rendered, 'row')} encoded once more, compared"),
            _density_table({"in all": stats.total, **stats.by_role, **stats.by_source}),
        ]
        if set(stats.by_role) != {"text"}:
            bounds = f"chat is expected to be supervised from {low:.0%} to {high:.0%}"
            parts.append(Text(bounds, style="dim"))
    if stats.length is not None:
        parts.append(_length(stats.length))
    for finding in report.findings:
        parts.append(
            Text.assemble(
                (f"{finding.level:8}", STYLES[finding.level]),
                f"{finding.count:>9,}  {finding.code}: {finding.message}",
            )
        )
        parts += [Text(f"{'':19}{visible(str(p))}", style="dim") for p in finding.examples[:SHOWN]]
    return Group(*parts, _verdict(report))


def _verdict(report: ValidationReport) -> Text:
    counts = ", ".join(counted(report.count(level), level) for level in STYLES)
    if report.ok:
        return Text(f"ok: {counts}", style="bold green")
    return Text(f"broken: {counts}", style="bold red")


def _size(rows: int, tokens: int) -> str:
    return f"{counted(rows, 'row')}, {counted(tokens, 'token')}"


def _line(name: str, value: str) -> Text:
    return Text.assemble((f"{name:10}", "dim"), visible(value))


def _density_table(groups: dict[str, Density]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("tokens", "supervised", "density"):
        table.add_column(name, justify="right")
    for name, group in groups.items():
        table.add_row(
            Text(visible(name)),
            f"{group.tokens:,}",
            f"{group.supervised:,}",
            f"{group.density:.1%}",
        )
    return table


def _length(length: LengthPreview) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(f"block_size {length.block_size}, {length.length_policy}")
    for name in ("rows", "tokens", "supervised"):
        table.add_column(name, justify="right")
    if len(length.accounts) > 1:
        for account in length.accounts:
            _account_rows(table, account)
    _account_rows(table, length.total)
    verdict = f"{length.lost:.2%} of the supervised tokens lost to length"
    return Group(table, Text(f"{verdict}; {length.packed_rows:,} packed rows", style="dim"))


def _account_rows(table: Table, account: LengthAccount) -> None:
    """Add what went in, what is kept, and what is lost by reason."""
    kept = account.supervised + account.unsupervised
    entries = [
        ("in", account.rows, account.tokens, account.supervised_in),
        ("kept", account.rows_kept, kept, account.supervised),
        *((f"dropped: {e.reason}", e.rows, e.tokens, e.supervised) for e in account.dropped),
        *((f"cut: {e.reason}", e.rows, e.tokens, e.supervised) for e in account.cut),
    ]
    if account.systems_repeated:
        entries.append(("system messages repeated", 0, account.tokens_repeated, 0))
    for what, *figures in entries:
        table.add_row(
            Text(f"{visible(account.source)}, {what}"), *(f"{figure:,}" for figure in figures)
        )


def render_manifest(folder: Path, manifest: Manifest) -> RenderableType:
    """Return what a dataset is made of, as ``mypt prepare`` prints it."""
    shards = len(manifest.shards)
    parts: list[RenderableType] = [
        _line("dataset", str(folder)),
        _line("digest", manifest.digest),
        _line("tokenizer", f"{manifest.tokenizer_name}, {manifest.n_vocab:,} ids"),
    ]
    for split in SPLITS:
        rows = sum(shard.n_rows for shard in manifest.split(split))
        parts.append(_line(split, _size(rows, manifest.tokens(split))))
    if manifest.pairs:
        parts.append(_line("pairs", f"{manifest.pairs:,}, two rows each, the chosen one first"))
    parts.append(_line("shards", f"{shards:,}"))
    for source in manifest.sources:
        said = f"{source.name}: {source.format}, {counted(source.rows_read, 'row')} read"
        parts.append(_line("source", said))
        for what, counts in (("dropped", source.dropped), ("changed", source.notes)):
            parts += [_line("", f"{what} {count.rows:,}: {count.reason}") for count in counts]
        if any(" was not read" in note.reason for note in source.notes):
            parts.append(_line("", WAY_TO_READ))
    if manifest.mask is None:
        parts.append(_line("mask", "none; see 'mypt mask'"))
        return Group(*parts)
    stats = manifest.mask.stats
    parts.append(_line("policy", policy_words(manifest.mask.policy)))
    parts.append(_density_table({"in all": stats.total, **stats.by_role, **stats.by_source}))
    return Group(*parts)


def render_diff(diff: DatasetDiff) -> RenderableType:
    """Return what changed from one dataset to another."""
    rows = Table(box=None, pad_edge=False, header_style="dim")
    rows.add_column("rows")
    rows.add_column("", justify="right")
    counts = {
        name: getattr(diff, name) for name in ("same", "added", "removed", "changed", "moved")
    }
    if diff.masked_anew is not None:
        counts["masked anew"] = diff.masked_anew
    for name, count in counts.items():
        rows.add_row(name, f"{count:,}")
    density = Table(box=None, pad_edge=False, header_style="dim")
    density.add_column("density")
    for name in ("a", "b", "moved by"):
        density.add_column(name, justify="right")
    for name, (a, b) in diff.density.items():
        shares = (f"{one.density:.1%}" if one.tokens else ABSENT for one in (a, b))
        both = a.tokens and b.tokens
        move = f"{100 * (b.density - a.density):+.1f} points" if both else ""
        density.add_row(Text(visible(name)), *shares, move)
    parts: list[RenderableType] = [
        _line("a", diff.a),
        _line("b", diff.b),
        *(_line("differs", text) for text in diff.settings),
        rows,
        density,
        *(Text(visible(str(place)), style="dim") for place in diff.examples),
    ]
    differing = diff.added + diff.removed + diff.changed or diff.masked_anew or 0
    if differing > len(diff.examples):
        parts.append(Text(f"and {differing - len(diff.examples):,} more", style="dim"))
    return Group(*parts)


WAY_TO_READ = "--turns says which fields of a row are read, --strict refuses the others"
"""What to do about fields that were not read."""
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
        row: This row only, counted from 0; of a preference pair, both sides.
        rows: At most so many rows, and the other sides of their pairs.
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
    for view in with_other_sides(dataset, islice(chosen, rows if row is None else 1)):
        found = True
        yield from render_view(view, dataset.tokenizer, policy, why=why)
    if search is not None and not found:
        raise DataError(
            f"{path}: no row of {split} says {shown(search)}; look for a shorter text, or in the"
            " other split with --split"
        )


def render_view(
    view: RowView,
    tokenizer: Tokenizer,
    policy: MaskPolicy | None,
    *,
    why: bool = False,
    longest: int | None = None,
) -> Iterator[RenderableType]:
    """Yield one row, its title first; see :func:`render_rows` and :class:`RowText`."""
    tokens = shown_tokens(view, tokenizer, policy)
    yield _title(view)
    yield _why_table(tokens) if why else RowText(tuple(tokens), longest)


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
    weight: float | None
    """0 where it is unsupervised; None before masking."""
    rule: Rule | None

    @property
    def supervised(self) -> bool | None:
        """Whether it is learned at all; None before masking."""
        return None if self.weight is None else self.weight > 0


@dataclass(frozen=True, slots=True)
class RowText:
    """A row as running text, a turn a paragraph."""

    tokens: tuple[ShownToken, ...]
    longest: int | None = None
    """Characters shown of a stretch; what is left out is counted. None shows all."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Give the text its colours, or brackets where there are none."""
        colours = console.color_system is not None
        text, before = Text(), 0
        alike = groupby(self.tokens, lambda t: (t.message, _style(t), t.weight))
        for (message, style, weight), run in alike:
            said = "".join(token.text for token in run)
            more = len(said) - (len(said) if self.longest is None else self.longest)
            said = f"{said[: self.longest]} \u2026 {more:,} characters more" if more > 0 else said
            text.append("\n" * (message != before))
            if weight and not colours:
                said = f"{OPEN}{said}{CLOSE}{'' if weight == 1 else f'*{weight:g}'}"
            text.append(said, style=style)
            before = message
        yield text
        yield Text()


def _style(token: ShownToken) -> str:
    if token.weight:
        return SUPERVISED if token.weight == 1 else LIGHTER if token.weight < 1 else HEAVIER
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
                weight=None if view.weights is None else float(view.weights[position]),
                rule=rule,
            )
        )
    return found


def _title(view: RowView) -> Text:
    count = counted(len(view.tokens), "token")
    if view.weights is not None:
        supervised = view.weights > 0
        count += f", {int(supervised.sum())} supervised ({supervised.mean():.0%})"
    name = f"{view.split} row {view.index}{', ' * bool(view.pair)}{view.pair}"
    return Text(name, style="bold").append(
        f"  {visible(view.source)}  {visible(view.where)}  {count}", style="not bold dim"
    )


def _why_table(tokens: list[ShownToken]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in (("token", "right"), ("id", "right"), ("text", "left"), ("role", "left"),
                          ("kind", "left"), ("weight", "right"), ("rule", "left")):  # fmt: skip
        table.add_column(name, justify=justify, no_wrap=name != "rule")  # type: ignore[arg-type]
    for token in tokens:
        text = token.text.replace("\n", "\\n").replace(" ", "\u00b7")
        rule = "" if token.supervised is None else str(token.rule or "made by hand")
        weight = "" if token.weight is None else f"{token.weight:g}"
        cells = (str(token.position), str(token.id), text, token.role, token.kind, weight, rule)
        table.add_row(*(Text(cell) for cell in cells), style=_style(token))
    return table
