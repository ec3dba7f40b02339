"""``tokenizer.json`` of today's families, made small: what is taken, what is refused, and why."""

import json
import random
import time
import unicodedata
from dataclasses import replace

import pytest

from mypt.config import Preparation, PrepareConfig, Source
from mypt.data.dataset import open_dataset, tokenize
from mypt.data.manifest import read_manifest
from mypt.data.preparation import parallel
from mypt.data.tokenizer import Tokenizer, load_tokenizer
from mypt.data.vocabularies.huggingface import hf_vocabulary
from mypt.data.vocabularies.vocabulary import BYTE, CHARACTER
from mypt.errors import DataError
from mypt.inference.generation import text_prompt
from mypt.inspection.validation import validate

tokenizers = pytest.importorskip("tokenizers")
stages = tokenizers.pre_tokenizers

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SCRIPTS = {
    "latin": (0x41, 0x24F), "greek": (0x370, 0x3FF), "cyrillic": (0x400, 0x4FF),
    "armenian": (0x531, 0x58F), "hebrew": (0x5D0, 0x5EA), "arabic": (0x620, 0x6FF),
    "devanagari": (0x900, 0x97F), "bengali": (0x980, 0x9FE), "tamil": (0xB82, 0xBFA),
    "telugu": (0xC00, 0xC7F), "thai": (0xE01, 0xE5B), "lao": (0xE81, 0xEDF),
    "tibetan": (0xF00, 0xFDA), "myanmar": (0x1000, 0x109F), "georgian": (0x10A0, 0x10FF),
    "hangul": (0xAC00, 0xD7A3), "ethiopic": (0x1200, 0x137C), "khmer": (0x1780, 0x17F9),
    "kana": (0x3041, 0x30FF), "han": (0x4E00, 0x9FFF),
}  # fmt: skip
NASTY = [
    "", " ", "\n\n\n", "a\r\n\r\n b  \n", "<|im_end|>", "<bos><eos></s>", "</think>", "<0x0A>",
    "\u2581", "e\u0301 \u00e9 \u212b", "\x00\x1f\x7f", "\ufeff\u200b\u00a0", " " * 70, "\t" * 9,
    "1234567 12,345.67", "don't DON'T", "\U0001f468\u200d\U0001f469", "\u0645\u064e \u202e",
    "\ud7ff\ue000\ufdd0\ufdd1\uffff", "x" * 300, "`" * 8 + "\n    indented\n",
]  # fmt: skip
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "<bos>", "<eos>", "</s>")


def samples(n=25):
    """Texts of twenty scripts, words of several lengths between digits and marks."""
    draw = random.Random(7)
    for low, high in SCRIPTS.values():
        letters = [chr(c) for c in range(low, high) if unicodedata.category(chr(c)) != "Cn"]
        for _ in range(n):
            words = ("".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(12))
            yield draw.choice((" ", "  ", "\n", ", ", " 17 ")).join(words)


def trained(pre, *, specials_first=False, size=700, normalizer=None, specials=CONTROLS[:4]):
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = pre
    if normalizer is not None:
        made.normalizer = normalizer
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=stages.ByteLevel.alphabet(), show_progress=False,
        special_tokens=list(specials) if specials_first else [],
    )  # fmt: skip
    made.train_from_iterator([*samples(8), "the answer isn't 42, it's 4711 " * 30], trainer)
    if not specials_first:
        made.add_special_tokens(list(specials))
    return made


