"""What each stage of the data tells the terminal, MLflow and Prefect about its result."""

from itertools import groupby, islice
from pathlib import Path

from mypt.data.dataset import Dataset, open_dataset
from mypt.data.manifest import METADATA, SPLITS, read_manifest
from mypt.errors import MaskError
from mypt.evaluation.proof.checks import ProofReport
from mypt.inspection.checks.findings import LEVELS, ValidationReport
from mypt.inspection.preview import render_preview
from mypt.inspection.rowview import RowView, iter_rows
from mypt.inspection.terminal import ShownToken, shown_tokens
from mypt.inspection.validation import REPORT
from mypt.text import counted, markdown
from tasks.reporting import artifacts
from tasks.stages import tell
from tasks.tracking.journal import Journal
from tasks.tracking.records import Artifact, Metrics, Text

_ROWS = 3
_TOKENS = 400
PREVIEW = "preview.html"
_ROWS_KEPT = 50
"""Rows on the preview page that MLflow keeps."""


def excerpt(dataset: Dataset) -> str:
    """Return the first rows of a dataset, a message a line, supervised tokens bold."""
    masked = dataset.manifest.mask is not None
    lines = ["**Bold** is what the masks supervise; the rest is only read." if masked else
             "Without masks: every token is learned."]  # fmt: skip
    for view in islice(iter_rows(dataset, "train"), _ROWS):
        tokens = shown_tokens(view, dataset.tokenizer, None)[:_TOKENS]
        more = " …" if len(view.tokens) > _TOKENS else ""
        lines += [_title(view), *_messages(tokens), more]
    return "\n\n".join(line for line in lines if line)


def _title(view: RowView) -> str:
    return f"*{view.split} row {view.index}, {markdown(f'{view.source} {view.where}')}*"


def _messages(tokens: list[ShownToken]) -> list[str]:
    return [
        "".join(
            _marked("".join(token.text for token in part), bool(supervised))
            for supervised, part in groupby(message, lambda token: token.supervised)
        )
        for _, message in groupby(tokens, lambda token: token.message)
    ]


def _marked(text: str, supervised: bool) -> str:
    """Return text as Markdown; blanks stand outside of the bold part, or it would not be one."""
    said = markdown(text.replace("\n", "↵ "))
    inner = said.strip()
    if not supervised or not inner:
        return said
    before, _, after = said.partition(inner)
    return f"{before}**{inner}**{after}"


def report_dataset(run: Journal, folder: Path) -> None:
    """Say what a dataset holds, and what was left out on the way."""
    manifest = read_manifest(folder)
    rows = sum(shard.n_rows for shard in manifest.shards)
    dropped = sum(count.rows for source in manifest.sources for count in source.dropped)
    tokens = {f"tokens_{split}": manifest.tokens(split) for split in SPLITS}
    run.write(Metrics(values={"rows": rows, "rows_dropped": dropped, **tokens}))
    run.write(Artifact(path=str(folder / METADATA)))
    tell(
        f"{folder.name}: {counted(rows, 'row')}, {dropped:,} dropped,"
        f" {manifest.tokens('train'):,} tokens in train, {manifest.tokens('val'):,} in val"
    )


def report_masks(run: Journal, folder: Path) -> None:
    """Say whose tokens the masks of a dataset supervise."""
    record = read_manifest(folder).mask
    if record is None:
        return
    stats = record.stats
    density = {f"mask_density_{role}": found.density for role, found in stats.by_role.items()}
    run.write(
        Metrics(
            values={
                "mask_density": stats.total.density,
                "supervised_tokens": stats.total.supervised,
                "rows_unsupervised": stats.rows_unsupervised,
                **density,
            }
        )
    )
    run.write(Text(name="mask_statistics.json", text=record.model_dump_json(indent=2)))
    artifacts.mask_statistics(folder.name, stats)
    roles = ", ".join(f"{role} {found.density:.1%}" for role, found in stats.by_role.items())
    tell(
        f"{folder.name}: {stats.total.density:.1%} of {stats.total.tokens:,} tokens supervised"
        f" ({roles}); {stats.rows_unsupervised:,} of {stats.rows:,} rows have none"
    )


def report_validation(run: Journal, folder: Path, report: ValidationReport) -> None:
    """Say what a validation found, one by one, and keep the preview page."""
    run.write(Metrics(values={f"{level}s": report.count(level) for level in LEVELS}))
    run.write(Text(name=REPORT, text=report.model_dump_json(indent=2)))
    dataset = open_dataset(folder, verify=False)
    page = render_preview(dataset, report, max_rows=_ROWS_KEPT)
    run.write(Text(name=PREVIEW, text=page))
    artifacts.preview(folder.name, excerpt(dataset), (run.name, f"artifacts/{PREVIEW}"))
    artifacts.validation_findings(folder.name, report)
    tell(f"{folder.name}: " + ", ".join(counted(report.count(level), level) for level in LEVELS))
    for finding in report.findings:
        tell(f"  {finding.level}: {finding.count:,} {finding.message}")


def report_proof(run: Journal, folder: Path, proof: ProofReport) -> None:
    """Say that training learns what the masks say, and no other token.

    Raises:
        MaskError: If it does not.
    """
    run.write(Text(name="proof.json", text=proof.model_dump_json(indent=2)))
    failed = [check for check in proof.checks if not check.ok]
    if failed:
        raise MaskError(f"{folder}: not so: {failed[0].name}; {failed[0].detail}")
    tell(f"{folder.name}: masks proved on {sum(c.count for c in proof.checks):,} observations")
