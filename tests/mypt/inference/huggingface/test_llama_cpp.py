"""Exported files in llama.cpp itself: the same ids, the same greedy tokens, the same perplexity.

The package ``node-llama-cpp`` of npm carries a ready llama.cpp; MYPT_NODE_MODULES says where it is.
"""

import json
import math
import os
import random
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mypt.config import PrepareConfig, Source, load_config
from mypt.data.dataset import tokenize
from mypt.data.template import load_template
from mypt.data.tokenizer import Tokenizer, load_tokenizer
from mypt.data.vocabularies.vocabulary import bpe_vocabulary, char_vocabulary
from mypt.inference.generation import generate_batch
from mypt.inference.huggingface.gguf_export import export_gguf
from mypt.training.checkpoints.checkpoint import load_model
from mypt.training.loop import train
from mypt.training.plan import plan_run
from tests.mypt.inference.huggingface.families import make, ours
from tests.mypt.inference.huggingface.test_exports import LLAMA, TEXTS, build, export
from tests.pages import ROOT

NODE_MODULES = Path(os.environ.get("MYPT_NODE_MODULES", "node_modules"))
ASKED = Path(__file__).with_name("llama_cpp.mjs")
needs_llama_cpp = pytest.mark.skipif(
    not (NODE_MODULES / "node-llama-cpp").is_dir() or shutil.which("node") is None,
    reason="no llama.cpp: npm install node-llama-cpp, and name its node_modules in"
    " MYPT_NODE_MODULES",
)
CONVERTER = os.environ.get("MYPT_CONVERT_HF_TO_GGUF", "")
needs_converter = pytest.mark.skipif(
    not CONVERTER, reason="MYPT_CONVERT_HF_TO_GGUF does not name llama.cpp's convert_hf_to_gguf.py"
)
pytestmark = pytest.mark.slow
N, WRITTEN = 200, 16


def llama_cpp(model, *, texts=(), prompts=(), scored=(), context=256):
    """Return what llama.cpp says of a file: ids, greedy tokens and nats."""
    asked = {"model": str(model), "texts": list(texts), "prompts": list(prompts), "n": WRITTEN,
             "scored": list(scored), "context": context}  # fmt: skip
    words = ["node", str(ASKED), str(NODE_MODULES.absolute())]
    done = subprocess.run(words, input=json.dumps(asked), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def prompts_of(tokenizer, n=N):
    """Return ids of random texts, most of them no words."""
    draw = random.Random(7)
    letters = "the cat sat, 12 on A mat.\n"
    texts = ["".join(draw.choices(letters, k=draw.randint(1, 40))) for _ in range(n)]
    return texts, [tokenizer.encode(text).tolist() for text in texts]


def written(path, model, tokenizer, quant="f32", **options):
    weights = dict(model.named_parameters())
    export_gguf(path, model.config, weights, tokenizer, name="m", quant=quant, **options)
    return path


def a_model(name, folder, tokenizer):
    """Return a random model of a family, far from where models begin."""
    if name == "gpt-2":
        return build(tokenizer, {"bias": True})
    if name == "llama":
        return build(tokenizer, LLAMA | {"n_kv_head": 2})
    make(name, folder)
    model, _ = ours(folder)
    return model


def round_as_llama_cpp(patch, quant):
    """Make GELU a table from float16 to float16, and round what float16 matrices multiply."""
    gelu, linear = F.gelu, F.linear

    def table(x, approximate):
        found = gelu(x.half().float(), approximate=approximate).half().float()
        return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, found))

    patch.setattr(F, "gelu", table)
    if quant == "f16":
        patch.setattr(F, "linear", lambda x, *matrix: linear(x.half().float(), *matrix))


@torch.no_grad()
def nats(model, ids):
    """Return what each token but the first costs."""
    return F.cross_entropy(model(torch.tensor([ids[:-1]]))[0][0], torch.tensor(ids[1:]),
                           reduction="none")  # fmt: skip


