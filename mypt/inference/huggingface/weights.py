"""One model, two spellings: our weights and config, and those of ``transformers``."""

from typing import Any, Final, Literal

import torch
from torch import Tensor

from mypt.config import Architecture, GPTConfig
from mypt.errors import CheckpointError, ConfigError
from mypt.text import shorten

Weights = dict[str, Tensor]
Family = Literal["gpt2", "llama"]
CLASSES: Final[dict[Family, str]] = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}
_WANTED: Final[dict[Family, dict[str, Any]]] = {
    "gpt2": {
        "pos_encoding": "learned", "norm_type": "layernorm", "mlp_type": "gelu", "qk_norm": False,
    },
    "llama": {
        "pos_encoding": "rope", "norm_type": "rmsnorm", "mlp_type": "swiglu", "qk_norm": False,
    },
}  # fmt: skip
"""What a family's models are; each other choice of ours is one that they lack."""
_CONV1D: Final = (
    "attn.c_attn.weight",
    "attn.c_proj.weight",
    "mlp.c_fc.weight",
    "mlp.c_proj.weight",
)
_LLAMA_PLAIN: Final = {
    "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj", "mlp.c_proj": "mlp.down_proj",
}  # fmt: skip
_OUTER: Final = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}


def family_of(config: GPTConfig) -> Family:
    """Return the family of ``transformers`` that a model belongs to.

    Raises:
        ConfigError: If neither has a place for all its parts; the message names the options.
    """
    family: Family = "llama" if config.pos_encoding == "rope" else "gpt2"
    odd = [
        f"{key} {getattr(config, key)!r} (expected {wanted!r})"
        for key, wanted in _WANTED[family].items()
        if getattr(config, key) != wanted
    ]
    if family == "gpt2" and config.key_heads != config.n_head:
        odd.append(f"n_kv_head {config.n_kv_head} (expected {config.n_head})")
    if odd:
        raise ConfigError(
            f"{CLASSES[family]} has no place for {', '.join(odd)}; such a model cannot be exported"
            " to transformers"
        )
    return family


def to_hf(config: GPTConfig, weights: Weights) -> Weights:
    """Return weights under the names and in the layout of the model's family."""
    if family_of(config) == "gpt2":
        return _to_gpt2(weights)
    return _to_llama(config, weights)


def from_hf(config: Architecture, theirs: Weights, family: Family) -> Weights:
    """Return what :func:`to_hf` would be given, from what it returns.

    Raises:
        CheckpointError: If a weight is missing or of another shape.
    """
    try:
        return _from_gpt2(theirs) if family == "gpt2" else _from_llama(config, theirs)
    except KeyError as error:
        raise CheckpointError(f"no tensor {error.args[0]}; expected {CLASSES[family]}") from None
    except RuntimeError as error:
        first = shorten(str(error), 200)
        raise CheckpointError(f"a tensor of another shape ({first}) than the config says") from None


def hf_config(config: GPTConfig) -> dict[str, Any]:
    """Return ``config.json`` without the ids of special tokens."""
    family = family_of(config)
    shared = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_weights,
        "dtype": "float32",
    }
    if family == "gpt2":
        return shared | {
            "n_positions": config.block_size,
            "n_embd": config.n_embd,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_inner": config.inner_width,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.eps,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.dropout,
        }
    return shared | {
        "max_position_embeddings": config.block_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.inner_width,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.key_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.eps,
        "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "attention_dropout": config.dropout,
    }


def _to_gpt2(weights: Weights) -> Weights:
    """Turn matrices round, as GPT-2 keeps them, and add the biases that it always has."""
    theirs: Weights = {}
    for name, tensor in weights.items():
        turned = name.endswith(_CONV1D)
        theirs[name] = tensor.t().contiguous() if turned else tensor
        bias = name.removesuffix("weight") + "bias"
        norm = name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))
        if (turned or norm) and bias not in weights:
            theirs[bias] = torch.zeros(len(tensor))
    return theirs


def _from_gpt2(theirs: Weights) -> Weights:
    ours: Weights = {}
    for name, tensor in theirs.items():
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue  # causal masks that older files hold
        full = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
        ours[full] = tensor.t().contiguous() if name.endswith(_CONV1D) else tensor
    return ours


def _to_llama(config: GPTConfig, weights: Weights) -> Weights:
    theirs: Weights = {}
    keys = config.key_heads * config.head_width
    for name, tensor in weights.items():
        if not name.startswith("transformer.h."):
            theirs[_OUTER[name]] = tensor
            continue
        _, _, layer, rest = name.split(".", 3)
        part, _, kind = rest.rpartition(".")
        if part == "attn.c_attn":
            for which, piece in zip(
                "qkv", torch.split(tensor, [config.n_embd, keys, keys]), strict=True
            ):
                theirs[f"model.layers.{layer}.self_attn.{which}_proj.{kind}"] = piece.contiguous()
        elif part == "mlp.c_fc":
            for which, piece in zip(("up", "gate"), tensor.chunk(2), strict=True):
                theirs[f"model.layers.{layer}.mlp.{which}_proj.{kind}"] = piece.contiguous()
        else:
            theirs[f"model.layers.{layer}.{_LLAMA_PLAIN[part]}.{kind}"] = tensor
    return theirs


def _from_llama(config: Architecture, theirs: Weights) -> Weights:
    ours = {ours: theirs[name] for ours, name in _OUTER.items() if name != "lm_head.weight"}
    if not config.tie_weights:
        ours["lm_head.weight"] = theirs["lm_head.weight"]
    kinds = ("weight", "bias") if config.bias else ("weight",)
    for layer in range(config.n_layer):
        there, here = f"model.layers.{layer}", f"transformer.h.{layer}"
        for part, name in _LLAMA_PLAIN.items():
            for kind in kinds if part.endswith("c_proj") else ("weight",):
                ours[f"{here}.{part}.{kind}"] = theirs[f"{there}.{name}.{kind}"]
        for kind in kinds:
            heads = [theirs[f"{there}.self_attn.{which}_proj.{kind}"] for which in "qkv"]
            ours[f"{here}.attn.c_attn.{kind}"] = torch.cat(heads)
            halves = [theirs[f"{there}.mlp.{which}_proj.{kind}"] for which in ("up", "gate")]
            ours[f"{here}.mlp.c_fc.{kind}"] = torch.cat(halves)
    return ours
