"""Random models of transformers, one or more a family, small enough to make anew in each test."""

from pathlib import Path

import pytest
import torch

from mypt.config import GPTConfig
from mypt.inference.huggingface.imports import Imported, read_base
from mypt.model.gpt import GPT

transformers = pytest.importorskip("transformers", reason="pip install 'mypt[dev]'")

VOCAB, LONGEST = 300, 64
_SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 4,
    "vocab_size": VOCAB, "max_position_embeddings": 128,
}  # fmt: skip
_GROUPED = {"num_key_value_heads": 2, "pad_token_id": 0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3], "long_factor": [2.0, 3.0, 4.0],
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
FAMILIES = {
    "gpt2": ("gpt2", {"vocab_size": VOCAB, "n_positions": 128, "n_embd": 32, "n_layer": 3,
                      "n_head": 4}),
    "gpt2 untied": ("gpt2", {"vocab_size": VOCAB, "n_positions": 128, "n_embd": 32, "n_layer": 2,
                             "n_head": 2, "n_inner": 40, "tie_word_embeddings": False}),
    "smollm2": ("llama", _SIZES | _GROUPED | {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "tinyllama": ("llama", _SIZES | _GROUPED),
    "llama with biases": ("llama", _SIZES | {"attention_bias": True, "mlp_bias": True}),
    "llama 3.2": ("llama", _SIZES | _GROUPED | {"tie_word_embeddings": True, "head_dim": 16,
                                                "rope_parameters": LLAMA3}),
    "llama, linear": ("llama", _SIZES | {"rope_parameters": {
        "rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}}),
    "mistral": ("mistral", _SIZES | _GROUPED | {"head_dim": 16, "sliding_window": None}),
    "mistral, windows": ("mistral", _SIZES | _GROUPED | {"sliding_window": 12}),
    "qwen2.5": ("qwen2", _SIZES | _GROUPED | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", _SIZES | _GROUPED | {"head_dim": 16, "rms_norm_eps": 1e-5}),
    "qwen3, yarn": ("qwen3", _SIZES | _GROUPED | {"head_dim": 16, "rope_parameters": YARN}),
    "smollm3": ("smollm3", _SIZES | _GROUPED),
    "granite 3": ("granite", _SIZES | _GROUPED | {
        "attention_multiplier": 0.2, "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
        "logits_scaling": 3.0, "tie_word_embeddings": True}),
    "olmo2": ("olmo2", _SIZES | _GROUPED),
    "phi-4-mini": ("phi3", _SIZES | _GROUPED | {
        "tie_word_embeddings": True, "rope_parameters": LONG, "sliding_window": 200,
        "original_max_position_embeddings": LONGEST}),
    "pythia": ("gpt_neox", _SIZES),
    "neox, not parallel": ("gpt_neox", _SIZES | {"use_parallel_residual": False}),
    "gemma 3": ("gemma3_text", _SIZES | _GROUPED | {
        "head_dim": 16, "sliding_window": 12, "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 24}),
    "gemma 3, usual scale": ("gemma3_text", _SIZES | _GROUPED | {
        "head_dim": 16, "sliding_window": 12, "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 16}),
}  # fmt: skip
"""By a name for people: the ``model_type`` and what the config says."""
FOREIGN = {
    "lfm2": ("lfm2", _SIZES | _GROUPED | {
        "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}),
    "qwen 3.5": ("qwen3_5_text", _SIZES | _GROUPED | {
        "num_hidden_layers": 4, "head_dim": 16, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}),
    "gemma 4": ("gemma4_text", _SIZES | _GROUPED | {
        "num_hidden_layers": 4, "head_dim": 16, "global_head_dim": 16, "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8,
        "sliding_window": 16, "tie_word_embeddings": True, "final_logit_softcapping": 0.5,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"]}),
    "mixtral": ("mixtral", _SIZES | _GROUPED | {"num_hidden_layers": 2, "num_local_experts": 4}),
    "granite moe": ("granitemoe", _SIZES | _GROUPED | {
        "num_hidden_layers": 2, "num_local_experts": 4, "logits_scaling": 3.0}),
    "mamba": ("mamba", {"vocab_size": VOCAB, "hidden_size": 32, "state_size": 8,
                        "num_hidden_layers": 2}),
    "gemma": ("gemma", _SIZES | _GROUPED | {"head_dim": 16}),
}  # fmt: skip
"""Likewise, what no row of the families says."""


def make(name: str, folder: Path, dtype: str = "float32", **saving: object):
    """Save a random model, far from the start, where norms' gains are 1; return it in float32."""
    kind, values = (FAMILIES | FOREIGN)[name]
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(kind, **values)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(folder, **saving)
    return model.float()


def ours(folder: Path) -> tuple[GPT, Imported]:
    """Read a folder as a model of ours."""
    read = read_base(folder)
    model = GPT(GPTConfig(**read.architecture.model_dump())).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read.weights.pop(name))
    assert not read.weights
    return model, read