@needs_llama_cpp
@pytest.mark.parametrize("quant", ["f32", "f16"])
@pytest.mark.parametrize(
    "name", ["gpt-2", "llama", "qwen2.5", "qwen3", "gemma 3, usual scale", "llama 3.2"]
)
def test_llama_cpp_computes_and_writes_the_same_after_200_prompts(
    name, quant, tmp_path, monkeypatch
):
    """Ours rounds where llama.cpp does here, and the typical token then costs the same.

    A number between two of float16 may still go either way; later tokens inherit it, and a random
    model hesitates often: a different token is one that was as likely as makes no difference.
    """
    tokenizer = load_tokenizer("byte", "chatml")
    model = a_model(name, tmp_path / "theirs", tokenizer)
    if quant == "f16":  # what both then compute with
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(weight.half().float() if weight.ndim > 1 else weight)
    path = written(tmp_path / "a.gguf", model, tokenizer, quant)
    texts, prompts = prompts_of(tokenizer)
    scored = [ids if quant == "f32" else ids[:2] for ids in prompts if len(ids) > 1]
    said = llama_cpp(path, texts=texts, prompts=prompts, scored=scored, context=128)
    assert said["ids"] == prompts
    round_as_llama_cpp(monkeypatch, quant)
    apart = torch.cat([nats(model, ids) for ids in scored]) - torch.tensor([*chain(*said["nats"])])
    assert apart.abs().median() < 2e-6  # 1e-4 where ours does not round
    found = generate_batch(model, prompts, max_tokens=WRITTEN)
    same = [one == other for one, other in zip(said["greedy"], found, strict=True)]
    if quant == "f32" and not name.startswith("gemma"):
        assert all(same)
    assert sum(same) >= 0.95 * N
    for prompt, theirs, own in zip(prompts, said["greedy"], found, strict=True):
        if theirs != own:
            at = [one == other for one, other in zip(theirs, own, strict=True)].index(False)
            with torch.no_grad():
                logits = model(torch.tensor([prompt + own[:at]]))[0][0, -1]
            most = 2e-4 if quant == "f32" else 0.01
            assert logits[own[at]] - logits[theirs[at]] < most * logits.std()


@needs_llama_cpp
@pytest.mark.parametrize("kind", ["byte", "gpt2", "bpe", "char"])
def test_llama_cpp_gives_the_same_ids(kind, tmp_path):
    letters = ["a cat sat on the mat\n\n", "12345 don't I'LL", "the , A."] * 20
    if kind in ("bpe", "char"):
        made = bpe_vocabulary(300, letters) if kind == "bpe" else char_vocabulary(letters)
        tokenizer = Tokenizer(made, load_template("mypt"))
    else:
        tokenizer = load_tokenizer(kind)
    path = written(tmp_path / "a.gguf", build(tokenizer, LLAMA), tokenizer)
    texts, expected = prompts_of(tokenizer)
    if kind != "char":
        more = [text for text in TEXTS if "\x00" not in text]  # where C's strings end
        texts, expected = texts + more, expected + [tokenizer.encode(t).tolist() for t in more]
    assert llama_cpp(path, texts=texts)["ids"] == expected


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A small model that has read some English, its tokenizer, and ids of text it has not read."""
    folder = tmp_path_factory.mktemp("reader")
    source = Source(path=str(ROOT / "examples" / "corpus.txt"), format="text")
    data = tokenize(PrepareConfig(sources=(source,), tokenization="bpe:400"), folder / "data")
    preset = load_config(ROOT / "configs" / "tiny_modern.json").model_copy(
        update={"vocab_size": 448, "n_embd": 64, "block_size": 128, "max_iters": 150,
                "compile": False, "threads": 1, "device": "cpu", "dtype": "float32"}
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPT_HOME", str(folder / "runs"))
        list(train(plan_run(preset, "reader", data.path)))
        model, tokenizer, _ = load_model("reader")
    text = (ROOT / "examples" / "chats" / "turns.jsonl").read_text()
    ids = tokenizer.encode(text).tolist()
    return model.eval(), tokenizer, [ids[at : at + 120] for at in range(0, 1200, 120)]


@needs_llama_cpp
def test_perplexity_is_ours_and_hardly_changes_by_8_bits(reader, tmp_path, record_property):
    model, tokenizer, rows = reader
    found = {}
    for quant in ("f32", "f16", "q8_0", "q4_0"):
        path = written(tmp_path / f"{quant}.gguf", model, tokenizer, quant, form="plain")
        said = list(chain(*llama_cpp(path, scored=rows, context=128)["nats"]))
        found[quant] = math.exp(sum(said) / len(said))
    own = torch.cat([nats(model, row) for row in rows])
    assert found["f32"] == pytest.approx(float(own.mean().exp()), rel=1e-4)
    assert found["f16"] == pytest.approx(found["f32"], rel=1e-3)
    assert found["q8_0"] == pytest.approx(found["f16"], rel=0.02)
    record_property("perplexity", found)
    assert found["q4_0"] < 1.5 * found["f16"]


@needs_converter
@pytest.mark.parametrize("name", ["gpt-2", "llama", "qwen3"])
def test_llama_cpps_own_script_converts_an_exported_folder(name, tmp_path):
    tokenizer = load_tokenizer("gpt2", "chatml")
    parts = {"gpt-2": {}, "llama": LLAMA, "qwen3": LLAMA | {"qk_norm": True}}
    model = build(tokenizer, parts[name])
    folder = export(tmp_path / "hf", model, tokenizer)
    out = tmp_path / "theirs.gguf"
    words = [sys.executable, CONVERTER, str(folder), "--outfile", str(out), "--outtype", "f32"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    own = written(tmp_path / "ours.gguf", model, tokenizer)
    assert out.stat().st_size == pytest.approx(own.stat().st_size, rel=0.1)
