"""Files of other programs and requests of strangers, for :mod:`tests.fuzz.targets`.

Where a file must be long to be taken at all, the bytes are a JSON object that is laid over one
that is whole: so a change reaches what stands behind the first check.
"""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mypt.data.exchange import labels as label_import
from mypt.data.vocabularies import huggingface as tokenizer_json
from mypt.data.vocabularies.base_files import TOKENIZER
from mypt.data.vocabularies.vocabulary import BYTES, CHARACTER
from mypt.inference.huggingface import imports as hf_import
from mypt.inference.server import protocol

_GPT2 = {
    "model_type": "gpt2", "n_positions": 4, "n_embd": 2, "n_layer": 1, "n_head": 1,
    "vocab_size": 2,
}  # fmt: skip
_WORDS = {CHARACTER[value]: number for number, value in enumerate(BYTES)}
_TOKENIZER = {
    "added_tokens": [{"content": "<|endoftext|>", "id": 257}],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "model": {"type": "BPE", "vocab": _WORDS | {"ab": 256}, "merges": ["a b"]},
}


def read_model(data: bytes, folder: Path) -> None:
    """Read a model of ``transformers``: config, index or weights, as the first byte says."""
    place = folder / "hf"
    place.mkdir(exist_ok=True)
    (place / "model.safetensors.index.json").unlink(missing_ok=True)
    (place / hf_import.CONFIG).write_text(json.dumps(_GPT2))
    save_file({"wte.weight": torch.zeros(2, 2)}, place / "model.safetensors")
    name = (hf_import.CONFIG, "model.safetensors.index.json", "model.safetensors")[data[0] % 3]
    (place / name).write_bytes(data[1:])
    hf_import.read_base(place)


def read_tokenizer(data: bytes, folder: Path) -> None:
    """Read a ``tokenizer.json``: as it is, or, if the first byte is odd, laid over a whole one."""
    whole = data[1:]
    if data[0] % 2:
        with suppress(ValueError, RecursionError, TypeError):
            whole = json.dumps(_laid_over(_TOKENIZER, json.loads(whole))).encode()
    (folder / TOKENIZER).write_bytes(whole)
    tokenizer_json.hf_vocabulary(folder)


def read_labels(data: bytes, folder: Path) -> None:
    """Read tables of ``input_ids`` and ``labels``."""
    place, out = folder / "labels", folder / "adopted"
    place.mkdir(exist_ok=True)
    (place / "train.parquet").write_bytes(data)
    try:
        label_import.adopt_labels(place, out, "byte")
    finally:
        shutil.rmtree(out, ignore_errors=True)


def read_saved(data: bytes, folder: Path) -> None:
    """Read a folder of ``datasets``: its state, or its table, as the first byte says."""
    place, out = folder / "saved", folder / "adopted"
    place.mkdir(exist_ok=True)
    (place / "state.json").write_text('{"_data_files": [{"filename": "0.arrow"}]}')
    (place / ("state.json" if data[0] % 2 else "0.arrow")).write_bytes(data[1:])
    try:
        label_import.adopt_labels(place, out, "byte")
    finally:
        shutil.rmtree(out, ignore_errors=True)


def read_request(data: bytes, _: Path) -> None:
    """Read a request to the server."""
    with suppress(protocol.Refused):
        protocol.read_request(data, protocol.ChatRequest).conversation()


TARGETS: dict[str, Callable[[bytes, Path], object]] = {
    "hf_model": read_model,
    "hf_tokenizer": read_tokenizer,
    "labels": read_labels,
    "request": read_request,
    "saved": read_saved,
}


def _laid_over(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: _laid_over(below.get(key), value) for key, value in above.items()}
    return above
