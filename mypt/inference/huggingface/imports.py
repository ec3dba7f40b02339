"""Checkpoints of ``transformers`` as models of ours: GPT-2 and Llama, from safetensors."""

import json
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file

from mypt.config import Architecture
from mypt.data.tokenizer import Tokenizer
from mypt.data.vocabularies.vocabulary import Vocabulary
from mypt.errors import CheckpointError
from mypt.inference.huggingface.weights import Family, Weights, from_hf
from mypt.parsing import parse_config
from mypt.text import shorten

CONFIG: Final = "config.json"
_INDEX: Final = "model.safetensors.index.json"
_PART = re.compile(r"[\w-][\w.-]{0,200}\.safetensors")


class Imported(NamedTuple):
    """A model as it was read."""

    architecture: Architecture
    weights: Weights
    """Float32, under our names."""
    files: tuple[Path, ...]
    """What was read."""


def read_hf(folder: Path) -> Imported:
    """Read a folder in the layout of ``transformers``; no pickle is ever read.

    Raises:
        CheckpointError: If a file is missing or damaged, or the model has parts that are not ours.
    """
    config = _read_json(folder / CONFIG)
    paths = tuple(folder / name for name in _parts(folder / _INDEX))
    family, architecture = _architecture(config, folder / CONFIG)
    theirs: Weights = {}
    for path in paths:
        try:
            theirs |= {name: tensor.float() for name, tensor in load_file(path).items()}
        except (OSError, SafetensorError) as error:
            first = shorten(str(error), 200)
            raise CheckpointError(f"{path}: no safetensors that can be read: {first}") from None
    weights = from_hf(architecture, theirs, family)
    if architecture.tie_weights:
        weights.pop("lm_head.weight", None)
    return Imported(architecture, weights, (folder / CONFIG, *paths))


def with_new_tokens(read: Imported, known: Vocabulary, tokenizer: Tokenizer) -> Imported:
    """Return the model with a row for each token; a new one begins at the mean of the known.

    Args:
        read: As it was read.
        known: Its own vocabulary, special tokens included.
        tokenizer: The same with the tokens of a chat template.
    """
    ids = [*range(len(known.tokens)), *known.special_tokens.values()]
    new = [i for token, i in tokenizer.special_tokens.items() if token not in known.special_tokens]
    rows = max(read.architecture.vocab_size, tokenizer.n_vocab)
    weights = dict(read.weights)
    for name in ("transformer.wte.weight", "lm_head.weight"):
        if name in weights:
            old = weights[name]
            grown = old.mean(0).repeat(rows, 1)
            grown[: len(old)] = old
            grown[new] = old[ids].mean(0)
            weights[name] = grown
    architecture = read.architecture.model_copy(update={"vocab_size": rows})
    return read._replace(architecture=architecture, weights=weights)


def _parts(index: Path) -> list[str]:
    """Return the names of the files that hold the weights; none may leave the folder."""
    if not index.is_file():
        return ["model.safetensors"]
    held = _read_json(index).get("weight_map")
    names = list(held.values()) if isinstance(held, dict) else []
    odd = [name for name in names if not isinstance(name, str) or not _PART.fullmatch(name)]
    if odd or not names:
        raise CheckpointError(
            f"{index}: weight_map names {odd[:1] or 'nothing'}; expected *.safetensors beside it"
        )
    return sorted(set(names))


def _architecture(config: dict[str, Any], path: Path) -> tuple[Family, Architecture]:
    family = config.get("model_type")
    try:
        if family == "gpt2":
            return "gpt2", _gpt2(config, path)
        if family == "llama":
            return "llama", _llama(config, path)
    except KeyError as error:
        raise CheckpointError(f"{path}: {error.args[0]} is missing") from None
    except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: {error!r:.80}; expected what transformers writes") from None
    raise CheckpointError(f"{path}: model_type {family!r}; expected gpt2 or llama")


def _gpt2(config: dict[str, Any], path: Path) -> Architecture:
    expected = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    _refuse(config, expected, path)
    values = {
        "block_size": config["n_positions"], "n_embd": config["n_embd"], "bias": True,
        "n_layer": config["n_layer"], "n_head": config["n_head"],
        "mlp_width": config.get("n_inner"), "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "tie_weights": config.get("tie_word_embeddings", True),
        "vocab_size": config["vocab_size"],
    }  # fmt: skip
    return parse_config(values, Architecture, str(path))


def _llama(config: dict[str, Any], path: Path) -> Architecture:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    heads, width = config["num_attention_heads"], config["hidden_size"]
    bias = config.get("attention_bias", False)
    asked = config | {"rope_type": rope.get("rope_type", rope.get("type", "default"))}
    expected = {
        "hidden_act": ("silu",),
        "rope_type": ("default",),
        "head_dim": (None, width // heads),
        "mlp_bias": (bias,),
    }
    _refuse({"mlp_bias": False} | asked, expected, path)
    values = {
        "pos_encoding": "rope", "norm_type": "rmsnorm", "mlp_type": "swiglu", "bias": bias,
        "block_size": config["max_position_embeddings"], "n_embd": width, "n_head": heads,
        "n_layer": config["num_hidden_layers"], "n_kv_head": config.get("num_key_value_heads"),
        "mlp_width": config["intermediate_size"], "norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_base": float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
        "tie_weights": config.get("tie_word_embeddings", False),
        "vocab_size": config["vocab_size"],
    }  # fmt: skip
    return parse_config(values, Architecture, str(path))


def _refuse(config: dict[str, Any], expected: dict[str, tuple[Any, ...]], path: Path) -> None:
    for key, allowed in expected.items():
        if key in config and config[key] not in allowed:
            raise CheckpointError(
                f"{path}: {key} is {config[key]!r}; expected {allowed[-1]!r}, the model has no"
                " other here"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); expected JSON") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: no JSON object")
    return values
