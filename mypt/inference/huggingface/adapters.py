"""An adapter of ours as ``peft`` reads it, beside a base in the layout of ``transformers``.

What peft adapts as one matrix may be several targets of ours: their As then stand on one another,
their Bs side by side, and the rank there is the sum.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from mypt import files
from mypt.config import GPTConfig, Lora
from mypt.inference.huggingface.families import FAMILIES
from mypt.inference.huggingface.imports import CONFIG
from mypt.inference.huggingface.layouts import family_of, read_layout
from mypt.inference.huggingface.weights import Row, Weights, rows_of, write_row
from mypt.model.lora import targets
from mypt.references import BaseRecord

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
_OURS: Final = re.compile(r"transformer\.h\.\d+\.(.+)\.weight")


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
        card: ``README.md``.

    Raises:
        ConfigError: If transformers has no class for the model.
        FileExistsError: If ``folder`` exists.
    """
    theirs = json.loads(base.config) if base else None
    name = read_layout(theirs, Path(CONFIG))[0] if theirs else family_of(config)
    pairs = tuple(_pairs(name, config, lora, adapter))
    with files.new_folder(folder) as new:
        tensors = {
            f"base_model.model.{pair.module}.lora_{which}.weight": tensor.contiguous()
            for pair in pairs
            for which, tensor in (("A", pair.a), ("B", pair.b))
        }
        save_file(tensors, new / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        files.write_json(new / ADAPTER_CONFIG, _config(name, lora, pairs) | {
            "base_model_name_or_path": base_name,
        })  # fmt: skip
        files.write_bytes(new / "README.md", card.encode())


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
