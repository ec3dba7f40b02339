"""A dataset's folder is built by one process at a time and appears whole or not at all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mypt import files
from mypt.data.manifest import METADATA, Manifest, read_manifest, verify_files, write_manifest
from mypt.errors import ConfigError, DataError
from mypt.references import DatasetRef


@contextmanager
def one_builder(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; a second process waits here until the first is through.

    The lock is a file beside the folder, and stays there; the operating system lets go of it
    when its holder dies.

    Raises:
        DataError: If the disk refuses, or the memory does not do.
    """
    try:
        place = folder.resolve()  # '.' and '..' have no name of their own
        files.make_folder(place.parent)
        lock = place.parent / f".{place.name}.lock"
        lock.touch()  # where it cannot be made, waiting for it would never end
        with files.new_lock(lock):
            yield
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error}); make room or name a folder that can be"
            " written, and run again"
        ) from error
    except MemoryError as error:
        raise DataError(
            f"{folder}: out of memory; expected room for a few times the longest row; cut the"
            " longest documents into rows, or end other programs, and run again"
        ) from error


def build(out_dir: Path, make: Callable[[Path], Manifest], recipe: str | None = None) -> DatasetRef:
    """Build a dataset under a new name.

    Args:
        out_dir: The name; nothing appears under it before the dataset is whole.
        make: Writes everything but the metadata into the folder it is given.
        recipe: If ``out_dir`` is there already and was made by this recipe, it is checked and
            returned as it is; None refuses whatever is there.

    Raises:
        ConfigError: If ``out_dir`` exists, also when another process made it meanwhile.
        ManifestError: If it was made by ``recipe`` but is damaged.
        DataError: If the disk refuses; nothing is left under ``out_dir`` then.
    """
    if recipe is None and out_dir.exists():
        return _existing(out_dir, recipe)
    with one_builder(out_dir):
        if out_dir.exists():
            return _existing(out_dir, recipe)
        with files.new_folder(out_dir) as folder:
            manifest = write_manifest(folder, make(folder))
    return DatasetRef(path=str(out_dir), digest=manifest.digest)


def _existing(out_dir: Path, recipe: str | None) -> DatasetRef:
    if recipe is None or not (out_dir / METADATA).is_file():
        raise ConfigError(
            f"{out_dir} exists and is never overwritten; name another --out_dir, or remove the"
            " folder if no model was trained on it"
        )
    manifest = read_manifest(out_dir)
    if manifest.recipe != recipe:
        raise ConfigError(
            f"{out_dir} holds a dataset of other sources or settings ({manifest.digest[:12]}) and"
            " is never overwritten; name another --out_dir"
        )
    verify_files(out_dir, manifest)
    return DatasetRef(path=str(out_dir), digest=manifest.digest)
