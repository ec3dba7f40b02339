"""Folders that ``save_to_disk`` of ``datasets`` writes: which files hold which split.

A ``Dataset`` is Arrow streams that ``state.json`` lists; a ``DatasetDict`` is one such folder a
split, listed in ``dataset_dict.json``.
"""

from pathlib import Path
from typing import Any, Final

from mypt.data.manifest import Split
from mypt.errors import ConfigError, DataError
from mypt.parsing import read_json

STATE: Final = "state.json"
DICT: Final = "dataset_dict.json"
_SPLITS: Final[dict[str, Split]] = {"train": "train", "validation": "val", "test": "val"}
_EXPECTED: Final = "expected a folder that save_to_disk of datasets wrote"


def is_saved(folder: Path) -> bool:
    """Return whether ``datasets`` wrote the folder."""
    return (folder / DICT).is_file() or (folder / STATE).is_file()


def saved_files(folder: Path) -> dict[Split, list[Path]]:
    """Return the Arrow files of each split, in their order; a lone ``Dataset`` is all training.

    Raises:
        DataError: If a file that tells them is damaged or names one elsewhere, if the rows are
            in an order that another file holds, or if a split is none of ours.
    """
    if not (folder / DICT).is_file():
        return {"train": _files(folder)}
    named = _read(folder / DICT).get("splits")
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise DataError(f"{folder / DICT}: no list of splits; {_EXPECTED}")
    found: dict[Split, list[Path]] = {}
    for name in named:
        split = _SPLITS.get(name)
        if split is None or split in found:
            raise DataError(
                f"{folder / DICT}: splits {', '.join(named)[:200]} found, expected train, and"
                " validation or test; save it without the others, so that none is left out unseen"
            )
        found[split] = _files(folder / name)
    return found


def _files(folder: Path) -> list[Path]:
    state = _read(folder / STATE)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(
            f"{folder / STATE}: the rows are chosen or ordered by another file; save"
            " dataset.flatten_indices() instead"
        )
    listed = state.get("_data_files")
    if not isinstance(listed, list):
        raise DataError(f"{folder / STATE}: no list _data_files; {_EXPECTED}")
    return [_inside(folder, found) for found in listed]


def _inside(folder: Path, found: object) -> Path:
    name = found.get("filename") if isinstance(found, dict) else None
    # A plain name: neither a way out of the folder nor, as a link, into another one.
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise DataError(
            f"{folder / STATE}: {str(found)[:80]!r} names no file of this folder; {_EXPECTED}"
        )
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise DataError(f"{path}: no such file, though {STATE} lists it; copy the whole folder")
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ConfigError as error:
        raise DataError(str(error)) from None
