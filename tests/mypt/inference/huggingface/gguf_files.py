"""Small GGUF files, written by the package ``gguf`` from what transformers and tokenizers made."""

import json

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="pip install 'mypt[gguf]'")

ARCHITECTURES = {"smollm2": "llama", "tinyllama": "llama", "qwen2.5": "qwen2", "qwen3": "qwen3",
                 "gemma 3": "gemma3"}  # fmt: skip
_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_GEMMA = _NAMES | {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip


def write_gguf(path, model, architecture, *, kind="F32", tokenizer=None, extra=(), tensors=()):
    """Write a model of transformers as llama.cpp's converter does."""
    writer, config = gguf.GGUFWriter(str(path), architecture), model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if architecture in ("qwen3", "gemma3"):
        writer.add_key_length(width)
        writer.add_value_length(width)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        writer.add_uint32("gemma3.attention.sliding_window_pattern", 3)
    for key, value in dict(extra).items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_string
        add(key, value)
    if tokenizer is not None:
        write_tokenizer(writer, *tokenizer)
    if kind != "F32":
        writer.add_file_type(int(gguf.LlamaFileType[f"MOSTLY_{kind}"]))
    for name, weight in model.state_dict().items():
        if not (config.tie_word_embeddings and name == "lm_head.weight"):
            _write_tensor(writer, _renamed(name, architecture), _laid(name, weight, model), kind)
    for name, values in dict(tensors).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tokenizer(writer, folder, pre, template=None):
    """Write what ``tokenizer.json`` and ``tokenizer_config.json`` say."""
    values = json.loads((folder / "tokenizer.json").read_text())
    added = {one["id"]: one for one in values["added_tokens"]}
    ids = values["model"]["vocab"] | {one["content"]: number for number, one in added.items()}
    words = sorted(ids, key=ids.get)
    assert [ids[word] for word in words] == list(range(len(words)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types([3 if n in added else 1 for n in range(len(words))])
    writer.add_token_merges(
        [one if isinstance(one, str) else " ".join(one) for one in values["model"]["merges"]]
    )
    path = folder / "tokenizer_config.json"
    for role, token in (json.loads(path.read_text()) if path.exists() else {}).items():
        if role in ("bos_token", "eos_token"):
            writer.add_uint32(f"tokenizer.ggml.{role}_id", ids[token])
    if template is not None:
        writer.add_chat_template(template)


def write_pieces(path, pieces, **values):
    """Write a file with a tokenizer of SentencePiece's alone: words with their scores and types."""
    writer = gguf.GGUFWriter(str(path), "llama")
    words, scores, types = zip(*pieces, strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(words))
    writer.add_token_scores(list(scores))
    writer.add_token_types(list(types))
    for key, value in values.items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        add(f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def _renamed(name, architecture):
    stem, _, kind = name.rpartition(".")
    names = _GEMMA if architecture == "gemma3" else _NAMES
    if stem.startswith("model.layers."):
        _, _, block, inner = stem.split(".", 3)
        return f"blk.{block}.{names[inner]}.{kind}"
    return f"{names[stem]}.{kind}"


def _laid(name, weight, model):
    found, config = weight.float().numpy(), model.config
    if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
        return found + 1
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, n in heads.items():
        if config.model_type == "llama" and part in name:
            halves = found.reshape(n, 2, found.shape[0] // n // 2, *found.shape[1:])
            return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(found.shape))
    return found


def _write_tensor(writer, name, values, kind):
    known = gguf.GGMLQuantizationType[kind]
    if values.ndim == 1 or values.shape[-1] % gguf.GGML_QUANT_SIZES[known][0]:
        known = gguf.GGMLQuantizationType.F32
    writer.add_tensor(name, gguf.quants.quantize(values, known), raw_dtype=known)