def split(pattern=QWEN):
    return stages.Sequence(
        [
            stages.Split(tokenizers.Regex(pattern), "isolated"),
            stages.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def digits():
    return stages.Sequence(
        [stages.Digits(individual_digits=True), stages.ByteLevel(add_prefix_space=False)]
    )


def fallback():
    """A BPE over characters with a token for each byte beside them, as SentencePiece makes it."""
    texts = ["the answer is here, the other answer too "] * 20 + list(samples(2))
    made = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    made.pre_tokenizer = stages.Split(" ", "merged_with_previous")
    first = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{value:02X}>" for value in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, special_tokens=[*first, "</s>", "\n\n"], show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    values = json.loads(made.to_str())
    kept = ("<pad>", "<eos>", "<bos>", "<unk>", "</s>", "\n\n")
    values["added_tokens"] = [
        a | {"special": a["content"] != "\n\n"}
        for a in values["added_tokens"]
        if a["content"] in kept
    ]
    return tokenizers.Tokenizer.from_str(json.dumps(values))


def sentencepiece(scheme, specials=()):
    """The same with a space before texts, as a normalizer, or as Metaspace puts it."""
    values = json.loads(fallback().to_str())
    values["added_tokens"] = [a for a in values["added_tokens"] if a["special"]]
    if scheme == "prepend":
        first = {"type": "Prepend", "prepend": "\u2581"}
        stages = [first, values["normalizer"]]
        values |= {"normalizer": {"type": "Sequence", "normalizers": stages}, "pre_tokenizer": None}
    else:
        meta = {"type": "Metaspace", "replacement": "\u2581", "split": False}
        values |= {"normalizer": None, "pre_tokenizer": meta | {"prepend_scheme": scheme}}
    made = tokenizers.Tokenizer.from_str(json.dumps(values))
    made.add_special_tokens(list(specials))
    return made


FAMILIES = {
    "llama3": lambda: trained(split(QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|"))),
    "qwen": lambda: trained(split(), normalizer=tokenizers.normalizers.NFC()),
    "smollm2": lambda: trained(digits(), specials_first=True),
    "granite": lambda: trained(digits(), specials_first=True, specials=("</s>", *CONTROLS[:3])),
    "empty": lambda: trained(split(), normalizer=tokenizers.normalizers.Sequence([])),
    "gemma": fallback,
    "llama2": lambda: sentencepiece("prepend"),
    "mistral": lambda: sentencepiece("first"),
    "metaspace": lambda: sentencepiece("always"),
}
PREFIXES = {"llama2": "always", "mistral": "first", "metaspace": "segment"}
ENGINES = {name: name in ("smollm2", "granite", "gemma", *PREFIXES) for name in FAMILIES}


def folder_of(tmp_path, made, **config):
    made.save(str(tmp_path / "tokenizer.json"))
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def ours_of(folder):
    return load_tokenizer(f"hf:{folder}", "chatml")


def lost(ours, text):
    """Whether a text would come back without its first space; it is named then."""
    if ours.vocabulary.prefix not in ("segment", "first") or text[:1] not in (" ", "\u2581"):
        return False
    with pytest.raises(DataError, match="takes the space that a text begins with for its own"):
        ours.encode(text)
    return True


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path):
    made = FAMILIES[request.param]()
    return request.param, made, ours_of(folder_of(tmp_path, made))


def test_ids_are_those_of_tokenizers_in_twenty_scripts(family):
    name, made, ours = family
    assert bool(ours.vocabulary.engine) is ENGINES[name]
    assert ours.vocabulary.prefix == PREFIXES.get(name, "")
    for text in (*samples(), *NASTY):
        if lost(ours, text):
            assert made.encode(text).ids == ours.encode_part(text).tolist()
        elif not any(control in text for control in made.get_vocab() if control in CONTROLS):
            assert ours.encode(text).tolist() == made.encode(text, add_special_tokens=False).ids


def test_every_text_comes_back_in_its_normal_form(family):
    _, _, ours = family
    for text in (*samples(), *NASTY):
        if not lost(ours, text):
            assert ours.decode(ours.encode(text)) == ours.vocabulary.normalised(text)
        assert ours.decode_part(ours.encode_part(text)) == ours.vocabulary.normalised(text)


def test_no_text_has_the_id_of_a_control_token(family):
    _, _, ours = family
    controls = set(ours.special_tokens.values())
    assert controls.isdisjoint(ours.vocabulary.ids)
    for text in (*NASTY, *ours.special_tokens, "".join(ours.special_tokens)):
        assert controls.isdisjoint(ours.encode_part(text).tolist())


def test_many_texts_at_once_have_the_ids_that_each_has_alone(family):
    _, _, ours = family
    texts = [*samples(3), *NASTY]
    ids, lengths = ours.encode_each(ours.spelled(texts))
    alone = [ours.encode_part(text).tolist() for text in texts]
    assert ids.tolist() == [number for one in alone for number in one]
    assert lengths.tolist() == list(map(len, alone))


def test_the_state_on_disk_makes_the_same_tokenizer(family, tmp_path):
    _, _, ours = family
    (tmp_path / "state").mkdir()
    ours.write(tmp_path / "state")
    again = load_tokenizer(tmp_path / "state")
    assert again.digest == ours.digest
    assert again.vocabulary == replace(ours.vocabulary, special_tokens=ours.special_tokens)
    assert all((again.encode_part(t) == ours.encode_part(t)).all() for t in NASTY)
    assert again.encode("x y").tolist() == ours.encode("x y").tolist()


@pytest.mark.parametrize(
    ("config", "begin", "end"),
    [
        ({"add_bos_token": True, "bos_token": "<bos>"}, "<bos>", "<eos>"),
        ({"add_bos_token": False, "bos_token": "<bos>"}, "", "<eos>"),
        ({"bos_token": {"content": "<bos>"}}, "", "<eos>"),
        ({"add_bos_token": True, "bos_token": {"content": "<bos>"}}, "<bos>", "<eos>"),
    ],
)
def test_documents_begin_and_end_with_the_bases_own_tokens(tmp_path, config, begin, end):
    made = trained(split(), specials=("<bos>", "<eos>", "<|im_end|>"))
    folder = folder_of(tmp_path, made, eos_token="<|im_end|>", **config)
    ours = load_tokenizer(f"hf:{folder}", "chatml")
    assert (ours.vocabulary.begin, ours.vocabulary.end) == (begin, end)
    written = [slot.special for slot in ours.form(("text", True, ("text",)))]
    assert written == [*filter(None, [begin]), None, end]
    first = text_prompt(ours, "x")[: len(ours.begin_of_text)]
    assert first == list(ours.begin_of_text)


def test_a_post_processor_says_what_begins_a_document(tmp_path):
    made = trained(split(), specials=("<bos>", "<eos>"))
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", made.token_to_id("<bos>"))]
    )
    ours = ours_of(folder_of(tmp_path, made))
    assert ours.decode(ours.begin_of_text) == "<bos>"


def changed(tmp_path, change):
    values = json.loads(trained(split()).to_str())
    change(values)
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v.update(normalizer={"type": "Lowercase"}), "normalizers Lowercase"),
        (lambda v: v.update(normalizer={"type": "NFKC"}), "normalizers NFKC"),
        (lambda v: v.update(pre_tokenizer={"type": "Whitespace"}), "pre-tokenizer Whitespace"),
        (lambda v: v["model"].update(dropout=0.1), "dropout"),
        (lambda v: v["added_tokens"][0].update(id=300), "expected ids of their own"),
        (lambda v: v["model"]["vocab"].update(zz=300), "two tokens have one id"),
        (lambda v: v["model"]["vocab"].pop("a"), "1 of the 256 single bytes|no BPE"),
    ],
)
def test_what_would_lose_text_or_forge_a_token_is_refused(tmp_path, change, named):
    with pytest.raises(DataError, match=named) as caught:
        hf_vocabulary(changed(tmp_path, change))
    assert "\n" not in str(caught.value)


