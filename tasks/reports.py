"""What each stage of the data tells the terminal, MLflow and Prefect about its result."""

from functools import partial
from pathlib import Path

from mypt.data.dataset import open_dataset
from mypt.data.manifest import METADATA, SPLITS, read_manifest
from mypt.errors import MaskError
from mypt.evaluation.proof.checks import ProofReport
from mypt.inspection.checks.findings import LEVELS, ValidationReport
from mypt.inspection.preview import render_preview
from mypt.inspection.validation import REPORT
from tasks import artifacts
from tasks.destination import mlflow_url
from tasks.excerpt import excerpt
from tasks.journal import Journal
from tasks.records import Artifact, Metrics, Text
from tasks.stages import tell

PREVIEW = "preview.html"
_ROWS_KEPT = 50
"""Rows on the preview page that MLflow keeps."""


def report_dataset(run: Journal, folder: Path) -> None:
    """Say what a dataset holds, and what was left out on the way."""
    manifest = read_manifest(folder)
    rows = sum(shard.n_rows for shard in manifest.shards)
    dropped = sum(count.rows for source in manifest.sources for count in source.dropped)
    tokens = {f"tokens_{split}": manifest.tokens(split) for split in SPLITS}
    run.write(Metrics(values={"rows": rows, "rows_dropped": dropped, **tokens}))
    run.write(Artifact(path=str(folder / METADATA)))
    tell(
        f"{folder.name}: {rows:,} rows, {dropped:,} dropped,"
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
    """Say what a validation found, errors and warnings one by one, and keep the preview page."""
    run.write(Metrics(values={f"{level}s": report.count(level) for level in LEVELS}))
    run.write(Text(name=REPORT, text=report.model_dump_json(indent=2)))
    dataset = open_dataset(folder, verify=False)
    page = render_preview(dataset, report, max_rows=_ROWS_KEPT)
    run.write(Text(name=PREVIEW, text=page))
    shown_at = partial(mlflow_url, run.name, f"artifacts/{PREVIEW}")
    artifacts.preview(folder.name, excerpt(dataset), shown_at)
    artifacts.validation_findings(folder.name, report)
    counts = (f"{report.count(level)} {level}s" for level in LEVELS)
    tell(f"{folder.name}: " + ", ".join(counts))
    for finding in report.findings:
        if finding.level != "notice":
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
