"""GGUF files of random models against transformers' own, as bases, and what is refused."""

import json
import random
from dataclasses import replace
from itertools import chain, pairwise
from math import inf

import numpy as np
import pytest
import torch

from mypt.data.tokenizer import load_tokenizer
from mypt.data.vocabularies.gguf_header import read_header
from mypt.data.vocabularies.huggingface import hf_vocabulary
from mypt.errors import CheckpointError, ConfigError, DataError
from mypt.inference.huggingface.exports import export_hf
from mypt.inference.huggingface.gguf_layouts import GGUFTensors
from mypt.inference.huggingface.imports import read_base
from mypt.provenance.reproduction import reproduce
from mypt.provenance.trace import trace
from mypt.training.base_import import base_of
from mypt.training.checkpoints.checkpoint import load_model
from mypt.training.loop import train
from mypt.training.plan import plan_run
from tests.mypt.conftest import prepare_chat
from tests.mypt.data.rendering.bases import CHATML, write_base
from tests.mypt.inference.huggingface.families import VOCAB, make, ours
from tests.mypt.inference.huggingface.gguf_files import (
    ARCHITECTURES,
    gguf,
    write_gguf,
    write_pieces,
)

transformers = pytest.importorskip("transformers", reason="pip install 'mypt[dev]'")
IDS = torch.arange(63)[None] * 7 % VOCAB


def logits(model, ids):
    with torch.no_grad():
        found = model(ids)
    return found[0] if isinstance(found, tuple) else found.logits


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_gguf_gives_the_logits_that_transformers_gives(name, tmp_path):
    theirs = make(name, tmp_path / "folder")
    path = write_gguf(tmp_path / "base.gguf", theirs, ARCHITECTURES[name])
    if name == "gemma 3":  # whose scale GGUF does not say: it is that of its heads
        theirs.config.query_pre_attn_scalar = 16
        theirs = type(theirs)(theirs.config).eval()
        theirs.load_state_dict(make(name, tmp_path / "again").state_dict())
    model, read = ours(path)
    expected = logits(theirs, IDS)
    torch.testing.assert_close(logits(model, IDS)[..., :VOCAB], expected, rtol=1e-5, atol=2e-5)
    assert read.base.dtype == "float32"
    assert json.loads(read.base.config)["model_type"] == theirs.config.model_type


