"""What cannot be read as a base is refused in one line, quickly, and told what to do."""

import json
import os
import resource
import shutil
import struct
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from mypt.errors import CheckpointError, MyptError
from mypt.inference.huggingface.imports import check_base, read_base, read_foreign
from tests.mypt.inference.huggingface.families import make

NAMES = ("smollm2", "gemma 3", "gpt2", "qwen3", "smollm3", "tinyllama")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for name in NAMES:
        make(name, folder / name)
    make("tinyllama", folder / "shards", max_shard_size="60KB")
    return folder


def refused(folder, *, by_prepare=True):
    """Return what is said, in seconds and without the memory that a file claims.

    ``mypt prepare`` says it too, before anything is prepared.
    """
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MyptError) as raised:
        read_base(folder)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert time.monotonic() - begun < 10
    assert grown < 1 << 20  # kilobytes
    said = str(raised.value)
    if by_prepare:
        with pytest.raises(MyptError) as raised:
            check_base(f"hf:{folder}")
        assert str(raised.value) == said
    assert "\n" not in said
    assert len(said) < 600
    return said


def copied(made, tmp_path, name="smollm2", **changes):
    folder = shutil.copytree(made / name, tmp_path / "base")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("smollm2", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config 'fp8'"),
        ("smollm2", {"quantization_config": None}, "quantization_config None"),
        ("smollm2", {"model_type": "mixtral"}, "model_type 'mixtral'; expected one of gpt2,"),
        ("smollm2", {"model_type": ["llama"]}, "model_type ['llama']"),
        ("smollm2", {"num_local_experts": 8}, "num_local_experts is 8, a key that Llama"),
        ("smollm2", {"sliding_window": 16}, "sliding_window is 16"),
        ("smollm2", {"hidden_act": "relu"}, "hidden_act is 'relu'; expected 'silu'"),
        ("smollm2", {"mlp_bias": True}, "mlp_bias is True; expected False"),
        ("smollm2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("smollm2", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "is 'dynamic'"),
        ("smollm2", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0}},
         "mscale among positions of kind yarn"),
        ("smollm2", {"rope_parameters": {"rope_type": "linear"}}, "KeyError('factor')"),
        ("smollm2", {"rope_parameters": {"mrope_section": [1]}}, "mrope_section among positions"),
        ("smollm2", {"hidden_size": 1 << 40}, "n_embd"),
        ("smollm2", {"num_hidden_layers": 1 << 40}, "n_layer"),
        ("smollm2", {"num_hidden_layers": 1000}, "no tensor model.layers.5"),
        ("smollm2", {"num_hidden_layers": 4}, "layers.4.input_layernorm.weight (and 8 more)"),
        ("smollm2", {"vocab_size": 1 << 23}, "expected (8388608, 32)"),
        ("smollm2", {"hidden_size": "32"}, "expected"),
        ("smollm2", {"tie_word_embeddings": False}, "no tensor lm_head.weight"),
        ("tinyllama", {"tie_word_embeddings": True}, "lm_head.weight is not model.embed_tokens"),
        ("gemma 3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ("gemma 3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma 3", {"layer_types": ["full_attention"] + ["sliding_attention"] * 4}, "layer_types"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window is True; expected False"),
        ("smollm3", {"no_rope_layers": [0, 1, 1, 1, 1]}, "no_rope_layers"),
    ],
)  # fmt: skip
def test_a_config_that_asks_for_other_arithmetic_is_refused(made, tmp_path, name, changes, said):
    assert said in refused(copied(made, tmp_path, name, **changes))


def test_a_head_that_is_the_embedding_may_stand_beside_a_tied_config(made, tmp_path):
    folder = copied(made, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert "lm_head.weight" not in read_base(folder).weights


def test_code_that_a_config_names_is_never_run(made, tmp_path):
    folder = copied(made, tmp_path, auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    (folder / "modeling_x.py").write_text("raise SystemExit('ran')")
    read_base(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t | {"model.layers.0.extra": torch.ones(1)}, "extra (and 0 more) has no place"),
        (lambda t: t | {"model.norm.weight_scale": torch.ones(1)}, "weight_scale"),
        (lambda t: {k: v.to(torch.int8) for k, v in t.items()}, "is I8; expected a weight's type"),
        (lambda t: {k: v.to(torch.float8_e4m3fn) for k, v in t.items()}, "is F8_E4M3"),
        (lambda t: {k: v.double() for k, v in t.items()}, "is F64"),
        (lambda t: t | {"model.norm.weight": torch.ones(31)}, "is (31,); expected (32,)"),
    ],
)
def test_tensors_that_no_such_model_has_are_refused(made, tmp_path, change, said):
    folder = copied(made, tmp_path)
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    path.unlink()  # mapped by what was loaded
    save_file(tensors, path)
    assert said in refused(folder)


