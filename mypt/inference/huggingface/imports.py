"""Checkpoints from elsewhere as models of ours, from safetensors or GGUF alone."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from mypt import files
from mypt.config import Architecture
from mypt.data.tokenizer import Tokenizer
from mypt.data.vocabularies.base_files import (
    TOKENIZER,
    base_path,
    read_tokenizer,
    read_tokenizer_config,
)
from mypt.data.vocabularies.engine import SPACE
from mypt.data.vocabularies.gguf_header import read_header
from mypt.data.vocabularies.vocabulary import Vocabulary
from mypt.errors import CheckpointError
from mypt.inference.huggingface.families import FAMILIES
from mypt.inference.huggingface.gguf_layouts import GGUFTensors, gguf_config, gguf_family
from mypt.inference.huggingface.layouts import read_layout, write_layout
from mypt.inference.huggingface.tensors import INDEX, INSTEAD, ONE, Tensors, inside, read_json
from mypt.inference.huggingface.weights import Weights, check_weights, from_hf
from mypt.references import BaseRecord

CONFIG = "config.json"
GENERATION = "generation_config.json"
COMMON: Final = {
    "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True,
}  # fmt: skip
"""How a control token is read unless its tokenizer says otherwise."""
_NOT_KEPT: Final = frozenset({
    "added_tokens_decoder", "auto_map", "chat_template", "name_or_path", "tokenizer_file",
})  # fmt: skip


class Imported(NamedTuple):
    """A model as it was read."""

    architecture: Architecture
    weights: Weights
    """Float32, under our names; mapped from the files where they lie there so."""
    files: tuple[Path, ...]
    """What was read."""
    base: BaseRecord
    """What an export gives back."""


def read_base(base: Path) -> Imported:
    """Read a folder in the layout of ``transformers``, or a GGUF file.

    Raises:
        CheckpointError: As :func:`read_hf`.
        ConfigError: If a size is none, or a package that reads it is not installed.
        DataError: If a GGUF cannot be read.
    """
    return read_gguf(base) if base.is_file() else read_hf(base)


def read_gguf(path: Path) -> Imported:
    """Read a GGUF file, its numbers as the float32 that they stand for.

    Raises:
        CheckpointError: If the model has parts that are not ours.
        ConfigError: If a size is none, or the package ``gguf`` is not installed.
        DataError: If the file is damaged.
    """
    header = read_header(path)
    name, architecture = read_layout(gguf_config(header), path)
    tensors = GGUFTensors(header)
    weights = from_hf(gguf_family(header), architecture, tensors)
    config = json.dumps(gguf_config(header) | write_layout(name, architecture))
    words = _tokenizer(path) if "tokenizer.ggml.model" in header.values else {}
    base = BaseRecord(config=config, dtype=tensors.dtype, **words)
    return Imported(architecture, weights, (path,), base)


def read_hf(folder: Path) -> Imported:
    """Read a folder in the layout of ``transformers``; no pickle is ever read, and no code run.

    Raises:
        CheckpointError: If a file is missing or damaged, or the model has parts that are not ours.
        ConfigError: If a size is none.
    """
    config = read_json(folder, CONFIG)
    name, architecture = read_layout(config, folder / CONFIG)
    tensors = Tensors(folder)
    weights = from_hf(FAMILIES[name], architecture, tensors)
    paths, generation = [folder / CONFIG, *tensors.paths], ""
    if (folder / GENERATION).exists():
        read_json(folder, GENERATION)
        paths.append(folder / GENERATION)
        generation = (folder / GENERATION).read_text(encoding="utf-8")
    base = BaseRecord(
        config=inside(folder, CONFIG).read_text(encoding="utf-8"),
        generation=generation,
        dtype=tensors.dtype,
        **_tokenizer(folder),
    )
    return Imported(architecture, weights, tuple(paths), base)


def check_base(tokenization: str) -> None:
    """Refuse a base that a training would refuse, before anything is prepared for it.

    Only headers are read. A folder with a tokenizer alone holds no base, and may serve any model.

    Args:
        tokenization: ``hf:`` and a folder, or ``gguf:`` and a file, as ``mypt prepare`` has it.

    Raises:
        CheckpointError: As :func:`read_base`, or if its tokenizer has ids that no row is for.
        ConfigError: If a size is none, or there is no such base.
        DataError: If a GGUF or a tokenizer cannot be read.
    """
    base = base_path(tokenization)
    if base.is_file():
        header = read_header(base)
        where, (_, architecture) = base, read_layout(gguf_config(header), base)
        check_weights(gguf_family(header), architecture, GGUFTensors(header))
    elif any((base / name).exists() for name in (ONE, INDEX, *INSTEAD)):
        where = base / CONFIG
        name, architecture = read_layout(read_json(base, CONFIG), where)
        check_weights(FAMILIES[name], architecture, Tensors(base))
    else:
        return
    values = read_tokenizer(base).values
    ids = [token["id"] for token in values["added_tokens"]]
    _check_ids(where, architecture.vocab_size, [*values["model"]["vocab"].values(), *ids])


def _check_ids(config: Path, held: int, ids: Iterable[int]) -> None:
    last = max(ids, default=0)
    if last >= held:
        raise CheckpointError(
            f"{config}: vocab_size is {held}; expected more than {last}, the last id of its"
            " tokenizer"
        )


def _tokenizer(base: Path) -> dict[str, str]:
    """Return what an export of the tokenizer keeps beside what a vocabulary holds."""
    config = {k: value for k, value in read_tokenizer_config(base).items() if k not in _NOT_KEPT}
    held = base.is_file() or (base / TOKENIZER).exists()
    flags = _flags(read_tokenizer(base).values.get("added_tokens", [])) if held else {}
    return {
        name: files.canonical_json(values).decode()
        for name, values in (("tokenizer", config), ("flags", flags))
        if values
    }


def _flags(added: Iterable[dict[str, Any]]) -> dict[str, dict[str, bool]]:
    """Return how tokens are read that are not as most, by name; numbered ones that are alike once.

    A base may have thousands of unused ones.
    """
    flags = {one["content"]: {key: one.get(key, COMMON[key]) for key in COMMON} for one in added}
    alike: dict[str, list[dict[str, bool]]] = {}
    for token, own in flags.items():
        alike.setdefault(unnumbered(token), []).append(own)
    return {
        (
            unnumbered(token) if all(own == other for other in alike[unnumbered(token)]) else token
        ): own
        for token, own in flags.items()
        if own != COMMON and token.strip(f" \n\t\r{SPACE}")
    }


def unnumbered(token: str) -> str:
    """Return a token with ``#`` in place of each number."""
    return re.sub(r"\d+", "#", token)


def with_new_tokens(read: Imported, known: Vocabulary, tokenizer: Tokenizer) -> Imported:
    """Return the model with a row for each token; a new one begins at the mean of the known.

    Args:
        read: As it was read.
        known: Its own vocabulary, special tokens included.
        tokenizer: The same with the tokens of a chat template.

    Raises:
        CheckpointError: If the vocabulary has tokens that the model has no row for.
    """
    ids = [*range(len(known.tokens)), *known.special_tokens.values()]
    new = [i for token, i in tokenizer.special_tokens.items() if token not in known.special_tokens]
    held = read.architecture.vocab_size
    _check_ids(read.files[0], held, ids)
    rows = max(held, tokenizer.n_vocab)
    weights = dict(read.weights)
    for name in ("transformer.wte.weight", "lm_head.weight"):
        if name in weights and (new or rows > held):
            old = weights[name]
            grown = old.new_empty(rows, old.shape[1])
            grown[:held] = old
            grown[held:] = old.mean(0)
            grown[new] = old[ids].mean(0)
            weights[name] = grown
    architecture = read.architecture.model_copy(update={"vocab_size": rows})
    return read._replace(architecture=architecture, weights=weights)
