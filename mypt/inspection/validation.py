"""Whether a dataset keeps its contract: everything that can be checked without torch."""

import os
from pathlib import Path

from mypt import __version__, files
from mypt.config import TrainConfig
from mypt.data.dataset import open_dataset
from mypt.data.manifest import SPLITS, Manifest, read_manifest, verify_files
from mypt.data.packing.pieces import LengthPolicy
from mypt.errors import ManifestError
from mypt.inspection.checks.contents import ShardCheck, check_files, check_tokens
from mypt.inspection.checks.density import TokenCounts, check_density, check_stats, preview_length
from mypt.inspection.checks.findings import (
    CODES,
    DENSITY_BOUNDS,
    Finding,
    Findings,
    ValidationReport,
    ValidationStats,
    Where,
)
from mypt.inspection.checks.masks import check_mask
from mypt.inspection.checks.rows import check_rows

__all__ = [
    "CODES",
    "DENSITY_BOUNDS",
    "REPORT",
    "Finding",
    "ValidationReport",
    "ValidationStats",
    "Where",
    "keep_report",
    "kept_report",
    "validate",
]

REPORT = "validation.json"
"""Name under which a report is kept beside what it is about."""
_BY = "mypt"
"""Key of the version that checked: another one may check more."""


def validate(
    path: Path,
    *,
    block_size: int | None = None,
    length_policy: LengthPolicy = "split",
    max_lost: float = TrainConfig().max_lost,
    expect_single_role: bool = False,
) -> ValidationReport:
    """Check a dataset and count what is in it.

    Errors are broken contracts; everything else is a warning or a notice with its count. If a
    file is missing, changed or of another layout, only the files are reported on: what they
    hold could not be trusted.

    Args:
        path: The dataset's folder.
        block_size: Preview what a context of this many tokens would drop or cut.
        length_policy: For the preview.
        max_lost: For the preview: largest share of supervised tokens that may be lost.
        expect_single_role: The corpus has one role, so that every token may be supervised.

    Raises:
        ManifestError: If the folder has no readable metadata, so that nothing can be checked.
    """
    manifest = read_manifest(path)
    findings = Findings()
    check_files(path, manifest, findings)
    if findings.broken:
        empty = ValidationStats(rows={}, tokens={})
        return ValidationReport(dataset=manifest.digest, findings=findings.sorted(), stats=empty)
    dataset = open_dataset(path, verify=False)
    tally = TokenCounts()
    tiled = True
    for split in SPLITS:
        first_row = 0
        for shard in dataset.shards(split):
            check = ShardCheck(dataset, split, shard, first_row, findings)
            first_row += shard.record.n_rows
            if check_tokens(check):
                check_mask(check)
                tally.add(check)
            else:
                tiled = False
    stats = tally.stats(manifest)
    if tiled and "token_unknown" not in findings:
        check_stats(manifest, tally, findings)
        check_density(manifest, tally, findings, expect_single_role)
        stats = stats.model_copy(update={"rendered": check_rows(dataset, findings)})
        if block_size is not None:
            length = preview_length(dataset, block_size, length_policy, max_lost, findings)
            stats = stats.model_copy(update={"length": length})
    _note_reading(manifest, findings)
    return ValidationReport(dataset=manifest.digest, findings=findings.sorted(), stats=stats)


def keep_report(path: Path, report: ValidationReport) -> None:
    """Leave a report beside its dataset, for a page about it; no part of the dataset.

    Args:
        path: The dataset's folder; one that may not be written keeps none.
        report: What :func:`validate` found there.
    """
    if os.access(path, os.W_OK):
        files.write_sealed(path / REPORT, {_BY: __version__, **report.model_dump(mode="json")})


def kept_report(path: Path) -> ValidationReport | None:
    """Return the report beside a dataset, if neither a byte of it nor mypt changed since."""
    try:
        said = files.read_sealed(path / REPORT)
        report = ValidationReport.model_validate(
            {key: said[key] for key in ValidationReport.model_fields}
        )
        verify_files(path, read_manifest(path, report.dataset))
    except (OSError, ValueError, KeyError, ManifestError):
        return None
    return report if said.get(_BY) == __version__ else None


def _note_reading(manifest: Manifest, findings: Findings) -> None:
    """Repeat what reading dropped and changed, so that one report says it all."""
    for source in manifest.sources:
        for code, counts in (("dropped", source.dropped), ("changed", source.notes)):
            for count in counts:
                place = Where(where=source.name, detail=f"{count.reason}: {count.rows}")
                findings.add(code, place, count.rows)
    for split in SPLITS:
        if not manifest.tokens(split):
            findings.add("split_empty", Where(detail=split))
