"""Whether what a stage left is still what it was: every byte is read and hashed."""

from pathlib import Path

from mypt import files
from mypt.data.manifest import read_manifest, verify_files
from mypt.home import checkpoint_to_use
from mypt.training.lineage import verify_folder


def whole_dataset(folder: Path) -> None:
    """Check a dataset.

    Raises:
        ManifestError: If anything is missing or was changed.
    """
    verify_files(folder, read_manifest(folder))


def whole_model(folder: Path) -> None:
    """Check the checkpoint of a model folder that is to be used.

    Raises:
        CheckpointError: If there is none, or anything in it is missing or was changed.
    """
    verify_folder(checkpoint_to_use(folder))


def whole_report(path: Path) -> None:
    """Check a sealed JSON file.

    Raises:
        ValueError: If it was changed.
        OSError: If it cannot be read.
    """
    files.read_sealed(path)
