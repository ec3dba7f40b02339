"""The families of ``transformers`` that are models of ours: names, values and tensors, as data.

A new family is a row: what its ``config.json`` calls our fields, what all its models are, which
other keys may say what, and where its tensors lie.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

REQUIRED: Final = object()
"""In place of a default: the key must be there."""

Form = Literal["same", "turned", "less one", "gate first", "by head", "by pair"]
"""How a tensor of theirs lies: as ours; transposed; a norm's weight less 1; gate before value;
queries, keys and values of each head together; queries and keys with the two numbers that are
turned together side by side."""


class Key(NamedTuple):
    """A field of ours under their name."""

    ours: str
    default: Any
    """What transformers takes where the key is missing, or REQUIRED."""


class Lying(NamedTuple):
    """A matrix or norm of ours as one or several of theirs, which ours holds one behind another."""

    theirs: tuple[str, ...]
    form: Form = "same"


@dataclass(frozen=True, slots=True)
class Family:
    """One ``model_type``."""

    architecture: str
    """Class of transformers."""
    keys: Mapping[str, Key]
    parts: Mapping[str, Lying]
    """By our name, within a block for what lies there."""
    block: str = "model.layers.{}."
    """How names of a block's tensors begin."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ours that hold of all its models."""
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys that change arithmetic, and the values that we have; the last one is what it is."""
    rope: Mapping[str, Any] | None = field(default_factory=lambda: {"rope_theta": 10_000.0})
    """Defaults of rotary positions, by the keys that older files have on top; None has none."""
    window: Literal["none", "all", "pattern"] = "none"
    """Which blocks ``sliding_window`` narrows."""
    nope: bool = False
    """Whether ``no_rope_layers`` leaves blocks without positions."""
    always_bias: bool = False
    """Whether its models have biases where ours have none: they are 0 then."""


_SIZES: Final = {
    "vocab_size": Key("vocab_size", REQUIRED),
    "max_position_embeddings": Key("block_size", REQUIRED),
    "hidden_size": Key("n_embd", REQUIRED),
    "intermediate_size": Key("mlp_width", REQUIRED),
    "num_hidden_layers": Key("n_layer", REQUIRED),
    "num_attention_heads": Key("n_head", REQUIRED),
}
_LLAMA: Final = _SIZES | {
    "num_key_value_heads": Key("n_kv_head", None),
    "rms_norm_eps": Key("norm_eps", 1e-6),
    "tie_word_embeddings": Key("tie_weights", False),
}
_HEAD: Final = {"head_dim": Key("head_dim", None)}
_MODERN: Final = {"pos_encoding": "rope", "norm_type": "rmsnorm", "mlp_type": "swiglu"}
_QK: Final = {"qk_norm": True, "qk_norm_eps": "norm_eps"}
"""A value that names another field is that field's; so is a root of one."""
_NO_BIAS: Final = {"attention_bias": (False,), "mlp_bias": (False,)}
_SILU: Final = {"hidden_act": ("silu",)}
_NO_WINDOW: Final = {"use_sliding_window": (False,)}

