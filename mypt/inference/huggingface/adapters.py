"""An adapter of ours as ``peft`` has it, beside a base in the layout of ``transformers``.

What peft adapts as one matrix may be several targets of ours: their As then stand on one another,
their Bs side by side, and the rank there is the sum. What comes from peft is taken apart again.
"""

import json
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mypt import files
from mypt.config import TARGETS, GPTConfig, Lora
from mypt.data.vocabularies.base_files import PEFT
from mypt.errors import CheckpointError
from mypt.inference.huggingface.families import FAMILIES, Form
from mypt.inference.huggingface.imports import CONFIG
from mypt.inference.huggingface.layouts import family_of, read_layout
from mypt.inference.huggingface.tensors import header_of, inside, read_json
from mypt.inference.huggingface.weights import Row, Weights, read_row, rows_of, write_row
from mypt.model.lora import BESIDE, targets
from mypt.parsing import Frozen, parse_config
from mypt.references import BaseRecord
from mypt.text import shorten

ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
_OURS: Final = re.compile(r"transformer\.h\.\d+\.(.+)\.weight")
_BEGINS: Final = "base_model.model."
_BASE: Final = "base"
"""Under which the weights' metadata name the digest of the base that training had."""
_SAID_BY_TENSORS: Final = frozenset({
    "peft_type", "init_lora_weights",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out",
    "auto_mapping", "revision", "task_type", "inference_mode", "peft_version", "runtime_config",
    "megatron_core", "qalora_group_size", "ensure_weight_tying",
})  # fmt: skip
"""Keys that change nothing of what given tensors compute; any other must be off."""
_KEEPS_BASE: Final = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to begin an adapter that leave the base's weights as they are."""
_PLAIN: Final = re.compile(r"\^?([\w-]|\\?\.|\\-){1,200}\$?")
"""A name, its end or its beginning, as a pattern; nothing in it repeats."""
_MOST_PATTERNS: Final = 2_000
_REACH: Final = math.sqrt(torch.finfo(torch.float32).max)
"""What is larger has no square in float32, which norms take."""
_Rank = Annotated[int, Field(ge=1, le=100_000)]
_Alpha = Annotated[float, Field(gt=0.0, le=1e6)]
_Number = TypeVar("_Number", int, float)


class Pair(NamedTuple):
    """A and B of one matrix of theirs."""

    module: str
    """Its name in the whole model."""
    within: str
    """And in a block."""
    a: Tensor
    b: Tensor


def export_peft(
    folder: Path,
    config: GPTConfig,
    lora: Lora,
    adapter: Weights,
    *,
    base: BaseRecord | None,
    base_name: str,
    base_digest: str,
    card: str,
) -> None:
    """Write an adapter and its config for ``peft``.

    Args:
        folder: A new folder.
        config: The model's.
        lora: The adapter's.
        adapter: Its weights, as a checkpoint holds them.
        base: What the model came from, if it did: its family is kept.
        base_name: Where the base lies; peft reads it from there unless it is given one.
        base_digest: Digest of its weights, by which :func:`open_peft` knows it again.
        card: ``README.md``.

    Raises:
        ConfigError: If transformers has no class for the model.
        FileExistsError: If ``folder`` exists.
    """
    name = _family(config, base)
    pairs = tuple(_pairs(name, config, lora, adapter))
    with files.new_folder(folder) as new:
        tensors = {
            _tensor(pair.module, which): tensor.contiguous()
            for pair in pairs
            for which, tensor in (("A", pair.a), ("B", pair.b))
        }
        said = {"format": "pt", _BASE: base_digest}
        save_file(tensors, new / ADAPTER_WEIGHTS, metadata=said)
        files.write_json(new / PEFT, _config(name, lora, pairs) | {
            "base_model_name_or_path": base_name,
        })  # fmt: skip
        files.write_bytes(new / "README.md", card.encode())


def _family(config: GPTConfig, base: BaseRecord | None) -> str:
    """Return the family in whose layout the model goes out, or its base came in."""
    return read_layout(json.loads(base.config), Path(CONFIG))[0] if base else family_of(config)


