"""GGUF's names for what the families have: keys and tensors, as data.

A GGUF names a model by llama.cpp's architecture. A row says which family that is, what its keys
are called in ``config.json``, and where its tensors lie; the rest is read as a folder is.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mypt.config import Architecture
from mypt.data.vocabularies.gguf_header import GGUFHeader, Packed
from mypt.errors import CheckpointError, ConfigError
from mypt.inference.huggingface.families import FAMILIES, Family, Lying
from mypt.inference.huggingface.layouts import family_of, write_layout
from mypt.inference.huggingface.tensors import TYPES, Held
from mypt.model.transformer import divisors
from mypt.text import shorten

_ARCHITECTURE: Final = "general.architecture"
_EMBEDDING: Final = "token_embd.weight"
_HEAD: Final = "output.weight"
FACTORS: Final = "rope_freqs.weight"
"""By what each speed is divided, where positions are stretched as Llama 3.1 does."""
_BLOCK: Final = "blk.{}."
_AT_ONCE: Final = 1 << 22
"""Numbers that are unpacked in one go."""


class _Layout(NamedTuple):
    """An architecture of llama.cpp's."""

    family: str
    """Ours, by ``model_type``."""
    parts: dict[str, Lying]
    """By our name, as in :class:`Family`; a norm of 1 + w is stored so."""
    keys: dict[str, str]
    """By GGUF's keys, after the architecture's name, those of ``config.json``."""


_KEYS: Final = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "final_logit_softcapping": "final_logit_softcapping",
    "attn_logit_softcapping": "attn_logit_softcapping",
}
"""Of Llama and those after it."""
_WIDTHS: Final = ("attention.key_length", "attention.value_length", "rope.dimension_count")
"""All as wide as a head, or the model is another."""
_SCALING: Final = ("rope.scaling.type", "rope.scaling.factor")
_HARMLESS: Final = frozenset({
    "vocab_size", "rope.scaling.finetuned", "rope.scaling.original_context_length",
})  # fmt: skip
"""Read from elsewhere, or only told: of these kinds of scaling none asks for the context."""

_BASIC: Final = {
    "transformer.wte": Lying(("token_embd",)),
    "transformer.ln_f": Lying(("output_norm",)),
    "lm_head": Lying(("output",)),
    "ln_1": Lying(("attn_norm",)),
    "ln_2": Lying(("ffn_norm",)),
    "attn.c_attn": Lying(("attn_q", "attn_k", "attn_v")),
    "attn.c_proj": Lying(("attn_output",)),
    "mlp.c_fc": Lying(("ffn_up", "ffn_gate")),
    "mlp.c_proj": Lying(("ffn_down",)),
}
_QK_NORMS: Final = {
    "attn.q_norm": Lying(("attn_q_norm",)),
    "attn.k_norm": Lying(("attn_k_norm",)),
}
_LAYOUTS: Final = {
    "llama": _Layout("llama", _BASIC | {
        "attn.c_attn": Lying(("attn_q", "attn_k", "attn_v"), "by pair"),
    }, _KEYS),
    "qwen2": _Layout("qwen2", _BASIC, _KEYS),
    "qwen3": _Layout("qwen3", _BASIC | _QK_NORMS, _KEYS),
    "gemma3": _Layout("gemma3_text", _BASIC | _QK_NORMS | {
        "post_1": Lying(("post_attention_norm",)),
        "post_2": Lying(("post_ffw_norm",)),
    }, _KEYS),
    "gpt2": _Layout("gpt2", _BASIC | {
        "transformer.wpe": Lying(("position_embd",)),
        "attn.c_attn": Lying(("attn_qkv",)),
        "mlp.c_fc": Lying(("ffn_up",)),
    }, {
        "context_length": "n_positions",
        "embedding_length": "n_embd",
        "feed_forward_length": "n_inner",
        "block_count": "n_layer",
        "attention.head_count": "n_head",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
    }),
}  # fmt: skip
"""By ``general.architecture``."""


def gguf_family(header: GGUFHeader) -> Family:
    """Return the family of a GGUF, with tensors where they lie there.

    Raises:
        CheckpointError: If its architecture is none that is read here.
    """
    layout = _layout(header)
    return replace(FAMILIES[layout.family], parts=layout.parts, block=_BLOCK)


