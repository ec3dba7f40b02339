"""The header of a GGUF file: what it says of a model, and where its tensors lie.

The package ``gguf`` knows the types of numbers. Its own reader holds an array of numpy for each
element of a list, twelve microseconds and a kilobyte, and believes every size that it reads; so
the few kinds of values are read here, each within the file and all within a bound.
"""

import math
import mmap
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from mypt.errors import ConfigError, DataError
from mypt.text import shorten

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_NUMBERS: Final = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
"""Kinds of numbers, as ``struct`` and numpy call them."""
_FLOAT, _STRING, _ARRAY = 6, 8, 9
_MOST_VALUES: Final = 1 << 21
"""Strings, keys and tensors together; 262,144 tokens and their merges are a third of it."""
_MOST_HEADER: Final = 1 << 27
_MOST_DIMENSIONS: Final = 4


class Packed(NamedTuple):
    """A tensor as it lies in the file."""

    kind: str
    """What the package ``gguf`` calls the type of its numbers, such as ``Q4_1``."""
    shape: tuple[int, ...]
    """Of its numbers, the last dimension varying fastest."""
    start: int
    """Bytes of the file before it."""
    stop: int


class GGUFHeader(NamedTuple):
    """All but the weights."""

    path: Path
    values: dict[str, Any]
    """By key; lists of numbers are arrays of numpy, lists of strings are lists."""
    tensors: dict[str, Packed]


class _Header:
    """A place in the mapped file, which is never left, and what may still be read."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0
        self.left = _MOST_VALUES

    def take(self, size: int) -> int:
        """Go over ``size`` bytes, and return where they begin."""
        start = self.at
        if size > min(len(self.data), _MOST_HEADER) - start:
            raise ValueError(f"{size:,} bytes at {start:,} leave the file or are no header's")
        self.at += size
        return start

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self.data, self.take(struct.calcsize(kind)))
        return value

    def text(self) -> str:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"a header of more than {_MOST_VALUES:,} values")
        size = self.number("Q")
        start = self.take(size)
        return self.data[start : start + size].decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.several(self.number("I"), self.number("Q"))
        if kind not in _NUMBERS:
            raise ValueError(f"a value of kind {kind}")
        number = self.number(_NUMBERS[kind])
        return float(str(np.float32(number))) if kind == _FLOAT else number  # 1e-05 stays so

    def several(self, kind: int, count: int) -> Any:
        if kind == _STRING:
            return [self.text() for _ in range(count)]
        if kind not in _NUMBERS:
            raise ValueError(f"a list of values of kind {kind}")
        numbers = np.dtype(f"<{_NUMBERS[kind]}")
        return np.frombuffer(self.data, numbers, count, self.take(count * numbers.itemsize))


def read_header(path: Path) -> GGUFHeader:
    """Read a GGUF file but for its weights.

    Raises:
        ConfigError: If the package ``gguf`` is not installed.
        DataError: If it is no GGUF, or what it says does not fit the file.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ConfigError(
            f'{path}: reading it needs the package gguf, which is not installed; "pip install'
            " 'mypt[gguf]'\""
        ) from None
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _read(path, _Header(mapped))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected a GGUF") from None
    except (ValueError, KeyError, OverflowError, struct.error) as error:
        said = shorten(" ".join(str(error).split()), 160)
        raise DataError(f"{path}: no GGUF that can be read: {said}; get the file again") from None


def _read(path: Path, header: _Header) -> GGUFHeader:
    start = header.take(len(_MAGIC))
    version = header.number("I")
    if header.data[start : start + len(_MAGIC)] != _MAGIC or version not in _VERSIONS:
        raise ValueError(f"expected one of version {' or '.join(map(str, _VERSIONS))}, lowest byte"
                         " first")  # fmt: skip
    n_tensors, n_values = header.number("Q"), header.number("Q")
    values: dict[str, Any] = {}
    for _ in range(n_values):
        key = header.text()
        if key in values:
            raise ValueError(f"{shorten(key, 80)} stands there twice")
        values[key] = header.value(header.number("I"))
    found: dict[str, tuple[int, tuple[int, ...], int]] = {}
    for _ in range(n_tensors):
        name = header.text()
        if name in found:
            raise ValueError(f"tensor {shorten(name, 80)} stands there twice")
        found[name] = _tensor(header)
    parts = values.get("split.count", 1)
    if parts not in (0, 1):
        raise ValueError(f"one of {parts} files; merge them with llama.cpp's gguf-split")
    aligned = values.get("general.alignment", 32)
    if type(aligned) is not int or aligned < 1:
        raise ValueError(f"general.alignment is {aligned!r}; expected a number of bytes")
    begin = -(-header.at // aligned) * aligned
    tensors = {name: _placed(name, begin, *one) for name, one in found.items()}
    _check_places(tensors, len(header.data))
    return GGUFHeader(path, values, tensors)


def _tensor(header: _Header) -> tuple[int, tuple[int, ...], int]:
    """Return the kind, the shape and the offset of a tensor."""
    n = header.number("I")
    if not 1 <= n <= _MOST_DIMENSIONS:
        raise ValueError(f"a tensor of {n} dimensions")
    shape = tuple(header.number("Q") for _ in range(n))
    return header.number("I"), shape[::-1], header.number("Q")


def _placed(name: str, begin: int, kind: int, shape: tuple[int, ...], offset: int) -> Packed:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    known = GGMLQuantizationType(kind)
    block, size = GGML_QUANT_SIZES[known]
    if shape[-1] % block or not math.prod(shape):
        raise ValueError(f"{shorten(name, 80)} is {shape}, which {known.name} does not hold")
    stop = begin + offset + math.prod(shape) // block * size
    return Packed(known.name, shape, begin + offset, stop)


def _check_places(tensors: dict[str, Packed], size: int) -> None:
    """Refuse tensors that lie on one another or leave the file."""
    placed = sorted(tensors.items(), key=lambda item: item[1].start)
    for (one, before), (other, after) in pairwise(placed):
        if after.start < before.stop:
            raise ValueError(f"{shorten(one, 80)} and {shorten(other, 80)} overlap")
    for name, tensor in placed:
        if tensor.stop > size:
            raise ValueError(
                f"{shorten(name, 80)} ends at byte {tensor.stop:,}, the file at {size:,}"
            )
