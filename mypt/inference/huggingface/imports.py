"""Checkpoints from elsewhere as models of ours, from safetensors or GGUF alone."""

import json
from pathlib import Path
from typing import NamedTuple

from mypt.config import Architecture
from mypt.data.tokenizer import Tokenizer
from mypt.data.vocabularies.gguf_header import read_header
from mypt.data.vocabularies.vocabulary import Vocabulary
from mypt.errors import CheckpointError
from mypt.inference.huggingface.families import FAMILIES
from mypt.inference.huggingface.gguf_layouts import GGUFTensors, gguf_config, gguf_family
from mypt.inference.huggingface.layouts import read_layout, write_layout
from mypt.inference.huggingface.tensors import Tensors, inside, read_json
from mypt.inference.huggingface.weights import Weights, from_hf
from mypt.references import BaseRecord

CONFIG = "config.json"
GENERATION = "generation_config.json"


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
    return Imported(architecture, weights, (path,), BaseRecord(config=config, dtype=tensors.dtype))


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
    text = inside(folder, CONFIG).read_text(encoding="utf-8")
    base = BaseRecord(config=text, generation=generation, dtype=tensors.dtype)
    return Imported(architecture, weights, tuple(paths), base)


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
    if max(ids) >= held:
        raise CheckpointError(
            f"{read.files[0]}: vocab_size is {held}; expected more than {max(ids)}, the last id of"
            " its tokenizer"
        )
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
