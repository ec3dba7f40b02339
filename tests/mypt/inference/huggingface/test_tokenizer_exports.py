"""Tokenizers of today's bases, exported: the ids of ours, the words of theirs."""

import json

import pytest

from mypt.config import GPTConfig
from mypt.data.conversations import Conversation, say
from mypt.data.preparation.encoding import encode_rows
from mypt.data.tokenizer import load_tokenizer
from mypt.inference.huggingface.chat_template import CUT
from mypt.inference.huggingface.exports import export_hf, tokenizer_json
from mypt.inference.huggingface.imports import read_base
from mypt.model.gpt import GPT
from tests.mypt.data.rendering.bases import CHATML, LLAMA, write_base
from tests.mypt.data.rows import HERE
from tests.mypt.data.vocabularies.test_huggingface import (
    FAMILIES,
    NASTY,
    PREFIXES,
    folder_of,
    lost,
    samples,
)
from tests.mypt.inference.huggingface.families import make
from tests.mypt.inference.huggingface.messages import hf_messages

transformers = pytest.importorskip("transformers", reason="pip install 'mypt[dev]'")
tokenizers = pytest.importorskip("tokenizers")

TEXTS = [
    text for text in (*samples(8), *NASTY, "a.\nb", "  \n x") if not set(text) & {CUT, "\ufdd0"}
]


def export(folder, tokenizer, **how):
    config = GPTConfig(vocab_size=tokenizer.n_vocab, block_size=8, n_layer=1, n_head=1, n_embd=4)
    export_hf(folder, config, dict(GPT(config).named_parameters()), tokenizer, card="", **how)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_exported_tokenizer_has_our_ids_and_gives_texts_and_itself_back(tmp_path, name):
    (tmp_path / "in").mkdir()
    ours = load_tokenizer(f"hf:{folder_of(tmp_path / 'in', FAMILIES[name]())}", "chatml")
    found = export(tmp_path / "chat", ours)
    # Parts of our templates have no space that nobody said; the texts of a base do.
    plain = export(tmp_path / "out", ours, form="plain" if name in PREFIXES else "chat")
    for text in TEXTS:
        row = Conversation((say("user", text), say("assistant", text)), HERE)
        ids = found.apply_chat_template(hf_messages(row))["input_ids"]
        assert ids == encode_rows([row], ours).tokens.tolist(), repr(text)
        if not any(token in text for token in ours.special_tokens):
            if lost(ours, text):
                continue
            alone = plain.encode(text, add_special_tokens=False)
            assert alone == ours.encode(text).tolist(), repr(text)
            assert plain.decode(alone) == ours.decode(alone)
    for token, number in ours.special_tokens.items():
        assert found.convert_tokens_to_ids(token) == number
    again = load_tokenizer(f"hf:{tmp_path / 'out'}", "chatml")
    assert again.special_tokens == ours.special_tokens
    assert again.vocabulary.tokens == ours.vocabulary.tokens
    for text in (text for text in TEXTS if not lost(ours, text)):
        assert again.encode(text).tolist() == ours.encode(text).tolist()


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", "o200k_base", "byte"])
def test_only_a_seam_that_would_merge_is_cut(tmp_path, name):
    found = export(tmp_path / "out", load_tokenizer(name, "chatml"))
    for text in ("Hello", "\xc9t\xe9", "\u0416\u0438", "7 of 9", "*so*", "\u65e5\u672c"):
        turns = [{"role": "user", "content": text}]
        cut = CUT in found.apply_chat_template(turns, tokenize=False)
        assert cut == (name == "o200k_base" and text == "\u65e5\u672c"), text
    turns = [{"role": "user", "content": "\n\nlead"}]
    assert found.apply_chat_template(turns, tokenize=False).count(CUT) == (name != "byte")


@pytest.fixture
def base(tmp_path):
    """A folder of a chat model that begins its texts with <bos>, with words of its own."""
    make("smollm2", tmp_path / "base")
    write_base(tmp_path / "base", LLAMA, pad_token="<|end|>", add_bos_token=True, odd_word="kept")
    path = tmp_path / "base" / "tokenizer.json"
    values = json.loads(path.read_text())
    for token in values["added_tokens"]:
        token["special"] = token["content"] != "<think>"
    path.write_text(json.dumps(values))
    generation = {"temperature": 0.6, "do_sample": True, "eos_token_id": [3, 7], "pad_token_id": 5}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(generation))
    return tmp_path / "base"


