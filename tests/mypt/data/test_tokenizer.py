import base64
import json
import subprocess
import sys

import numpy as np
import pytest
import rustbpe
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from mypt import files
from mypt.data.conversations import Conversation, say
from mypt.data.preparation.encoding import encode_rows
from mypt.data.tokenizer import load_tokenizer, train_tokenizer
from mypt.errors import CheckpointError, ConfigError, DataError
from tests.mypt.data.rows import HERE, LOOKALIKES, TEMPLATES, texts, tokenizer

CORPUS = ["the cat sat on the mat, the end", "a naïve café, 東京", "the theatre then there\n" * 20]
MYPT_TAGS = ["<User>", "</User>", "<Assistant>", "</Assistant>", "<System>", "</System>"]
LATER_TAGS = ["<Tool>", "</Tool>", "<Reasoning>", "</Reasoning>", "<ToolCall>", "</ToolCall>"]


def trained(tokenization):
    return train_tokenizer(tokenization, iter(CORPUS))


EVERY = [
    lambda: tokenizer("gpt2"), lambda: tokenizer("byte"), lambda: tokenizer("cl100k_base"),
    lambda: tokenizer("o200k_base"), lambda: trained("char"), lambda: trained("bpe:400"),
]  # fmt: skip


def test_gpt2_gives_the_ids_that_everybody_knows():
    gpt2 = load_tokenizer("gpt2")
    assert isinstance(gpt2.encoding, tiktoken.Encoding)
    assert gpt2.encode("hello world").tolist() == [31373, 995]
    assert gpt2.decode([31373, 995]) == "hello world"


def test_byte_ids_are_the_bytes():
    assert tokenizer("byte").encode("hé\x00\n").tolist() == list("hé\x00\n".encode())
    long = "ab é" * 500
    assert tokenizer("byte").encode(long).tolist() == list(long.encode())


def test_special_tokens_follow_a_base_that_has_none():
    byte = tokenizer("byte")
    expected = [*MYPT_TAGS, "<|endoftext|>", *LATER_TAGS]
    assert byte.special_tokens == {token: 256 + n for n, token in enumerate(expected)}
    assert (byte.n_vocab, byte.end_of_text) == (269, 262)


@pytest.mark.parametrize(
    ("name", "end_of_text", "first"),
    [("gpt2", 50256, 50257), ("cl100k_base", 100257, 100277), ("o200k_base", 199999, 200019)],
)
def test_special_tokens_follow_a_base_that_has_its_own_end_of_text(name, end_of_text, first):
    ours = tokenizer(name)
    assert ours.end_of_text == end_of_text
    assert [ours.special_id(tag) for tag in [*MYPT_TAGS, *LATER_TAGS]] == list(
        range(first, first + 12)
    )
    assert ours.n_vocab == first + 12


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["gpt2", "byte"])
def test_every_template_has_a_stop_token_of_its_own(name, template):
    ours = tokenizer(name, template)
    assert ours.special_tokens[ours.template.stop] == ours.stop_id >= len(ours.vocabulary.tokens)
    row = Conversation((say("user", "Hi"), say("assistant", "Hello")), HERE)
    ids = encode_rows([row], ours).tokens
    assert ids.tolist().count(ours.stop_id) == (2 if template in ("chatml", "llama3") else 1)
    assert ids[-1] == ours.stop_id


@pytest.mark.parametrize("make", EVERY)
def test_text_comes_back_as_it_was_and_never_becomes_a_special_token(make):
    ours = make()
    special = set(ours.special_tokens.values())

    @settings(max_examples=30)
    @given(text=texts)
    def check(text):
        ids = ours.encode(text)
        assert ids.dtype == np.uint32
        assert ours.decode_bytes(ids) == text.encode()
        assert not special & set(ids.tolist())

    check()
    for text in (*LOOKALIKES, *MYPT_TAGS, *LATER_TAGS, *ours.special_tokens):
        assert ours.decode(ours.encode(text)) == text
        assert not special & set(ours.encode(text).tolist())


