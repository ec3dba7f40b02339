"""One model, two spellings: our weights, and those of ``transformers``, by the families' table."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor

from mypt.config import Architecture, GPTConfig
from mypt.errors import CheckpointError
from mypt.inference.huggingface.families import FAMILIES, Family, Form, Lying
from mypt.inference.huggingface.tensors import Held
from mypt.model.parameters import shapes
from mypt.text import shorten

Weights = dict[str, Tensor]
_BLOCK = re.compile(r"transformer\.h\.(\d+)\.(.+)")
_BUFFERS = re.compile(r".*\.((attn|attention)\.(masked_)?bias|(rotary_emb\.)inv_freq)")
"""Masks and speeds that older files hold beside the weights."""
_HEAD: Final = "lm_head.weight"


class TensorStore(Protocol):
    """Where tensors of theirs lie."""

    place: Path
    """The folder or the file."""
    held: dict[str, Held]

    def read(self, name: str) -> Tensor:
        """Return one by its name."""


class Row(NamedTuple):
    """A parameter of ours and where it lies with them."""

    ours: str
    shape: tuple[int, ...]
    theirs: tuple[str, ...]
    sizes: list[int]
    """Rows of ours that each of theirs holds."""
    form: Form


def rows_of(family: Family, model: Architecture) -> tuple[Row, ...]:
    """Return every parameter of a model with the place that its family has for it."""
    found = shapes(GPTConfig(**model.model_dump()))
    return tuple(_row(family, model, ours, tuple(shape)) for ours, shape in found.items())


def from_hf(family: Family, model: Architecture, tensors: TensorStore) -> Weights:
    """Return a model's weights, float32 under our names; what lies there as here is only mapped.

    Raises:
        CheckpointError: If a tensor is missing, left over or of another shape, or a head of its own
            stands beside a config that ties it.
    """
    rows, found = rows_of(family, model), check_weights(family, model, tensors)
    heads = model.n_head
    return {
        row.ours: read_row(row, heads, [tensors.read(found[one]) for one in row.theirs])
        for row in rows
    }


def check_weights(family: Family, model: Architecture, tensors: TensorStore) -> dict[str, str]:
    """Return the names in the files by those of the family's table; only headers are read.

    Raises:
        CheckpointError: As :func:`from_hf`.
    """
    found = _aliases(family, tensors)
    _check(family, model, rows_of(family, model), tensors, found)
    return found


def to_hf(name: str, model: Architecture, weights: Weights, dtype: torch.dtype) -> Weights:
    """Return weights under the names and in the layout of a family of transformers."""
    return to_theirs(FAMILIES[name], model, weights, dtype)


def to_theirs(family: Family, model: Architecture, weights: Weights, dtype: torch.dtype) -> Weights:
    """Return weights under the names and in the layout of a family.

    Where its models have biases and ours has none, they are 0.
    """
    theirs = Weights()
    full = model.model_copy(update={"bias": True}) if family.always_bias else model
    for row in rows_of(family, full):
        known = weights.get(row.ours)
        ours = torch.zeros(row.shape) if known is None else known
        for there, tensor in zip(row.theirs, write_row(row, model.n_head, ours), strict=True):
            theirs[there] = tensor.to(dtype).contiguous()
    return theirs


def _row(family: Family, model: Architecture, ours: str, shape: tuple[int, ...]) -> Row:
    block, (where, _, kind) = _BLOCK.fullmatch(ours), ours.rpartition(".")
    begins = ""
    if block is not None:
        begins, (where, _, kind) = family.block.format(block[1]), block[2].rpartition(".")
    part: Lying = family.parts[where]
    theirs = tuple(f"{begins}{name}.{kind}" for name in part.theirs)
    sizes = [shape[0]]
    if len(theirs) == 2:
        sizes = [shape[0] // 2] * 2
    elif len(theirs) == 3:
        keys = model.key_heads * model.head_width
        sizes = [model.n_head * model.head_width, keys, keys]
    form: Form = "same" if part.form == "turned" and kind == "bias" else part.form
    return Row(ours, shape, theirs, sizes, form)


def _aliases(family: Family, tensors: TensorStore) -> dict[str, str]:
    """Return the names in the file by those of the table; some files leave a beginning out."""
    begins = family.block.split(".")[0] + "."
    names = [name for name in tensors.held if not _BUFFERS.fullmatch(f".{name}")]
    bare = not any(name.startswith(begins) for name in names)
    outer = tuple(part.theirs[0] for key, part in family.parts.items() if key == "lm_head")
    return {
        begins + name if bare and not name.startswith((*outer, begins)) else name: name
        for name in names
    }


def _check(
    family: Family,
    model: Architecture,
    rows: tuple[Row, ...],
    tensors: TensorStore,
    found: dict[str, str],
) -> None:
    """Compare names and shapes, before any number is read."""
    expected = dict(_shapes(rows))
    for there, shape in expected.items():
        if there not in found:
            raise CheckpointError(
                f"{tensors.place}: no tensor {there}; expected those of {family.architecture}"
            )
        held = tensors.held[found[there]]
        if held.shape != shape:
            raise CheckpointError(
                f"{held.path}: {there} is {held.shape}; expected {shape}, as the config says"
            )
    left = [there for there in found if there not in expected]
    head = f"{family.parts['lm_head'].theirs[0]}.weight"
    if model.tie_weights and head in left:
        left.remove(head)
        (tied,) = family.parts["transformer.wte"].theirs
        same = tensors.held[found[head]].shape == expected[f"{tied}.weight"]
        if not same or not torch.equal(
            tensors.read(found[head]), tensors.read(found[f"{tied}.weight"])
        ):
            raise CheckpointError(
                f"{tensors.held[found[head]].path}: {head} is not {tied}.weight, though"
                " tie_word_embeddings is true; set it false if the head is its own"
            )
    if left:
        raise CheckpointError(
            f"{tensors.held[found[left[0]]].path}: {shorten(left[0], 80)} (and {len(left) - 1}"
            f" more) has no place in {family.architecture}; the config says another model"
        )


def _shapes(rows: tuple[Row, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield each tensor of theirs with its shape."""
    for row in rows:
        for there, size in zip(row.theirs, row.sizes, strict=True):
            shape = (size, *row.shape[1:])
            yield there, shape[::-1] if row.form == "turned" else shape