def test_merges_in_another_order_than_the_ids_are_left_to_tokenizers(tmp_path):
    made = trained(split())
    values = json.loads(made.to_str())
    values["model"]["merges"].reverse()
    made = tokenizers.Tokenizer.from_str(json.dumps(values))
    ours = ours_of(folder_of(tmp_path, made))
    assert ours.vocabulary.engine
    for text in samples(3):
        assert ours.encode(text).tolist() == made.encode(text).ids


def test_a_control_token_that_merges_would_make_is_refused(tmp_path):
    def change(values):
        left, right = values["model"]["merges"][-1]
        values["added_tokens"][0] |= {
            "content": left + right, "id": values["model"]["vocab"][left + right]
        }  # fmt: skip

    with pytest.raises(DataError, match="out of vocabulary"):
        hf_vocabulary(changed(tmp_path, change))


@pytest.mark.slow
def test_the_proof_takes_at_most_five_seconds_for_128k_tokens(tmp_path):
    draw = random.Random(1)
    alphabet = sorted(stages.ByteLevel.alphabet())
    words = {character: number for number, character in enumerate(alphabet)}
    merges, parts = [], list(alphabet)
    while len(words) < 128_000:
        left, right = draw.choice(parts), draw.choice(parts)
        if left + right not in words and len(left + right) < 12:
            words[left + right] = len(words)
            merges.append([left, right])
            parts.append(left + right)
    values = json.loads(trained(split()).to_str())
    values["model"] |= {"vocab": words, "merges": merges}
    values["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    before = time.process_time()
    Tokenizer(hf_vocabulary(tmp_path), load_tokenizer("byte").template)
    assert time.process_time() - before < 5


@pytest.mark.parametrize("engine", ["serial", "process"])
def test_rows_that_are_put_into_another_form_are_counted_by_source(tmp_path, engine, monkeypatch):
    monkeypatch.setattr(parallel, "_WORTH_PROCESSES", 0)
    folder = folder_of(tmp_path, FAMILIES["qwen"]())
    rows = [f"row {number} says caf\u00e9" for number in range(8)] + ["cafe\u0301 one", "e\u0301"]
    raw = tmp_path / "rows.jsonl"
    raw.write_text("\n\n".join(json.dumps({"text": row}) for row in rows))
    config = PrepareConfig(sources=(Source(path=str(raw)),), tokenization=f"hf:{folder}")
    made = tokenize(config, tmp_path / "data", preparation=Preparation(engine=engine))
    (source,) = read_manifest(tmp_path / "data", made.digest).sources
    assert [(note.reason, note.rows) for note in source.notes] == [
        ("put into the tokenizer's normal form (NFC)", 2)
    ]
    assert not [f for f in validate(tmp_path / "data").findings if f.level == "error"]


def test_documents_begin_with_the_space_that_the_base_writes(tmp_path):
    made = sentencepiece("always", ["<|im_end|>"])
    folder = folder_of(tmp_path, made, add_bos_token=True, bos_token="<bos>")
    raw = tmp_path / "rows.jsonl"
    texts = [f"the answer {number}" for number in range(8)] + [" lost"]
    raw.write_text("\n\n".join(json.dumps({"text": text}) for text in texts))
    config = PrepareConfig(sources=(Source(path=str(raw)),), tokenization=f"hf:{folder}")
    tokenize(config, tmp_path / "data")
    dataset = open_dataset(tmp_path / "data", verify=False)
    for shard in dataset.shards("train"):
        for row in shard.rows:
            ids = shard.tokens[row["start"] : row["stop"]].tolist()
            text = dataset.tokenizer.decode(ids[1:-1])
            assert ids[1:-1] == made.encode(text, add_special_tokens=False).ids
            assert text in texts
    (source,) = dataset.manifest.sources
    assert [(one.reason[-51:], one.rows) for one in source.dropped] == [
        ("takes the space that a text begins with for its own", 1)
    ]
    assert not [f for f in validate(tmp_path / "data").findings if f.level == "error"]


def lacking(tmp_path):
    """Write a tokenizer without a token for U+0004, and rows of which one holds it."""
    values = json.loads(trained(digits()).to_str())
    character = CHARACTER[4]
    assert not any(character in "".join(pair) for pair in values["model"]["merges"])
    left = [word for word in values["model"]["vocab"] if word != character]
    values["model"]["vocab"] = {word: number for number, word in enumerate(left)}
    for number, added in enumerate(values["added_tokens"]):
        added["id"] = len(left) + number
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    raw = tmp_path / "rows.jsonl"
    rows = [*(f"row {number}" for number in range(8)), "odd \x04 one"]
    raw.write_text("\n\n".join(json.dumps({"text": row}) for row in rows))
    return raw


def test_characters_without_a_token_are_named_and_their_rows_dropped(tmp_path):
    raw = lacking(tmp_path)
    ours = ours_of(tmp_path)
    with pytest.raises(DataError, match=r"has no token for U\+0004; leave it out"):
        ours.encode("a\x04b")
    config = PrepareConfig(sources=(Source(path=str(raw)),), tokenization=f"hf:{tmp_path}")
    made = tokenize(config, tmp_path / "data")
    (source,) = read_manifest(tmp_path / "data", made.digest).sources
    assert [(one.reason.partition(" has ")[2], one.rows) for one in source.dropped] == [
        ("no token for U+0004", 1)
    ]


@pytest.mark.parametrize("engine", ["serial", "process"])
def test_a_strict_reading_refuses_such_characters_whoever_encodes(tmp_path, monkeypatch, engine):
    monkeypatch.setattr(parallel, "_WORTH_PROCESSES", 0)
    source = Source(path=str(lacking(tmp_path)), strict=True)
    config = PrepareConfig(sources=(source,), tokenization=f"hf:{tmp_path}")
    with pytest.raises(DataError, match=r"rows.jsonl:17: .* has no token for U\+0004"):
        tokenize(config, tmp_path / "data", preparation=Preparation(engine=engine, workers=1))


@pytest.mark.parametrize(
    "pattern",
    [
        r"(x+x+)+y|\s+|[^\sx]+|x+", r"(?:\s|\S)+?(?=(a|aa)+$)|[\s\S]", r"(a?){5}b|[\s\S]",
        r"(?=(.*)*z)[\s\S]|[\s\S]+",
    ],
)  # fmt: skip
def test_a_pattern_that_may_try_without_end_is_refused(tmp_path, pattern):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    values = {
        "added_tokens": [],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split | {"invert": False}, level]},
        "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(BYTE)}, "merges": []},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="its pattern repeats a choice"):
        hf_vocabulary(tmp_path)
