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
from mypt.errors import CheckpointError, ConfigError
from mypt.inference.huggingface.families import FAMILIES, Family
from mypt.inference.huggingface.gguf_layouts import GGUFTensors, gguf_config, gguf_family
from mypt.inference.huggingface.layouts import read_layout, refuse_quantised, write_layout
from mypt.inference.huggingface.tensors import INDEX, INSTEAD, ONE, Tensors, inside, read_json
from mypt.inference.huggingface.weights import Weights, check_weights, from_hf
from mypt.model.foreign import read_architecture, read_module, with_rows
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
    tables: tuple[str, ...] = ("transformer.wte.weight", "lm_head.weight")
    """Weights with a row for each token, where there are such."""


def read_base(base: Path) -> Imported:
    """Read a folder in the layout of ``transformers``, or a GGUF file, by the family's table.

    No pickle is ever read, no code run; a GGUF's numbers become the float32 they stand for.

    Raises:
        CheckpointError: If a file is missing or damaged, or the model has parts that are not ours.
        ConfigError: If a size is none, or a package that reads it is not installed.
        DataError: If a GGUF cannot be read.
    """
    found = _open(base)
    weights = from_hf(found.family, found.architecture, found.tensors)
    if isinstance(found.tensors, Tensors):
        return _imported(base, found.architecture, weights, found.tensors)
    config = json.dumps(found.config | write_layout(found.name, found.architecture))
    words = _tokenizer(base) if found.has_tokenizer else {}
    record = BaseRecord(config=config, dtype=found.tensors.dtype, **words)
    return Imported(found.architecture, weights, (base,), record)


def read_foreign(folder: Path) -> Imported:
    """Read a folder for the module that `transformers` itself has for it.

    Raises:
        CheckpointError: If a file is missing or damaged, or is no such model's.
        ConfigError: If it is a GGUF, or `transformers` is not installed or has no such model.
    """
    text = _foreign_config(folder)
    tensors = Tensors(folder)
    model = read_module(text, {name: tensors.read(name) for name in tensors.held}, folder)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    held = model.config.model_dump(include=set(Architecture.model_fields))
    found = _imported(folder, Architecture(**held), weights, tensors)
    return found._replace(tables=model.tables)


def check_base(tokenization: str, whose: str = "mypt") -> None:
    """Refuse a base that a training would refuse, before anything is prepared for it.

    Only headers are read. A folder with a tokenizer alone holds no base, and may serve any model.

    Args:
        tokenization: ``hf:`` and a folder, or ``gguf:`` and a file, as ``mypt prepare`` has it.
        whose: Whose arithmetic it will have: mypt's, or that of transformers' own module.

    Raises:
        CheckpointError: As :func:`read_base`, or if its tokenizer has ids that no row is for.
        ConfigError: If a size is none, or there is no such base; or as :func:`read_foreign`.
        DataError: If a GGUF or a tokenizer cannot be read.
    """
    base = base_path(tokenization)
    if not base.is_file() and not any((base / one).exists() for one in (ONE, INDEX, *INSTEAD)):
        return
    if whose == "mypt":
        found = _open(base)
        where, architecture = found.where, found.architecture
        check_weights(found.family, architecture, found.tensors)
    else:
        where, architecture = base / CONFIG, read_architecture(_foreign_config(base))
        Tensors(base)
    values = read_tokenizer(base).values
    ids = [token["id"] for token in values["added_tokens"]]
    _check_ids(where, architecture.vocab_size, [*values["model"]["vocab"].values(), *ids])


class _Opened(NamedTuple):
    """A base of a family, of which only headers were read."""

    where: Path
    """The file that says what it is."""
    config: dict[str, Any]
    name: str
    family: Family
    architecture: Architecture
    tensors: Tensors | GGUFTensors
    has_tokenizer: bool


def _open(base: Path) -> _Opened:
    if not base.is_file():
        config, where = read_json(base, CONFIG), base / CONFIG
        refuse_quantised(config, where)
        try:
            name, architecture = read_layout(config, where)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; or take --base transformers") from None
        family, tensors = FAMILIES[name], Tensors(base)
        return _Opened(where, config, name, family, architecture, tensors, True)
    header = read_header(base)
    config = gguf_config(header)
    name, architecture = read_layout(config, base)
    held = "tokenizer.ggml.model" in header.values
    family = gguf_family(header)
    return _Opened(base, config, name, family, architecture, GGUFTensors(header), held)


def _imported(
    folder: Path, architecture: Architecture, weights: Weights, tensors: Tensors
) -> Imported:
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


def _foreign_config(folder: Path) -> str:
    """Return the text of a config whose weights are no packed ones."""
    if folder.is_file():
        raise ConfigError(f"{folder}: base transformers reads folders; leave base out for a GGUF")
    refuse_quantised(read_json(folder, CONFIG), folder / CONFIG)
    return inside(folder, CONFIG).read_text(encoding="utf-8")


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
        CheckpointError: If the vocabulary has tokens that the model has no row for, or a module of
            transformers does not grow by rows of its embeddings alone.
    """
    ids = [*range(len(known.tokens)), *known.special_tokens.values()]
    new = [i for token, i in tokenizer.special_tokens.items() if token not in known.special_tokens]
    held = read.architecture.vocab_size
    _check_ids(read.files[0], held, ids)
    rows = max(held, tokenizer.n_vocab)
    weights = dict(read.weights)
    for name in read.tables:
        if name in weights and (new or rows > held):
            old = weights[name]
            grown = old.new_empty(rows, old.shape[1])
            grown[:held] = old
            grown[held:] = old.mean(0)
            grown[new] = old[ids].mean(0)
            weights[name] = grown
    architecture = read.architecture.model_copy(update={"vocab_size": rows})
    if rows > held and architecture.base == "transformers":
        architecture = with_rows(architecture, rows, {n: w.shape for n, w in weights.items()})
    return read._replace(architecture=architecture, weights=weights)