def read_row(row: Row, heads: int, theirs: list[Tensor]) -> Tensor:
    """Return a parameter of ours, float32, from the tensors that hold it.

    Args:
        row: Which one, and how it lies there.
        heads: Of queries.
        theirs: As many as the row names.
    """
    first = theirs[0]
    if row.form == "same" and len(theirs) == 1 and first.dtype == torch.float32:
        return first
    ours = torch.empty(row.shape)
    parts = zip(torch.split(ours, row.sizes), theirs, strict=True)
    for number, (place, tensor) in enumerate(parts):
        if row.form == "by pair" and number < 2:
            half = row.sizes[0] // heads // 2
            place.view(-1, 2, half, *row.shape[1:]).copy_(
                tensor.view(-1, half, 2, *row.shape[1:]).transpose(1, 2)
            )
        elif row.form == "turned":
            place.copy_(tensor.t())
        elif row.form == "gate first":
            place.copy_(torch.cat(tensor.chunk(2)[::-1]))
        elif row.form == "by head":
            _by_part(place, heads).copy_(_by_head(tensor, heads).transpose(0, 1))
        else:
            place.copy_(tensor)
    return ours.add_(1) if row.form == "less one" else ours


def write_row(row: Row, heads: int, ours: Tensor) -> list[Tensor]:
    """Return what :func:`read_row` reads a parameter of ours from."""
    if row.form == "turned":
        return [ours.t()]
    if row.form == "gate first":
        return [torch.cat(ours.chunk(2)[::-1])]
    if row.form == "by head":
        return [_by_part(ours, heads).transpose(0, 1).reshape(ours.shape)]
    if row.form == "less one":
        return [ours - 1]
    theirs = list(torch.split(ours, row.sizes))
    if row.form == "by pair":
        half = row.sizes[0] // heads // 2
        for number in (0, 1):
            halves = theirs[number].reshape(-1, 2, half, *row.shape[1:])
            theirs[number] = halves.transpose(1, 2).reshape(theirs[number].shape)
    return theirs


def _by_part(tensor: Tensor, heads: int) -> Tensor:
    return tensor.view(3, heads, -1, *tensor.shape[1:])


def _by_head(tensor: Tensor, heads: int) -> Tensor:
    return tensor.view(heads, 3, -1, *tensor.shape[1:])
