"""The tensors of a folder, mapped and not yet read: their names, types and shapes come first.

No pickle is ever read, and nothing outside the folder.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mypt.errors import CheckpointError, MissingModelError
from mypt.text import shorten

ONE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
TYPES: Final = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Types that a weight has, and their names in ``config.json``."""
_PART = re.compile(r"[\w-][\w.-]{0,200}\.safetensors")
_MOST_JSON: Final = 1 << 24
_MOST_HEADER: Final = 1 << 24
_ADAPTER: Final = "a LoRA adapter of another model; take both in with 'mypt adopt' and --base"
INSTEAD: Final = {
    "adapter_config.json": _ADAPTER,
    "adapter_model.safetensors": _ADAPTER,
    "pytorch_model.bin": "a pickle, which is never read; load it with transformers where you trust"
    " it and save it anew with save_pretrained, which writes safetensors",
    "pytorch_model.bin.index.json": "pickles, which are never read; load them with transformers"
    " where you trust them and save anew with save_pretrained, which writes safetensors",
}
"""What a folder without our files may hold, and what to do."""


class Held(NamedTuple):
    """What a header says of a tensor."""

    path: Path
    dtype: str
    shape: tuple[int, ...]


class Tensors:
    """The tensors of a folder by name; :meth:`read` maps one."""

    def __init__(self, folder: Path) -> None:
        """Read headers and index.

        Raises:
            CheckpointError: If a file is missing, damaged or outside the folder, or a tensor has a
                type that no weight has.
        """
        names, weights = _files(folder)
        self.place = folder
        self.paths = tuple(inside(folder, name) for name in names)
        self.held: dict[str, Held] = {}
        for path in self.paths:
            for name, held in header_of(path).items():
                if name in self.held:
                    raise CheckpointError(
                        f"{path}: {shorten(name, 80)} is in {self.held[name].path.name} too;"
                        " expected each tensor once"
                    )
                self.held[name] = held
        odd = sorted(weights.keys() ^ self.held.keys()) if weights else []
        if odd:
            raise CheckpointError(
                f"{folder / INDEX}: tensor {shorten(odd[0], 80)} is only in"
                f" {'the index' if odd[0] in weights else 'a file'}; expected the same in both"
            )

    @property
    def dtype(self) -> str:
        """The type of the numbers, as ``config.json`` names it; of several the widest."""
        counts = Counter(held.dtype for held in self.held.values())
        return TYPES[next(iter(counts))] if len(counts) == 1 else "float32"

    def read(self, name: str) -> Tensor:
        """Return a tensor as it lies in the file; its pages are read when they are used."""
        try:
            with safe_open(self.held[name].path, "pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.held[name].path}: {_said(error)}") from None


def read_json(folder: Path, name: str, most: int = _MOST_JSON) -> dict[str, Any]:
    """Return the object in a file of a folder, of at most so many bytes.

    Raises:
        CheckpointError: If it is missing, of a size that no config has, or no JSON object.
    """
    path = inside(folder, name)
    try:
        if path.stat().st_size > most:
            raise CheckpointError(f"{path}: more than {most} bytes; expected a small object")
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path}: cannot be read ({said}); expected JSON") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: no JSON object")
    return values


def inside(folder: Path, name: str) -> Path:
    """Return a file of a folder, which is one and lies in it or, of huggingface's cache, beside it.

    Raises:
        CheckpointError: If it is missing, no file, or a link out of the folder.
    """
    path = folder / name
    home = folder.resolve()
    homes = [home]
    if home.parent.name == "snapshots":  # whose files are links to the cache's blobs
        homes.append(home.parent.parent / "blobs")
    if not any(path.resolve().is_relative_to(place) for place in homes):
        raise CheckpointError(f"{path}: a link out of the folder, which is not followed")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: no ordinary file; expected one, no folder and no pipe")
    if not path.is_file():
        found = next((f"{other} is {said}" for other, said in INSTEAD.items()
                      if (folder / other).exists()), None)  # fmt: skip
        raise MissingModelError(f"{path}: no such file; {found or 'expected it there'}")
    return path


def _files(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the files that hold the weights, and what the index says where there is one."""
    if (folder / ONE).exists() or not (folder / INDEX).exists():
        return [ONE], {}
    held = read_json(folder, INDEX).get("weight_map")
    weights = held if isinstance(held, dict) else {}
    names = list(weights.values())
    odd = [name for name in names if not isinstance(name, str) or not _PART.fullmatch(name)]
    if odd or not names:
        raise CheckpointError(
            f"{folder / INDEX}: weight_map names {shorten(repr(odd[:1] or 'nothing'), 80)};"
            " expected *.safetensors beside it"
        )
    return sorted(set(names)), weights


def header_of(path: Path) -> dict[str, Held]:
    """Return what a file holds; ``safetensors`` refuses offsets that overlap or leave the file.

    Raises:
        CheckpointError: If it is damaged, names more tensors than a model has, or one of a type
            that no weight has.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > min(_MOST_HEADER, path.stat().st_size):
            raise CheckpointError(f"{path}: a header of {size} bytes; no safetensors, or cut off")
        held = {}
        with safe_open(path, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                one = opened.get_slice(name)
                held[name] = Held(path, one.get_dtype(), tuple(one.get_shape()))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: no safetensors that can be read: {_said(error)}") from None
    odd = [name for name, one in held.items() if one.dtype not in TYPES]
    if odd:
        raise CheckpointError(
            f"{path}: {shorten(odd[0], 80)} is {held[odd[0]].dtype}; expected a weight's type, one"
            f" of {', '.join(TYPES)}"
        )
    return held


def _said(error: Exception) -> str:
    return shorten(" ".join(str(error).split()), 200)