def _tensor(module: str, which: str) -> str:
    return f"{_BEGINS}{module}.lora_{which}.weight"


def _config(family: str, lora: Lora, pairs: tuple[Pair, ...]) -> dict[str, Any]:
    """Return ``adapter_config.json``; of stacked targets the scale stays what it is."""
    ranks = {pair.within: len(pair.a) for pair in pairs if len(pair.a) != lora.rank}
    power = 0.5 if lora.rslora else 1.0
    turned = FAMILIES[family].parts["mlp.c_fc"].form == "turned"
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "inference_mode": True,
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora, "fan_in_fan_out": turned,
        "target_modules": sorted({pair.within for pair in pairs}),
        "rank_pattern": {re.escape(where): rank for where, rank in ranks.items()},
        "alpha_pattern": {
            re.escape(where): lora.scale * rank**power for where, rank in ranks.items()
        },
    }  # fmt: skip


def _pairs(family: str, config: GPTConfig, lora: Lora, adapter: Weights) -> Iterator[Pair]:
    """Yield each matrix of theirs that is adapted."""
    wanted = targets(config, lora)
    for row in rows_of(FAMILIES[family], config):
        found = _OURS.fullmatch(row.ours)
        if found is None or found[1] not in wanted:
            continue
        own = wanted[found[1]]
        place = row.ours.removesuffix(".weight")
        a = torch.split(adapter[f"{place}.adapter.a"], lora.rank)
        b, start = adapter[f"{place}.adapter.b"], 0
        whole = b.new_zeros(row.shape[0], lora.rank * len(own))
        held = torch.zeros(row.shape[0], len(own))
        for number, target in enumerate(own):
            size = target.rows.stop - target.rows.start
            columns = slice(number * lora.rank, (number + 1) * lora.rank)
            whole[target.rows, columns] = b[start : start + size]
            held[target.rows, number] = 1
            start += size
        yield from _split(row, config.n_head, a, whole, held)


def _split(
    row: Row, heads: int, a: tuple[Tensor, ...], whole: Tensor, held: Tensor
) -> Iterator[Pair]:
    """Yield what lies in each tensor of theirs; rows go where the matrix's own go."""
    lying = row._replace(form="same" if row.form == "turned" else row.form)
    parts = (write_row(lying, heads, tensor) for tensor in (whole, held))
    for there, b, marks in zip(row.theirs, *parts, strict=True):
        inside = [number for number, mark in enumerate(marks.any(0)) if mark]
        if not inside:
            continue
        module = there.removesuffix(".weight")
        columns = torch.split(b, len(a[0]), 1)
        yield Pair(
            module,
            re.sub(r".*\.\d+\.", "", module),
            torch.cat([a[number] for number in inside]),
            torch.cat([columns[number] for number in inside], 1),
        )


