"""Reports about a dataset as rich prints them; every text from the data goes in as plain text."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mypt.data.checks.report import DENSITY_BOUNDS, LengthPreview, Level, ValidationReport
from mypt.data.diff import DatasetDiff
from mypt.data.manifest import SPLITS, Density, Manifest
from mypt.data.packing.accounts import LengthAccount
from mypt.text import visible

STYLES: dict[Level, str] = {"error": "bold red", "warning": "yellow", "notice": "cyan"}
SHOWN = 3
"""Places printed for each finding; the JSON report has more."""


def render_report(report: ValidationReport) -> RenderableType:
    """Return a validation report: figures, findings worst first, and the verdict."""
    stats = report.stats
    parts: list[RenderableType] = [_line("dataset", report.dataset[:12])]
    for split in SPLITS:
        if split in stats.rows:
            parts.append(
                _line(split, f"{stats.rows[split]:,} rows, {stats.tokens[split]:,} tokens")
            )
    if stats.total.tokens:
        low, high = DENSITY_BOUNDS
        parts += [
            _line("rendered", f"{stats.rendered:,} rows written and encoded once more, compared"),
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
    counts = ", ".join(
        f"{report.count(level)} {level}{'' if report.count(level) == 1 else 's'}"
        for level in STYLES
    )
    if report.ok:
        return Text(f"ok: {counts}", style="bold green")
    return Text(f"broken: {counts}", style="bold red")


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
        parts.append(_line(split, f"{rows:,} rows, {manifest.tokens(split):,} tokens"))
    parts.append(_line("shards", f"{shards:,}"))
    for source in manifest.sources:
        said = f"{source.name}: {source.format}, {source.rows_read:,} rows read"
        parts.append(_line("source", said))
        for what, counts in (("dropped", source.dropped), ("changed", source.notes)):
            parts += [_line("", f"{what} {count.rows:,}: {count.reason}") for count in counts]
    if manifest.mask is None:
        parts.append(_line("mask", "none; see 'mypt mask'"))
        return Group(*parts)
    stats, policy = manifest.mask.stats, manifest.mask.policy
    parts.append(_line("policy", "made by hand" if policy is None else policy.model_dump_json()))
    parts.append(_density_table({"in all": stats.total, **stats.by_role, **stats.by_source}))
    return Group(*parts)


def render_diff(diff: DatasetDiff) -> RenderableType:
    """Return what changed from one dataset to another."""
    rows = Table(box=None, pad_edge=False, header_style="dim")
    rows.add_column("rows")
    rows.add_column("", justify="right")
    for name in ("same", "added", "removed", "changed", "moved"):
        rows.add_row(name, f"{getattr(diff, name):,}")
    density = Table(box=None, pad_edge=False, header_style="dim")
    density.add_column("density")
    for name in ("a", "b", "moved by"):
        density.add_column(name, justify="right")
    for name, (a, b) in diff.density.items():
        move = f"{100 * (b.density - a.density):+.1f} points"
        density.add_row(Text(visible(name)), f"{a.density:.1%}", f"{b.density:.1%}", move)
    parts: list[RenderableType] = [
        _line("a", diff.a),
        _line("b", diff.b),
        *(_line("differs", text) for text in diff.settings),
        rows,
        density,
        *(Text(visible(str(place)), style="dim") for place in diff.examples),
    ]
    return Group(*parts)