def gguf_config(header: GGUFHeader) -> dict[str, Any]:
    """Return the ``config.json`` of the model in a GGUF.

    Raises:
        CheckpointError: If it says what has no place there.
    """
    layout, begins = _layout(header), f"{header.values[_ARCHITECTURE]}."
    family = FAMILIES[layout.family]
    own = {k.removeprefix(begins): v for k, v in header.values.items() if k.startswith(begins)}
    known = {*layout.keys, *_WIDTHS, *_SCALING, *_HARMLESS}
    odd = [key for key in own if key not in known] + [
        key for key in known & own.keys() if not isinstance(own[key], (int, float, str))
    ]
    if odd:
        raise CheckpointError(
            f"{header.path}: {begins}{shorten(odd[0], 60)} is {shorten(repr(own[odd[0]]), 60)},"
            f" which {family.architecture} has not here"
        )
    config = {theirs: own[key] for key, theirs in layout.keys.items() if key in own}
    config |= {"model_type": layout.family, "architectures": [family.architecture]}
    config |= {
        f"{role}_token_id": header.values[f"tokenizer.ggml.{role}_token_id"]
        for role in ("bos", "eos")
        if f"tokenizer.ggml.{role}_token_id" in header.values
    }
    embedding = header.tensors.get(_EMBEDDING)
    if embedding is not None:
        config["vocab_size"] = embedding.shape[0]
    config["tie_word_embeddings"] = _HEAD not in header.tensors
    if "attention_bias" in family.keys:
        biases = f"{_BLOCK.format(0)}attn_q.bias" in header.tensors
        config |= {"attention_bias": biases, "mlp_bias": biases}
    if family.rope is not None:
        config.setdefault("rope_theta", 10_000.0)
        config.setdefault("num_key_value_heads", own.get("attention.head_count"))
    return config | _widths(header, own, family) | _scaling(header, own)


def gguf_values(model: Architecture) -> tuple[str, Family, dict[str, Any], tuple[float, ...]]:
    """Return what a GGUF says of a model: :func:`gguf_family` and :func:`gguf_config` turned round.

    Returns:
        llama.cpp's name of the architecture; the family, with tensors where they lie there; values
        by key; and the divisors of :data:`FACTORS`, empty where there are none.

    Raises:
        ConfigError: If no architecture that is written here has a place for all its parts.
    """
    named = {layout.family: name for name, layout in _LAYOUTS.items()}
    name = family_of(model, named)
    architecture, layout = named[name], _LAYOUTS[named[name]]
    config, family = write_layout(name, model), FAMILIES[name]
    values = {key: config.get(theirs) for key, theirs in layout.keys.items()}
    values["feed_forward_length"] = model.inner_width
    if family.window == "pattern":
        values["attention.sliding_window_pattern"] = model.full_every
        _check_scale(config)
    factors: tuple[float, ...] = ()
    if family.rope is not None:
        values |= dict.fromkeys(_WIDTHS, model.head_width)
        said, factors = _stretched(architecture, model)
        values |= said
    known = {key: value for key, value in values.items() if value is not None}
    parts = replace(family, parts=layout.parts, block=_BLOCK)
    return architecture, parts, {f"{architecture}.{k}": v for k, v in known.items()}, factors


def _check_scale(config: Mapping[str, Any]) -> None:
    """Refuse a scale of attention that is not what llama.cpp takes of the sizes alone."""
    largest = config["num_hidden_layers"] == 62  # Gemma 3 27B
    heads = config["hidden_size"] // config["num_attention_heads"]
    expected = heads if largest else config["head_dim"]
    if (scalar := config["query_pre_attn_scalar"]) != expected:
        raise ConfigError(
            f"--to gguf: query_pre_attn_scalar is {scalar}, and llama.cpp computes with"
            f" {expected}, whatever the file says; export --to hf instead"
        )


def _stretched(architecture: str, model: Architecture) -> tuple[dict[str, Any], tuple[float, ...]]:
    """Return the keys that say how positions are stretched, and by what each speed is divided."""
    scaling = model.rope_scaling
    if scaling is None:
        return {}, ()
    if scaling.kind == "linear":
        return dict(zip(_SCALING, ("linear", scaling.factor), strict=True)), ()
    if architecture != "llama" or scaling.gain != 1.0:
        raise ConfigError(
            f"rope_scaling of kind {scaling.kind} with gain {scaling.gain} in a {architecture}"
            " model; a GGUF has a place for it in llama models with gain 1"
        )
    width = model.turned_width
    speeds = model.rope_base ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    return {}, tuple(divisors(speeds, scaling).tolist())


def _layout(header: GGUFHeader) -> _Layout:
    name, kind = header.values.get(_ARCHITECTURE), header.values.get("general.type", "model")
    if kind != "model" or not isinstance(name, str) or name not in _LAYOUTS:
        raise CheckpointError(
            f"{header.path}: {shorten(repr(kind), 30)} of {_ARCHITECTURE}"
            f" {shorten(repr(name), 40)}; expected a model of {', '.join(_LAYOUTS)}"
        )
    return _LAYOUTS[name]