class PeftConfig(Frozen):
    """What ``adapter_config.json`` says of how A and B are computed; peft's own defaults."""

    r: _Rank = 8
    lora_alpha: _Alpha = 8
    use_rslora: bool = False
    rank_pattern: dict[str, _Rank] | None = Field(default=None, max_length=_MOST_PATTERNS)
    """Ranks of modules that have another than ``r``; the first pattern that meets one's end."""
    alpha_pattern: dict[str, _Alpha] | None = Field(default=None, max_length=_MOST_PATTERNS)
    lora_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    base_model_name_or_path: Any = None

    @field_validator("rank_pattern", "alpha_pattern", mode="before")
    @classmethod
    def _names_alone(cls, said: Any) -> Any:
        keys = said if isinstance(said, dict) else ()
        if odd := [key for key in keys if not _PLAIN.fullmatch(key)]:
            raise ValueError(
                f"{shorten(odd[0], 60)!r} is no module's name; expected names or their ends,"
                " such as 'self_attn.q_proj', of at most 200 characters"
            )
        return said

    def rank(self, module: str) -> int:
        """Return the rows of a module's A."""
        return _of(module, self.rank_pattern, self.r)

    def scale(self, module: str = "") -> float:
        """Return by what B A of a module is multiplied; without one, that of most."""
        rank = self.rank(module)
        alpha = _of(module, self.alpha_pattern, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _of(module: str, said: dict[str, _Number] | None, most: _Number) -> _Number:
    return next((value for key, value in (said or {}).items() if _ends(key).match(module)), most)


@lru_cache(maxsize=2 * _MOST_PATTERNS)
def _ends(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")  # as peft has it


class PeftAdapter(NamedTuple):
    """A folder of peft's that holds an adapter."""

    config: PeftConfig
    tensors: Weights
    files: tuple[Path, Path]
    base_digest: str
    """Digest of the base's weights, where mypt wrote the folder; else empty."""


def open_peft(folder: Path) -> PeftAdapter:
    """Read an adapter's files and refuse what is not computed here; no pickle is read.

    Raises:
        CheckpointError: If a file is missing or damaged, a tensor is of no weight's type or not
            finite, or its config asks for more than A and B.
        ConfigError: If its config holds a wrong value.
    """
    config, path, known = read_json(folder, PEFT), folder / PEFT, PeftConfig.model_fields
    if (found := config.get("peft_type")) != "LORA":
        raise CheckpointError(f"{path}: peft_type {shorten(str(found), 40)}; expected LORA")
    begun = config.get("init_lora_weights", True)
    if begun not in _KEEPS_BASE:
        raise CheckpointError(
            f"{path}: init_lora_weights {shorten(str(begun), 40)} changes the base; expected an"
            " adapter of the base as it is, which save_pretrained converts to"
        )
    for key, value in config.items():
        if key not in {*known, *_SAID_BY_TENSORS} and value and value != "none":
            raise CheckpointError(
                f"{path}: {shorten(key, 40)} {shorten(str(value), 60)} is not computed here;"
                " expected LoRA's A and B alone; merge it into its base with peft's"
                " merge_and_unload and begin with hf:FOLDER"
            )
    read = parse_config({k: v for k, v in config.items() if k in known}, PeftConfig, str(path))
    if not (folder / ADAPTER_WEIGHTS).exists():
        raise CheckpointError(
            f"{folder / ADAPTER_WEIGHTS}: no such file; expected safetensors, which peft's"
            " save_pretrained writes; a pickle is never read"
        )
    weights = inside(folder, ADAPTER_WEIGHTS)
    names = header_of(weights)
    try:
        with safe_open(weights, "pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{weights}: cannot be read: {error}") from None
    if odd := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise CheckpointError(
            f"{weights}: {shorten(odd[0], 120)} (and {len(odd) - 1} more) holds inf or nan;"
            " expected finite numbers; save the adapter anew from an earlier step"
        )
    return PeftAdapter(read, tensors, (path, weights), said.get(_BASE, ""))


def from_peft(
    opened: PeftAdapter, model: GPTConfig, base: BaseRecord | None
) -> tuple[Lora, Weights]:
    """Return an adapter of peft's as ours, beside a model of these sizes.

    Ours has one rank and one scale: where theirs differ, B takes up the scale, and rows and columns
    of 0 the rank. Columns of B that are 0 for a target alone, as an export stacks them, go.

    Args:
        opened: What was read.
        model: The base's.
        base: What the base was elsewhere, if it came from there: its family says the names.

    Raises:
        CheckpointError: If a tensor is missing, of another shape, or none of the blocks' matrices.
        ConfigError: If rank, alpha or dropout is none.
    """
    family = FAMILIES[_family(model, base)]
    known, left = targets(model, Lora()), dict(opened.tensors)
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for row in rows_of(family, model):
        ours = _OURS.fullmatch(row.ours)
        if ours is None or ours[1] not in known:
            continue
        a, b, held = _joined(opened, row, model.n_head, left)
        place = row.ours.removesuffix(".weight")
        for target in known[ours[1]]:
            whole, columns = b[target.rows], held[target.rows].any(0)
            if b[:, columns].any():  # else nothing was learned yet, and all of it may be meant
                columns &= whole.any(0)
            if not columns.any():
                continue
            found.setdefault(place, {})[target.name] = a[columns], whole[:, columns]
    if left:
        raise CheckpointError(
            f"{opened.files[1]}: {shorten(next(iter(left)), 120)} (and {len(left) - 1} more) is"
            f" beside no matrix that is adapted here; expected pairs beside {', '.join(TARGETS)}"
        )
    return _fitted(opened, model, found)


def _joined(
    opened: PeftAdapter, row: Row, heads: int, left: Weights
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the pairs beside a matrix of ours from ``left``, as one pair.

    Returns:
        (R, in) and (out, R), R the sum of their ranks, all scaled as most are; and (out, R) of 1
        where a pair reaches.
    """
    names = [there.removesuffix(".weight") for there in row.theirs]
    pairs = [(left.pop(_tensor(n, "A"), None), left.pop(_tensor(n, "B"), None)) for n in names]
    ranks = [
        0 if pair == (None, None) else opened.config.rank(name)
        for name, pair in zip(names, pairs, strict=True)
    ]
    for name, pair, size, rank in zip(names, pairs, row.sizes, ranks, strict=True):
        shapes = [None if found is None else tuple(found.shape) for found in pair]
        if rank and shapes != [(rank, row.shape[1]), (size, rank)]:
            raise CheckpointError(
                f"{opened.files[1]}: A and B of {name} are {shapes[0]} and {shapes[1]}; expected"
                f" ({rank}, {row.shape[1]}) and ({size}, {rank}), by r or rank_pattern and the base"
            )
        most = [found.abs().max().item() for found in pair if found is not None]
        if rank and math.prod(most) * rank * opened.config.scale(name) > _REACH:
            raise CheckpointError(
                f"{opened.files[1]}: A and B of {name} hold up to {most[0]:.3g} and {most[1]:.3g};"
                f" expected numbers of which no product is over {_REACH:.3g}"
            )
    a = torch.zeros(sum(ranks), row.shape[1])
    parts = [(torch.zeros(size, len(a)), torch.zeros(size, len(a))) for size in row.sizes]
    start = 0
    for name, (one, other), rank, (b, held) in zip(names, pairs, ranks, parts, strict=True):
        if one is not None and other is not None:
            here = slice(start, start := start + rank)
            a[here] = one
            b[:, here] = other * (opened.config.scale(name) / opened.config.scale())
            held[:, here] = 1
    form: Form = "same" if row.form == "turned" else row.form
    lying = row._replace(form=form, shape=(row.shape[0], len(a)))
    b, held = (read_row(lying, heads, list(one)) for one in zip(*parts, strict=True))
    return a, b, held


def _fitted(
    opened: PeftAdapter, model: GPTConfig, found: dict[str, dict[str, tuple[Tensor, Tensor]]]
) -> tuple[Lora, Weights]:
    """Return pairs as training keeps them, all of one rank: of those in each block the highest."""
    names = {name for pairs in found.values() for name in pairs}
    rank = max((len(a) for pairs in found.values() for a, _ in pairs.values()), default=0)
    if not rank:
        raise CheckpointError(f"{opened.files[1]}: no A and B; expected those of an adapter")
    roots = opened.config.use_rslora
    values = {
        "rank": rank,
        "alpha": opened.config.scale() * (math.sqrt(rank) if roots else rank),
        "rslora": roots,
        "dropout": opened.config.lora_dropout,
        "targets": [name for name in TARGETS if name in names],
        "tokens": [],
    }
    lora = parse_config(values, Lora, str(opened.files[0]))
    weights = Weights()
    for block in range(model.n_layer):
        for kind, own in targets(model, lora).items():
            place = f"transformer.h.{block}.{kind}"
            if lacking := [one.name for one in own if one.name not in found.get(place, {})]:
                raise CheckpointError(
                    f"{opened.files[1]}: no A and B for {lacking[0]} of block {block}, and some"
                    " for another block's; expected the same matrices in every block"
                )
            pairs = [found[place][one.name] for one in own]
            weights[f"{place}.{BESIDE}.a"] = torch.cat(
                [F.pad(a, (0, 0, 0, rank - len(a))) for a, _ in pairs]
            )
            weights[f"{place}.{BESIDE}.b"] = torch.cat(
                [F.pad(b, (0, rank - b.shape[1])) for _, b in pairs]
            )
    return lora, weights