def _header(path, header, size=None, body=b"\0" * 64):
    text = json.dumps(header).encode()
    path.unlink()
    path.write_bytes(struct.pack("<Q", size or len(text)) + text + body)


def _one(shape, offsets):
    return {"dtype": "F32", "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": _one([8], [0, 32]), "b": _one([8], [16, 48])}, None),
        ({"a": _one([1 << 40], [0, 1 << 42])}, None),
        ({"a": _one([1 << 40, 1 << 40], [0, 64])}, None),
        ({"a": _one([16], [64, 0])}, None),
        ({"a": _one([16], [0, 64])}, 1 << 62),
        ({"a": _one([16], [0, 64])}, 99_000_000),
        ("no object", None),
    ],
)
def test_a_hostile_file_of_weights_is_refused(made, tmp_path, header, size):
    folder = copied(made, tmp_path)
    _header(folder / "model.safetensors", header, size)
    assert "model.safetensors: " in refused(folder)


@pytest.mark.parametrize("name", ["../../x.safetensors", "/etc/passwd", "a/b.safetensors", "", 3])
def test_an_index_that_names_files_elsewhere_is_refused(made, tmp_path, name):
    folder = copied(made, tmp_path, "shards")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = name
    path.write_text(json.dumps(index))
    assert "weight_map names" in refused(folder)


def test_an_index_that_says_otherwise_than_its_files_is_refused(made, tmp_path):
    folder = copied(made, tmp_path, "shards")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["extra"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))
    assert "tensor extra is only in the index" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_out_of_the_folder_is_not_followed(made, tmp_path, name):
    folder = copied(made, tmp_path)
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    assert "a link out of the folder" in refused(folder)


def test_the_links_of_huggingfaces_cache_are_followed(made, tmp_path):
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    folder.mkdir(parents=True)
    for path in (made / "smollm2").iterdir():
        shutil.copy(path, blobs / path.name)
        (folder / path.name).symlink_to(f"../../blobs/{path.name}")
    read_base(folder)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "a LoRA adapter of another model"),
        (["config.json", "pytorch_model.bin"], "pytorch_model.bin is a pickle"),
        ([], "config.json: no such file"),
    ],
)
def test_a_folder_of_another_kind_says_what_it_is_and_what_to_do(made, tmp_path, names, said):
    for name in names:
        (tmp_path / name).write_bytes((made / "smollm2" / "config.json").read_bytes())
    assert said in refused(tmp_path, by_prepare=bool(names))


def test_a_folder_with_a_tokenizer_alone_is_no_base(tmp_path):
    check_base(f"hf:{tmp_path}")


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused(made, tmp_path):
    folder = copied(made, tmp_path)
    values = {"model": {"vocab": {"a": 1}}, "added_tokens": [{"id": 300, "content": "<s>"}]}
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="vocab_size is 300; expected more than 300"):
        check_base(f"hf:{folder}")


def test_a_pipe_is_not_waited_for(made, tmp_path):
    folder = copied(made, tmp_path)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert "no ordinary file" in refused(folder)


def test_a_config_of_a_gigabyte_is_not_read(made, tmp_path):
    folder = copied(made, tmp_path)
    with (folder / "config.json").open("r+b") as file:
        file.truncate(1 << 30)
    assert "expected a small object" in refused(folder)


def test_a_hostile_config_is_refused_as_soon_where_transformers_would_read_it(tmp_path):
    make("qwen3", tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    odd = [{"num_hidden_layers": 1 << 30}, {"hidden_size": 1 << 40}, {"num_attention_heads": 0}]
    for changes in (*odd, {"model_type": []}):
        path.write_text(json.dumps(values | changes))
        begun = time.monotonic()
        with pytest.raises(MyptError) as raised:
            check_base(f"hf:{tmp_path}", "transformers")
        assert time.monotonic() - begun < 10
        assert "\n" not in str(raised.value)
    path.write_text(json.dumps(values | {"intermediate_size": 1 << 33}))
    with pytest.raises(CheckpointError, match=r"numbers; the config says .* expected the tensors"):
        read_foreign(tmp_path)