def exported(base, out, template, form):
    read = read_base(base)
    ours = load_tokenizer(f"hf:{base}", template)
    config = GPTConfig(**read.architecture.model_dump())
    export_hf(out, config, dict(read.weights), ours, form=form, base=read.base, card="")
    parsed = {path.name: json.loads(path.read_text()) for path in out.glob("*.json")}
    return ours, parsed, transformers.AutoTokenizer.from_pretrained(out)


@pytest.mark.parametrize("form", ["chat", "plain"])
def test_a_base_keeps_its_words_and_only_a_chat_model_ends_with_its_stop(base, tmp_path, form):
    ours, files, found = exported(base, tmp_path / "out", "base", form)
    assert (found.bos_token, found.pad_token) == ("<bos>", "<|end|>")
    assert found.eos_token == ("<|eot|>" if form == "chat" else "</s>")
    words = files["tokenizer_config.json"]
    assert (words["odd_word"], words["model_max_length"]) == ("kept", 128)
    generation = files["generation_config.json"]
    assert (generation["temperature"], generation["pad_token_id"]) == (0.6, 5)
    stops = {ours.stop_id} if form == "chat" else set()
    assert set(generation["eos_token_id"]) == {3, 7, ours.end_of_text} | stops
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == LLAMA
    flags = {
        token["content"]: token["special"] for token in files["tokenizer.json"]["added_tokens"]
    }
    assert (flags["<think>"], flags["</think>"]) == (False, True)
    text = "the answer is 42"
    assert found(text)["input_ids"] == [*ours.begin_of_text, *ours.encode(text).tolist()]
    again = load_tokenizer(f"hf:{tmp_path / 'out'}", "base")
    assert again.begin_of_text == ours.begin_of_text != ()


def test_text_forges_no_token_whatever_its_flags_and_numbered_ones_are_kept_as_one(base, tmp_path):
    path = base / "tokenizer.json"
    values = json.loads(path.read_text())
    for token in values["added_tokens"]:
        token["normalized"] = True
    first = max(token["id"] for token in values["added_tokens"]) + 1
    values["added_tokens"] += [
        {**values["added_tokens"][0], "id": first + n, "content": f"<odd{n}>", "special": False}
        for n in range(5)
    ]
    path.write_text(json.dumps(values))
    kept = json.loads(read_base(base).base.flags)
    assert "<odd#>" in kept
    assert not any(f"<odd{n}>" in kept for n in range(5))
    ours, _, found = exported(base, tmp_path / "out", "chatml", "chat")
    for token in ("<|eot|>", "<odd3>", "</think>"):
        row = Conversation((say("user", f"so {token} x"), say("assistant", token)), HERE)
        ids = found.apply_chat_template(hf_messages(row))["input_ids"]
        assert ids == encode_rows([row], ours).tokens.tolist()
        assert ours.special_tokens[token] not in ids


def test_a_model_of_ours_pads_with_the_token_that_ends_its_texts(tmp_path):
    (tmp_path / "in").mkdir()
    made = FAMILIES["gemma"]()
    ours = load_tokenizer(f"hf:{folder_of(tmp_path / 'in', made)}", "chatml")
    found = export(tmp_path / "chat", ours)
    assert (found.eos_token, found.pad_token) == ("<|im_end|>", "<eos>")
    found = export(tmp_path / "text", ours, form="plain")
    assert (found.eos_token, found.pad_token) == ("<eos>", "<eos>")
    told = json.loads((tmp_path / "text" / "generation_config.json").read_text())
    assert told["eos_token_id"] == [ours.end_of_text]


def test_a_template_of_the_base_is_exported_with_its_tokenizer_as_it_came(tmp_path):
    fast = write_base(tmp_path / "base", CHATML)
    ours = load_tokenizer(f"hf:{tmp_path / 'base'}", "base")
    out = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(ours)))
    assert out.normalizer is None
    for text in TEXTS:
        assert out.encode(text).ids == fast.encode(text, add_special_tokens=False)
