"""A conversation: history is read, cut answers say so, and what is saved can be learned from."""

import json

import pytest

from mypt.config import PrepareConfig, Source
from mypt.data.dataset import open_dataset, tokenize
from mypt.errors import ConfigError
from mypt.inference.chat import Session
from mypt.inference.reply import Reply
from tests.mypt.inference.echo import CONTEXT, Echo, byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def said(session, text):
    return "".join(session.say(text))


def texts(session):
    return [(message.role, message.text) for message in session.messages]


def test_the_history_grows_and_is_forgotten_but_for_the_system_message(tokenizer):
    session = Session(Echo(tokenizer), tokenizer, system="Be kind.")
    assert [said(session, "Hi"), said(session, "Ho")] == ["Hi", "Ho"]
    assert texts(session) == [
        ("system", "Be kind."), ("user", "Hi"), ("assistant", "Hi"),
        ("user", "Ho"), ("assistant", "Ho"),
    ]  # fmt: skip
    session.reset()
    assert texts(session) == [("system", "Be kind.")]


def test_a_cut_answer_says_why(tokenizer):
    session = Session(Echo(tokenizer, endless=True), tokenizer, max_tokens=4)
    assert (said(session, "ab"), session.note) == ("abab", "cut off after 4 tokens")
    session = Session(Echo(tokenizer, endless=True), tokenizer)
    said(session, "ab")
    assert session.note == f"cut off: the model's context of {CONTEXT} tokens is full"


def test_a_message_that_does_not_fit_is_taken_back(tokenizer):
    session = Session(Echo(tokenizer), tokenizer)
    said(session, "Hi")
    before = texts(session)
    with pytest.raises(ConfigError, match="shorten it"):
        said(session, "x" * CONTEXT)
    assert texts(session) == before


def test_a_conversation_goes_on_beyond_the_context_and_all_of_it_is_kept(tokenizer):
    session = Session(Echo(tokenizer), tokenizer, system="Be kind.", max_tokens=40)
    counts = []
    for n in range(20):
        assert said(session, f"question {n:02}") == f"question {n:02}"
        counts.append(session.left_out)
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert 10 < counts[-1] < 19
    assert len(session.messages) == 41
    session.reset()
    assert session.left_out == 0


def test_the_last_question_is_taken_back_with_its_answer(tokenizer):
    session = Session(Echo(tokenizer), tokenizer, system="Be kind.")
    said(session, "Hi")
    before = texts(session)
    said(session, "Ho")
    session.undo()
    assert texts(session) == before
    session.undo()
    assert texts(session) == [("system", "Be kind.")]
    with pytest.raises(ConfigError, match="nothing to take back"):
        session.undo()


def test_what_is_saved_is_training_data_and_no_file_is_overwritten(tokenizer, tmp_path):
    session, path = Session(Echo(tokenizer), tokenizer), tmp_path / "talk.jsonl"
    with pytest.raises(ConfigError, match="nothing was said"):
        session.save(path)
    said(session, "Grüß Gott")
    session.save(path)
    turns = json.loads(path.read_text())["messages"]
    assert [turn["content"] for turn in turns] == ["Grüß Gott"] * 2
    source = Source(path=str(path))
    config = PrepareConfig(sources=(source,), tokenization="byte", val_fraction=0.0)
    made = tokenize(config, tmp_path / "dataset")
    assert open_dataset(made.path).manifest.tokens("train") > 20
    with pytest.raises(ConfigError, match="never overwritten"):
        session.save(path)


def test_text_comes_by_whole_characters_and_joins_to_the_whole(tokenizer):
    user, end = tokenizer.special_id("<User>"), tokenizer.special_id("</User>")
    prompt = [user, *"aß😀".encode(), end]
    reply = Reply(Echo(tokenizer), tokenizer, prompt)
    assert list(reply) == ["a", "ß", "😀"]
    assert (reply.ending, reply.n_tokens) == ("stop", 8)
    cut = Reply(Echo(tokenizer), tokenizer, prompt, max_tokens=5)
    assert list(cut) == ["a", "ß", "\ufffd"]