def test_ids_above_two_bytes_survive():
    ids = tokenizer("o200k_base").encode(" ब्लूटूथ latinoamerica 東京都 Հայաստանի")
    assert ids.max() > 70_000
    assert ids.dtype == np.uint32


def test_a_lone_surrogate_is_refused_and_not_replaced():
    with pytest.raises(DataError, match=r"lone surrogate U\+DC00"):
        tokenizer("byte").encode("a\udc00")


def test_ids_of_another_vocabulary_are_refused():
    for ids in ([269], np.array([300], np.uint32), [-1], [1 << 40]):
        with pytest.raises(DataError, match="tokenizer byte has ids below 269"):
            tokenizer("byte").decode(ids)


def test_bytes_that_are_no_text_are_shown_and_not_lost():
    assert tokenizer("byte").decode([72, 0xFF]) == "H\ufffd"
    assert tokenizer("byte").decode_bytes([72, 0xFF]) == b"H\xff"


def test_an_unknown_special_token_is_refused():
    with pytest.raises(DataError, match="no special token '<user>'; it has <User>"):
        tokenizer("byte").special_id("<user>")


def test_char_has_the_corpus_characters_in_order_and_then_the_missing_bytes():
    char = train_tokenizer("char", iter(["hello", "é日"]))
    assert char.encode("ehloé日").tolist() == [0, 1, 2, 3, 4, 5]
    assert char.special_id("<User>") == 6 + 256 - 4
    assert char.vocabulary.tokens[6:8] == (b"\x00", b"\x01")


def test_a_character_that_char_has_not_seen_falls_to_its_bytes():
    char = train_tokenizer("char", iter(["hello é"]))
    tokens = [char.vocabulary.tokens[n] for n in char.encode("hé€x")]
    assert tokens == [b"h", "é".encode(), b"\xe2", b"\x82", b"\xac", b"x"]


def test_bpe_gives_the_ids_of_its_trainers_own_encoder():
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(CORPUS), 400)
    bpe = trained("bpe:400")

    @settings(max_examples=100)
    @given(text=st.one_of(texts, st.lists(st.sampled_from(CORPUS)).map(" ".join)))
    def check(text):
        assert bpe.encode(text).tolist() == trainer.encode(text)

    check()


def test_bpe_merges_and_is_the_same_each_time():
    assert len(trained("bpe:270").encode("the theatre")) < len("the theatre")
    assert trained("bpe:270").digest == trained("bpe:270").digest
    assert trained("bpe:270").special_id("<User>") == 270


def test_bpe_has_fewer_tokens_where_nothing_more_repeats():
    assert trained("bpe:9999").n_vocab == len(trained("bpe:9999").vocabulary.tokens) + 13 < 1000


@pytest.mark.parametrize(
    ("tokenization", "reason"),
    [
        ("bpe:255", "expected bpe:256 or more"),
        ("gpt2", "not made from a corpus"),
        ("bpe:", "bpe:N"),
    ],
)
def test_what_cannot_be_trained_is_refused(tokenization, reason):
    with pytest.raises(ConfigError, match=reason):
        trained(tokenization)


def test_a_corpus_without_text_is_refused():
    with pytest.raises(DataError, match="no text"):
        train_tokenizer("char", iter(["", ""]))


@pytest.mark.parametrize("make", EVERY)
def test_the_state_holds_everything(make, tmp_path):
    ours = make()
    ours.write(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.name, again.digest, again.n_vocab) == (ours.name, ours.digest, ours.n_vocab)
    assert again.special_tokens == ours.special_tokens
    assert again.template == ours.template
    text = "naïve <User> 東京 it's 12345\n\n  x"
    assert again.encode(text).tolist() == ours.encode(text).tolist()


def test_the_digest_changes_with_the_template_and_the_tokens():
    digests = [tokenizer("byte", name).digest for name in TEMPLATES]
    digests += [train_tokenizer("char", iter([text])).digest for text in ("ab", "abc")]
    assert len(set(digests)) == len(digests)