_OUTER: Final = {
    "transformer.wte": Lying(("model.embed_tokens",)),
    "transformer.ln_f": Lying(("model.norm",)),
    "lm_head": Lying(("lm_head",)),
}
_HALVES: Final = {
    "attn.c_attn": Lying(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    "attn.c_proj": Lying(("self_attn.o_proj",)),
    "mlp.c_fc": Lying(("mlp.up_proj", "mlp.gate_proj")),
    "mlp.c_proj": Lying(("mlp.down_proj",)),
}
_QK_NORMS: Final = {
    "attn.q_norm": Lying(("self_attn.q_norm",)),
    "attn.k_norm": Lying(("self_attn.k_norm",)),
}
_LLAMA_PARTS: Final = _OUTER | _HALVES | {
    "ln_1": Lying(("input_layernorm",)),
    "ln_2": Lying(("post_attention_layernorm",)),
}  # fmt: skip

FAMILIES: Final[Mapping[str, Family]] = {
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        keys={
            "vocab_size": Key("vocab_size", REQUIRED),
            "n_positions": Key("block_size", REQUIRED),
            "n_embd": Key("n_embd", REQUIRED),
            "n_layer": Key("n_layer", REQUIRED),
            "n_head": Key("n_head", REQUIRED),
            "n_inner": Key("mlp_width", None),
            "layer_norm_epsilon": Key("norm_eps", 1e-5),
            "tie_word_embeddings": Key("tie_weights", True),
        },
        parts={
            "transformer.wte": Lying(("transformer.wte",)),
            "transformer.wpe": Lying(("transformer.wpe",)),
            "transformer.ln_f": Lying(("transformer.ln_f",)),
            "lm_head": Lying(("lm_head",)),
            "ln_1": Lying(("ln_1",)),
            "ln_2": Lying(("ln_2",)),
            "attn.c_attn": Lying(("attn.c_attn",), "turned"),
            "attn.c_proj": Lying(("attn.c_proj",), "turned"),
            "mlp.c_fc": Lying(("mlp.c_fc",), "turned"),
            "mlp.c_proj": Lying(("mlp.c_proj",), "turned"),
        },
        block="transformer.h.{}.",
        fixed={"bias": True},
        only={
            "activation_function": ("gelu_pytorch_tanh", "gelu_new"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        rope=None,
        always_bias=True,
    ),
    "llama": Family(
        architecture="LlamaForCausalLM",
        keys=_LLAMA | _HEAD | {"attention_bias": Key("bias", False)},
        parts=_LLAMA_PARTS,
        fixed=_MODERN,
        only=_SILU,
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        keys=_LLAMA | _HEAD,
        parts=_LLAMA_PARTS,
        fixed=_MODERN,
        only=_SILU | _NO_BIAS,
        window="all",
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        keys=_LLAMA,
        parts=_LLAMA_PARTS,
        fixed=_MODERN | {"qkv_bias": True},
        only=_SILU | _NO_WINDOW | {"mlp_bias": (False,), "attention_bias": (True,)},
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        keys=_LLAMA | {"head_dim": Key("head_dim", 128)},
        parts=_LLAMA_PARTS | _QK_NORMS,
        fixed=_MODERN | _QK,
        only=_SILU | _NO_WINDOW | _NO_BIAS,
    ),
    "smollm3": Family(
        architecture="SmolLM3ForCausalLM",
        keys=_LLAMA | {
            "tie_word_embeddings": Key("tie_weights", True),
            "attention_bias": Key("bias", False),
            "num_key_value_heads": Key("n_kv_head", 4),
        },
        parts=_LLAMA_PARTS,
        fixed=_MODERN,
        only=_SILU | _NO_WINDOW,
        rope={"rope_theta": 2_000_000.0},
        nope=True,
    ),
    "granite": Family(
        architecture="GraniteForCausalLM",
        keys=_LLAMA | {
            "attention_bias": Key("bias", False),
            "embedding_multiplier": Key("embedding_scale", 1.0),
            "attention_multiplier": Key("attention_scale", 1.0),
            "residual_multiplier": Key("residual_scale", 1.0),
            "logits_scaling": Key("logit_divisor", 1.0),
        },
        parts=_LLAMA_PARTS,
        fixed=_MODERN,
        only=_SILU,
    ),
    "olmo2": Family(
        architecture="Olmo2ForCausalLM",
        keys=_LLAMA | {"rms_norm_eps": Key("norm_eps", 1e-5)},
        parts=_OUTER | _HALVES | _QK_NORMS | {
            "post_1": Lying(("post_attention_layernorm",)),
            "post_2": Lying(("post_feedforward_layernorm",)),
        },
        fixed=_MODERN | _QK | {"qk_norm_over": "all", "norm_place": "after"},
        only=_SILU | _NO_BIAS,
    ),
    "phi3": Family(
        architecture="Phi3ForCausalLM",
        keys=_LLAMA | {"rms_norm_eps": Key("norm_eps", 1e-5)},
        parts=_LLAMA_PARTS | {
            "attn.c_attn": Lying(("self_attn.qkv_proj",)),
            "mlp.c_fc": Lying(("mlp.gate_up_proj",), "gate first"),
        },
        fixed=_MODERN,
        only=_SILU | _NO_BIAS | {"lm_head_bias": (False,), "full_attn_mod": (1,)},
        rope={"rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
        window="all",
    ),
    "gpt_neox": Family(
        architecture="GPTNeoXForCausalLM",
        keys=_SIZES | {
            "layer_norm_eps": Key("norm_eps", 1e-5),
            "tie_word_embeddings": Key("tie_weights", False),
            "use_parallel_residual": Key("parallel_blocks", True),
        },
        parts={
            "transformer.wte": Lying(("gpt_neox.embed_in",)),
            "transformer.ln_f": Lying(("gpt_neox.final_layer_norm",)),
            "lm_head": Lying(("embed_out",)),
            "ln_1": Lying(("input_layernorm",)),
            "ln_2": Lying(("post_attention_layernorm",)),
            "attn.c_attn": Lying(("attention.query_key_value",), "by head"),
            "attn.c_proj": Lying(("attention.dense",)),
            "mlp.c_fc": Lying(("mlp.dense_h_to_4h",)),
            "mlp.c_proj": Lying(("mlp.dense_4h_to_h",)),
        },
        block="gpt_neox.layers.{}.",
        fixed={"pos_encoding": "rope", "mlp_type": "gelu_erf", "bias": True},
        only={"hidden_act": ("gelu",), "attention_bias": (True,), "is_decoder": (False,)},
        rope={"rotary_emb_base": 10_000.0, "rotary_pct": 0.25},
        always_bias=True,
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM",
        keys=_LLAMA | {
            "tie_word_embeddings": Key("tie_weights", True),
            "head_dim": Key("head_dim", 256),
            "num_key_value_heads": Key("n_kv_head", 4),
        },
        parts=_OUTER | _HALVES | {
            "transformer.ln_f": Lying(("model.norm",), "less one"),
            "ln_1": Lying(("input_layernorm",), "less one"),
            "post_1": Lying(("post_attention_layernorm",), "less one"),
            "ln_2": Lying(("pre_feedforward_layernorm",), "less one"),
            "post_2": Lying(("post_feedforward_layernorm",), "less one"),
            "attn.q_norm": Lying(("self_attn.q_norm",), "less one"),
            "attn.k_norm": Lying(("self_attn.k_norm",), "less one"),
        },
        fixed=_MODERN | _QK | {
            "mlp_type": "geglu", "norm_place": "both", "embedding_scale": "sqrt(n_embd)",
        },
        only={
            "hidden_activation": ("gelu_pytorch_tanh",),
            "final_logit_softcapping": (None,),
            "attn_logit_softcapping": (None,),
            "use_bidirectional_attention": (None, False),
        } | _NO_BIAS,
        rope={"rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0},
        window="pattern",
    ),
}  # fmt: skip
"""By ``model_type``; a model that began here is exported as the first that has a place for it."""

HARMLESS: Final = frozenset({
    "_attn_implementation", "_commit_hash", "_name_or_path", "architectures",
    "attention_dropout", "attn_pdrop", "auto_map", "begin_suppress_tokens", "bos_token_id",
    "cache_implementation", "classifier_dropout", "dtype", "embd_pdrop", "eos_token_id",
    "gradient_checkpointing", "hidden_dropout", "id2label", "initializer_range",
    "interpolate_factor", "is_llama_config", "label2id", "license", "max_length",
    "max_window_layers", "model_type", "n_ctx", "num_labels", "pad_token_id", "pretraining_tp",
    "reorder_and_upcast_attn", "resid_pdrop", "return_dict", "sep_token_id",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj", "task_specific_params", "tokenizer_class", "torch_dtype",
    "transformers.js_config", "transformers_version", "unk_token_id", "unsloth_fixed",
    "unsloth_version", "use_cache",
})  # fmt: skip
"""Keys of any family that change no arithmetic; of others that are not in its row, only null and
false are taken to change none."""