def test_speeds_that_a_tensor_divides_are_those_of_llama_3(tmp_path):
    theirs = make("llama 3.2", tmp_path / "folder")
    rope = theirs.model.rotary_emb
    plain = 500_000.0 ** (-torch.arange(0, 16, 2) / 16)
    factors = (plain / rope.inv_freq).numpy().astype(np.float32)
    extra = {"llama.attention.key_length": 16, "llama.attention.value_length": 16}
    path = write_gguf(
        tmp_path / "a.gguf", theirs, "llama", extra=extra, tensors={"rope_freqs.weight": factors}
    )
    model, _ = ours(path)
    found = logits(model, IDS)[..., :VOCAB]
    torch.testing.assert_close(found, logits(theirs, IDS), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_packed_numbers_are_what_the_package_unpacks(kind, tmp_path):
    theirs = make("qwen2.5", tmp_path / "folder")
    header = read_header(write_gguf(tmp_path / "a.gguf", theirs, "qwen2", kind=kind))
    tensors = GGUFTensors(header)
    for known in gguf.GGUFReader(tmp_path / "a.gguf").tensors:
        expected = gguf.quants.dequantize(known.data, known.tensor_type)
        found = tensors.read(known.name).numpy()
        assert np.array_equal(found, expected.reshape(found.shape)), known.name
    plain = {"F16": "float16", "BF16": "bfloat16"}
    assert tensors.dtype == plain.get(kind, "float32")


def test_a_model_of_a_gguf_is_trained_traced_made_again_and_exported(tmp_path, tiny):
    base = base_of_two(tmp_path)
    data = prepare_chat(tmp_path, n=12, tokenization=f"gguf:{base}", template="base")
    preset = tiny(max_iters=3, checkpoint_interval=1, batching="packed", eval_interval=3)
    plan = plan_run(preset, "tuned", data, init_from=f"gguf:{base}")
    list(train(plan))
    model, _, end = load_model("tuned")
    (link,) = [
        deeper for link in trace(end.path, verify=True).links for deeper in link.links
        if any(file.name == base.name for file in deeper.links)
    ]  # fmt: skip
    assert all(file.verified for file in link.links)
    found = reproduce(end.path, tmp_path / "again")
    assert [stage.outcome for stage in found.stages] == ["same"] * 3, found.stages

    export_hf(
        tmp_path / "out", model.config, end.weights, end.tokenizer, base=base_of(end.lineage),
        card="",
    )  # fmt: skip
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(40)[None]
    torch.testing.assert_close(logits(back, ids), logits(model, ids), rtol=1e-5, atol=2e-5)


def base_of_two(tmp_path, longest=128, **options):
    """Write a tokenizer as a folder and, with a model, as a GGUF; return the file."""
    write_base(tmp_path / "folder", CHATML)
    theirs = make("smollm2", tmp_path / "model")
    theirs.config.max_position_embeddings = longest
    n = len(transformers.AutoTokenizer.from_pretrained(tmp_path / "folder"))
    theirs.resize_token_embeddings(n)
    tokenizer = (tmp_path / "folder", "qwen2", CHATML)
    return write_gguf(tmp_path / "base.gguf", theirs, "llama", tokenizer=tokenizer, **options)


def test_tokenizer_and_template_are_those_of_the_folder_it_was_made_from(tmp_path):
    base = base_of_two(tmp_path)
    one, other = (
        load_tokenizer(name, "base") for name in (f"hf:{tmp_path / 'folder'}", f"gguf:{base}")
    )
    assert other.template == one.template
    same = replace(one.vocabulary, name=other.name, normal_form="NFC")
    assert other.vocabulary == same
    assert other.name.startswith("gguf:")


def pieces():
    """Words of SentencePiece's kind: the better a word, the earlier it is put together."""
    made = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    made += [(f"<0x{value:02X}>", 0.0, 6) for value in range(256)]
    known = "\u2581the \u2581then \u2581a \u2581an answer swer er wer ans hen he en an"
    words = sorted({word[:n] for word in known.split(" ") for n in range(2, len(word) + 1)})
    draw = random.Random(3)
    draw.shuffle(words)
    made += [(word, -float(rank), 1) for rank, word in enumerate(words)]
    made += [("  ", -1000.0, 4)]
    letters = sorted({letter for word in words for letter in word})
    return made + [(letter, -1e9, 1) for letter in letters]


def naive(text, made):
    """Join the best pair of neighbours, the leftmost of equals, until none makes a word."""
    made = [(word.replace(" ", "\u2581"), score, kind) for word, score, kind in made]
    scores = {w: inf if kind == 4 else score for w, score, kind in made if kind in (1, 4)}
    ids = {word: number for number, (word, _, _) in enumerate(made)}
    parts = list(text)
    while True:
        pairs = [
            (scores[a + b], -at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in scores
        ]
        if not pairs:
            break
        at = -max(pairs)[1]
        parts[at : at + 2] = ["".join(parts[at : at + 2])]
    bytes_ = [[p] if p in ids else [f"<0x{b:02X}>" for b in p.encode()] for p in parts]
    return [ids[piece] for piece in chain(*bytes_)]


@pytest.mark.parametrize("spaced", [True, False])
def test_scores_say_the_merges_of_sentencepiece(tmp_path, spaced):
    made = pieces()
    path = write_pieces(tmp_path / "a.gguf", made, add_space_prefix=spaced, bos_token_id=1)
    ours = load_tokenizer(f"gguf:{path}", "chatml")
    assert (ours.vocabulary.prefix, ours.vocabulary.begin) == ("always" if spaced else "", "<s>")
    draw = random.Random(5)
    for _ in range(200):
        text = "".join(draw.choices("theanswer  \u00e9", k=draw.randint(1, 20)))
        written = (" " if spaced else "") + text
        assert ours.encode(text).tolist() == naive(written.replace(" ", "\u2581"), made)
        assert ours.decode(ours.encode(text)) == text
    assert not {0, 1, 2} & set(ours.encode("<s></s><unk>").tolist())


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"llama.expert_count": 8}, "llama.expert_count is 8, which LlamaForCausalLM has not"),
        ({"llama.rope.dimension_count": 4}, "expected one number, that of a whole head"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type is 'yarn'"),
        ({"general.type": "adapter"}, "'adapter' of general.architecture 'llama'"),
        ({"split.count": 3}, "one of 3 files; merge them"),
    ],
)  # fmt: skip
def test_a_gguf_with_other_parts_is_refused(extra, named, tmp_path):
    path = write_gguf(tmp_path / "a.gguf", make("tinyllama", tmp_path / "m"), "llama", extra=extra)
    with pytest.raises((CheckpointError, DataError), match=named) as caught:
        read_base(path)
    assert "\n" not in str(caught.value)


def test_an_architecture_or_way_to_cut_text_that_is_not_known_is_refused(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", make("tinyllama", tmp_path / "model"), "mamba")
    with pytest.raises(CheckpointError, match="'mamba'; expected a model of llama, qwen2"):
        read_base(path)
    write_base(tmp_path / "folder", CHATML)
    theirs = make("smollm2", tmp_path / "other")
    path = write_gguf(
        tmp_path / "b.gguf", theirs, "llama", tokenizer=(tmp_path / "folder", "viking")
    )
    with pytest.raises(DataError, match="'viking'; expected one of default, gpt-2"):
        hf_vocabulary(path)


def test_a_file_of_an_installed_package_is_named_by_the_package(tmp_path, monkeypatch):
    (tmp_path / "weights_inside").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    base = base_of_two(tmp_path).rename(tmp_path / "weights_inside" / "base.gguf")
    one, other = (
        load_tokenizer(f"gguf:{name}", "base") for name in (base, "weights_inside:base.gguf")
    )
    assert one.digest == other.digest
    (tmp_path / "away.gguf").write_bytes(base.read_bytes())
    (tmp_path / "weights_inside" / "link.gguf").symlink_to(tmp_path / "away.gguf")
    with pytest.raises(ConfigError, match=r"link\.gguf is a link out of the package"):
        load_tokenizer("gguf:weights_inside:link.gguf")
    with pytest.raises(ConfigError, match="leaves the package weights_inside"):
        load_tokenizer("gguf:weights_inside:../base.gguf")
    with pytest.raises(DataError, match=r"package weights_away is not installed .* weights-away"):
        load_tokenizer("gguf:weights_away:base.gguf")


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"gguf:nothing\.gguf: no file nothing\.gguf"):
        load_tokenizer("gguf:nothing.gguf")