def test_a_tokenizer_is_found_by_dataset_model_step_and_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "home"))
    ours = trained("char")
    model = tmp_path / "home" / "models" / "chat"
    step, dataset = model / "step_000500", tmp_path / "data"
    for folder in (step, dataset):
        folder.mkdir(parents=True)
        ours.write(folder)
    (model / "latest").write_text("step_000500\n")
    for place in ("chat", model, str(model), step, dataset, dataset / "tokenizer_state.json"):
        assert load_tokenizer(place).digest == ours.digest


def test_a_model_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"no complete checkpoint: .* name a model"):
        load_tokenizer(tmp_path)


def test_a_name_that_means_nothing_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="no tokenizer 'gpt-2'; did you mean 'gpt2'"):
        load_tokenizer("gpt-2")
    with pytest.raises(ConfigError, match="no template 'chatlm'"):
        load_tokenizer("byte", "chatlm")


@pytest.mark.parametrize("name", ["char", "bpe:512"])
def test_a_tokenizer_that_needs_a_corpus_says_how_to_get_it(name):
    with pytest.raises(ConfigError, match=f"mypt prepare --tokenization {name}"):
        load_tokenizer(name)


def reseal(values):
    values.pop("digest")
    return values | {"digest": files.digest_json(values)}


def without(values, key):
    return {name: value for name, value in values.items() if name != key}


def with_special(values, **ids):
    return reseal(values | {"special_tokens": values["special_tokens"] | ids})


NO_STOP = {"turns": {"user": {}, "assistant": {"end": "."}}}
DAMAGE = [
    ("digest does not match", lambda v: v | {"pattern": r"\S+|\s+"}),
    ("digest does not match", lambda v: without(v, "digest")),
    ("tokens Field required", lambda v: without(v, "tokens")),
    ("version Input should be 1", lambda v: v | {"version": 2}),
    ("extra Extra inputs", lambda v: v | {"extra": 1}),
    ("1 of the 256 single bytes have no", lambda v: reseal(v | {"tokens": v["tokens"][1:]})),
    ("some stand there twice", lambda v: reseal(v | {"tokens": [*v["tokens"], v["tokens"][0]]})),
    ("Only base64 data", lambda v: reseal(v | {"tokens": [*v["tokens"], "!AAA"]})),
    ("ids collide", lambda v: with_special(v, x=7)),
    ("ids collide", lambda v: with_special(v, x=256)),
    ("out of range", lambda v: with_special(v, x=1 << 32)),
    (
        "'</User>' is missing",
        lambda v: reseal(v | {"special_tokens": without(v["special_tokens"], "</User>")}),
    ),
    ("Invalid character class", lambda v: reseal(v | {"pattern": "["})),
    ("the model stops at that token", lambda v: v | {"template": v["template"] | NO_STOP}),
]


@pytest.mark.parametrize(("reason", "damage"), DAMAGE)
def test_a_damaged_state_is_refused_with_file_and_reason(tmp_path, reason, damage):
    tokenizer("byte").write(tmp_path)
    path = tmp_path / "tokenizer_state.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(DataError) as error:
        load_tokenizer(tmp_path)
    assert str(error.value).startswith(f"{path}: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_state_cut_short_is_refused(tmp_path):
    tokenizer("byte").write(tmp_path)
    path = tmp_path / "tokenizer_state.json"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="damaged"):
        load_tokenizer(path)


def test_the_state_is_the_same_bytes_each_time_and_holds_tokens_in_rank_order(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        trained("bpe:300").write(tmp_path / folder)
    one, two = ((tmp_path / n / "tokenizer_state.json").read_bytes() for n in "ab")
    assert one == two
    tokens = [base64.b64decode(token) for token in json.loads(one)["tokens"]]
    assert tuple(tokens) == trained("bpe:300").vocabulary.tokens


def test_loading_a_tokenizer_brings_no_torch():
    code = "import sys, mypt.data.preparation.encoding; sys.exit(int('torch' in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("unknown", [[-1], [270], [65, 2**40], [2**70], np.array([-3])])
def test_an_id_that_stands_for_nothing_is_named(unknown):
    with pytest.raises(DataError, match=f"Invalid token for decoding: {unknown[-1]}; tokenizer"):
        load_tokenizer("byte").decode_bytes(unknown)
