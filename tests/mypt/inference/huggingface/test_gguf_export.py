"""GGUF files that are written: read back they are the model and its tokenizer, bit for bit."""

import pytest
import torch

from mypt.data.template import load_template
from mypt.data.tokenizer import Tokenizer, load_tokenizer
from mypt.data.vocabularies.gguf_header import read_header
from mypt.data.vocabularies.huggingface import hf_vocabulary
from mypt.data.vocabularies.vocabulary import bpe_vocabulary, char_vocabulary
from mypt.errors import ConfigError
from mypt.inference.huggingface.gguf_export import export_gguf, go_of, jinja_of
from mypt.inference.huggingface.imports import read_base
from tests.mypt.inference.huggingface.families import make, ours
from tests.mypt.inference.huggingface.gguf_files import gguf
from tests.mypt.inference.huggingface.test_exports import LLAMA, MODELS, TEXTS, build

jinja2 = pytest.importorskip("jinja2.sandbox")
WORDS = ("a cat sat on the mat\n\n", "12345 don't I'LL", "\u00e9\u00df \u65e5\u672c ") * 20


def written(path, model, tokenizer, **options):
    weights = dict(model.named_parameters())
    export_gguf(path, model.config, weights, tokenizer, name="m", quant="f32", **options)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_weights_and_config_come_back_from_the_file(tmp_path, name):
    model = build(load_tokenizer("byte"), MODELS[name])
    read = read_base(written(tmp_path / "a.gguf", model, load_tokenizer("byte")))
    for there, weight in model.named_parameters():
        assert torch.equal(read.weights.pop(there), weight)
    assert all(not weight.any() for weight in read.weights.values()), "biases that ours has not"
    own = model.config
    for field in ("n_layer", "head_width", "key_heads", "eps", "rope_base", "inner_width"):
        assert getattr(read.architecture, field) == pytest.approx(getattr(own, field), rel=1e-6)
    assert read.architecture.longest == own.longest


@pytest.mark.parametrize(
    "name", ["smollm2", "llama 3.2", "qwen2.5", "qwen3", "gemma 3, usual scale", "mistral"]
)
def test_a_base_goes_out_as_it_came_in(tmp_path, name):
    make(name, tmp_path / "folder")
    model, read = ours(tmp_path / "folder")
    path = written(tmp_path / "a.gguf", model, load_tokenizer("byte"))
    again = read_base(path)
    for there, weight in model.named_parameters():
        assert torch.equal(again.weights[there], weight)
    scaling = read.architecture.rope_scaling
    factors = [t for t in gguf.GGUFReader(path).tensors if t.name == "rope_freqs.weight"]
    assert bool(factors) == (scaling is not None and scaling.kind == "llama3")


@pytest.mark.parametrize("template", ["mypt", "chatml"])
@pytest.mark.parametrize("kind", ["byte", "gpt2", "bpe", "char"])
def test_a_tokenizer_comes_back_with_the_same_ids(tmp_path, kind, template):
    if kind in ("bpe", "char"):
        letters = (word for word in WORDS if kind == "bpe" or word.isascii())
        made = bpe_vocabulary(300, WORDS) if kind == "bpe" else char_vocabulary(letters)
        tokenizer = Tokenizer(made, load_template(template))
    else:
        tokenizer = load_tokenizer(kind, template)
    path = written(tmp_path / "a.gguf", build(tokenizer, LLAMA), tokenizer)
    read = hf_vocabulary(path)
    again = Tokenizer(read, load_template(template))
    for text in (*TEXTS, *WORDS):
        assert list(again.encode(text)) == list(tokenizer.encode(text)), text
    header = read_header(path).values
    stop = header["tokenizer.ggml.eos_token_id"]
    assert header["tokenizer.ggml.tokens"][stop] == tokenizer.template.stop
    assert len(header["tokenizer.ggml.tokens"]) == tokenizer.n_vocab + 3, "a row each"


def test_a_tokenizer_that_llama_cpp_would_cut_otherwise_is_refused_and_nothing_is_left(tmp_path):
    wide = Tokenizer(char_vocabulary(["\u65e5\u672c"]), load_template("mypt"))
    with pytest.raises(ConfigError, match=r"no name for how this tokenizer cuts text, .*--to hf"):
        written(tmp_path / "a.gguf", build(wide, LLAMA), wide)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_place_is_refused_by_its_option(tmp_path):
    tokenizer = load_tokenizer("byte")
    odd = build(tokenizer, LLAMA | {"residual_scale": 0.5})
    with pytest.raises(ConfigError, match=r"has no place for residual_scale 0.5"):
        written(tmp_path / "a.gguf", odd, tokenizer)


def test_a_scale_of_attention_that_the_file_cannot_say_is_refused(tmp_path):
    make("gemma 3", tmp_path / "folder")
    model, _ = ours(tmp_path / "folder")
    said = "query_pre_attn_scalar is 24, and llama.cpp computes with 16, whatever the file says"
    with pytest.raises(ConfigError, match=said):
        written(tmp_path / "a.gguf", model, load_tokenizer("byte"))


@pytest.mark.parametrize(
    ("quant", "matrix", "head", "off"),
    [
        ("f16", "F16", "F16", 1e-3),
        ("bf16", "BF16", "BF16", 1e-2),
        ("q8_0", "Q8_0", "Q8_0", 1e-2),
        ("q4_0", "Q4_0", "Q8_0", 0.2),
    ],
)
def test_matrices_are_rounded_as_asked_and_vectors_never(tmp_path, quant, matrix, head, off):
    tokenizer = load_tokenizer("byte")
    model = build(tokenizer, LLAMA)
    path, weights = tmp_path / "a.gguf", dict(model.named_parameters())
    export_gguf(path, model.config, weights, tokenizer, name="m", quant=quant)
    kinds = {name: tensor.kind for name, tensor in read_header(path).tensors.items()}
    assert kinds["blk.0.ffn_up.weight"] == matrix
    assert kinds["token_embd.weight"] == head
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    for name, weight in read_base(path).weights.items():
        assert (weight - weights[name]).abs().max() <= off * weights[name].abs().max()


CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "And?"},
]


@pytest.mark.parametrize("name", ["mypt", "chatml", "llama3", "alpaca", "plain"])
def test_the_plain_template_writes_what_training_read(name):
    template, tokenizer = load_template(name), load_tokenizer("byte", name)
    chat = CHAT if "system" in template.turns else CHAT[1:]
    made = jinja2.SandboxedEnvironment().from_string(jinja_of(template))
    first, later = template.start, template.separator
    turns = [
        f"{template.turns[m['role']].header}{m['content']}{template.turns[m['role']].end}"
        for m in chat
    ]
    expected = first + later.join(turns) + later + template.turns["assistant"].header
    assert made.render(messages=chat, add_generation_prompt=True) == expected
    assert all(
        token in tokenizer.special_tokens for token in template.special_tokens if token in expected
    )


def test_the_modelfile_says_template_and_stops(tmp_path):
    tokenizer = load_tokenizer("byte", "chatml")
    model = build(tokenizer, LLAMA)
    path = tmp_path / "a.gguf"
    said = export_gguf(path, model.config, dict(model.named_parameters()), tokenizer, name="m")
    assert said == tmp_path / "a.gguf.Modelfile"
    text = said.read_text()
    assert text.startswith('FROM ./a.gguf\nTEMPLATE """')
    assert go_of(tokenizer.template) in text
    assert text.endswith('PARAMETER stop "<|im_end|>"\n')