def _widths(header: GGUFHeader, own: dict[str, Any], family: Family) -> dict[str, Any]:
    """Return the width of a head, which GGUF says up to three times."""
    width, heads = own.get("embedding_length"), own.get("attention.head_count")
    if type(width) is not int or type(heads) is not int or heads < 1:
        raise CheckpointError(
            f"{header.path}: embedding_length {width!r:.40}, attention.head_count {heads!r:.40};"
            " expected whole numbers"
        )
    said = {own.get(key, own.get(_WIDTHS[0], width // heads)) for key in _WIDTHS}
    if len(said) > 1:
        raise CheckpointError(
            f"{header.path}: {', '.join(_WIDTHS)} are {', '.join(map(str, said))}; expected one"
            " number, that of a whole head"
        )
    (found,) = said
    if own.get("block_count") == 62 and "embedding_scale" in family.fixed:
        return {"head_dim": found, "query_pre_attn_scalar": width // heads}  # Gemma 3 27B alone
    scalar = {"query_pre_attn_scalar": found} if "embedding_scale" in family.fixed else {}
    return scalar | ({"head_dim": found} if "head_dim" in family.keys else _usual(header, own))


def _usual(header: GGUFHeader, own: dict[str, Any]) -> dict[str, Any]:
    """Refuse a width of its own where the family has no word for it."""
    usual = own["embedding_length"] // own["attention.head_count"]
    if own.get(_WIDTHS[0], usual) != usual:
        raise CheckpointError(
            f"{header.path}: {_WIDTHS[0]} is {own[_WIDTHS[0]]}; expected {usual} in this family"
        )
    return {}


def _scaling(header: GGUFHeader, own: dict[str, Any]) -> dict[str, Any]:
    """Return how positions are stretched, if they are."""
    kind, factors = own.get(_SCALING[0], "none"), header.tensors.get(FACTORS)
    if factors is not None:
        if kind != "none":
            raise CheckpointError(f"{header.path}: {FACTORS} beside {_SCALING[0]} {kind!r:.40}")
        divisors = GGUFTensors(header).unpack(factors).reshape(-1).tolist()
        context = own.get("context_length")
        return {"rope_scaling": {
            "rope_type": "longrope", "short_factor": divisors, "long_factor": divisors,
            "attention_factor": 1.0, "original_max_position_embeddings": context,
        }}  # fmt: skip
    if kind == "none":
        return {}
    if kind != "linear":
        raise CheckpointError(
            f"{header.path}: {_SCALING[0]} is {kind!r:.40}; expected none, linear or {FACTORS}"
        )
    return {"rope_scaling": {"rope_type": kind, "factor": own.get(_SCALING[1], 1.0)}}


class GGUFTensors:
    """The tensors of a GGUF by name, for the families' table; :meth:`read` unpacks one."""

    def __init__(self, header: GGUFHeader) -> None:
        """Map the file.

        Raises:
            CheckpointError: If the package ``gguf`` cannot unpack a type of numbers.
        """
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        self.place = header.path
        self.held: dict[str, Held] = {}
        self._packed = header.tensors
        self._data = np.memmap(header.path, np.uint8, "r")
        for name, tensor in header.tensors.items():
            if name != FACTORS:
                self.held[name] = Held(header.path, tensor.kind, tensor.shape)
        for kind in {tensor.kind for tensor in header.tensors.values()}:
            known = GGMLQuantizationType[kind]
            try:
                found = dequantize(np.zeros((1, GGML_QUANT_SIZES[known][1]), np.uint8), known)
            except NotImplementedError:
                found = np.empty(0)
            if found.dtype != np.float32:
                raise CheckpointError(
                    f"{header.path}: numbers of type {kind}, which the package gguf does not unpack"
                )

    @property
    def dtype(self) -> str:
        """The type of the matrices' numbers if it is a plain one, else float32."""
        kinds = {tensor.kind for tensor in self._packed.values() if len(tensor.shape) > 1}
        return TYPES.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"

    def read(self, name: str) -> Tensor:
        """Return a tensor in float32."""
        return torch.from_numpy(self.unpack(self._packed[name]))

    def unpack(self, tensor: Packed) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the numbers of a tensor, a few rows at a time so that little is held twice."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        width = tensor.shape[-1]
        found = np.empty((int(np.prod(tensor.shape)) // width, width), np.float32)
        rows = self._data[tensor.start : tensor.stop].reshape(len(found), -1)
        step = max(1, _AT_ONCE // width)
        for at in range(0, len(found), step):
            part = np.ascontiguousarray(rows[at : at + step])
            found[at : at + step] = dequantize(part, GGMLQuantizationType[tensor.kind])
        return found.reshape(tensor.shape)
