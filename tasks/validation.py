"""Prefect task that checks a dataset before anybody trains on it."""

from pathlib import Path

from mypt.config import Preset
from mypt.data.manifest import read_manifest
from mypt.errors import DataError
from mypt.evaluation.proof import proof
from mypt.evaluation.proof.proof import prove_mask
from mypt.inspection.checks.findings import ValidationReport
from mypt.inspection.validation import REPORT, keep_report
from mypt.inspection.validation import validate as check
from mypt.references import DatasetRef
from tasks.keys import stage_key
from tasks.reporting.datasets import report_proof, report_validation
from tasks.reporting.inputs import dataset_input
from tasks.stages import Output, stage, whole_report
from tasks.tracking.recording import recorded


@stage("validate {what} {name}", whole_report)
def validate(dataset: DatasetRef, preset: Preset, name: str, what: str) -> Output[DatasetRef]:
    """Check a dataset, prove its masks unless they are not used, and hand it on.

    Args:
        dataset: What to check.
        preset: How it will be trained on, for what a context would drop or cut.
        name: Prefix of the dataset's folder, for the task run's name.
        what: What people call it, for the task run's name.

    Raises:
        DataError: If the dataset breaks its contract.
        MaskError: If training would learn other tokens than the masks say.
    """
    folder, block_size = Path(dataset.path), _block_size(preset)
    policy = preset.length_policy or "keep_system"  # as trained: where they differ, it is taken
    length = [str(block_size), policy, str(preset.max_lost)]
    proves = preset.use_loss_mask
    if proves is None:
        proves = read_manifest(folder, dataset.digest).mask is not None
    decided = stage_key(proof, dataset.digest, *length, str(proves))
    place, key = folder / REPORT, f"validate-{folder.name}-{decided}"

    def make() -> DatasetRef:
        with recorded(key, f"validate {what} {name}") as run:
            run.write(dataset_input(dataset, "validate"))
            report = check(
                folder,
                block_size=block_size,
                length_policy=policy,
                max_lost=preset.max_lost,
            )
            report_validation(run, folder, report)
            _accept(folder, report)
            if proves:
                report_proof(run, folder, prove_mask(folder, length_policy=policy))
            keep_report(folder, report)
        return dataset

    return Output(place, key, make)


def _accept(folder: Path, report: ValidationReport) -> None:
    """Refuse a dataset with a broken contract.

    Raises:
        DataError: Naming the worst finding.
    """
    if not report.ok:
        worst = report.findings[0]
        raise DataError(
            f"{folder}: {worst.count} {worst.message}; {report.count('error')} such findings, see"
            f" 'mypt validate {folder}'"
        )


def _block_size(preset: Preset) -> int | None:
    """Return the context that rows must fit into; windows cut through rows anyway."""
    return preset.block_size if preset.batching == "packed" else None
