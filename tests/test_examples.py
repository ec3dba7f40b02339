"""What lies in examples/ is what the README says of it, and can be learned."""

import json
import runpy
from pathlib import Path

import pytest

from mypt.config import MaskPolicy, PrepareConfig, Source, load_config
from mypt.data.dataset import prepare
from mypt.training.loop import train
from mypt.training.plan import plan_run
from tests.examples import EXAMPLES, conversations, paraphrases, share_right, taught
from tests.pages import README, ROOT


def test_some_hundred_short_conversations_of_every_form_are_small():
    found = conversations()
    assert f"{len(found)} short conversations" in README.read_text()
    assert sum(len(messages) == 2 for messages in found) > len(found) / 2
    assert sum(sum(m["role"] == "user" for m in messages) > 1 for messages in found) >= 5
    roles = {m["role"] for messages in found for m in messages}
    assert roles == {"system", "user", "assistant", "tool"}
    assert any("tool_calls" in m for messages in found for m in messages)
    assert sum(file.stat().st_size for file in EXAMPLES.rglob("*") if file.is_file()) < 300_000


def test_no_question_has_two_answers_and_no_paraphrase_is_taught():
    asked = [(m[0]["content"], m[1]["content"]) for m in conversations() if len(m) == 2]
    assert len(dict(asked)) == len(asked)
    held_out = dict(paraphrases())
    assert not held_out.keys() & {m["content"] for messages in conversations() for m in messages}
    assert set(held_out.values()) <= {answer for _, answer in asked}


def rows(name):
    lines = (EXAMPLES / "assistant" / name).read_text().splitlines()
    return [(row["question"], row["answer"]) for row in map(json.loads, lines)]


def test_what_the_assistant_is_asked_stands_in_nothing_that_it_learns():
    learned = rows("learn/reminders.jsonl") + rows("learn/identity.jsonl")
    text = "".join(question + answer for question, answer in learned + rows("learn/talk.jsonl"))
    asked = rows("ask/reminders.jsonl")
    assert (len(asked), len(rows("ask/identity.jsonl"))) == (100, 15)
    deeds = {json.loads(answer)["do"] for _, answer in asked}
    assert len(deeds) > 50
    assert [deed for deed in deeds if deed in text] == []
    new = {
        question for name in ("ask/identity.jsonl", "kept/talk.jsonl") for question, _ in rows(name)
    }
    assert not new & dict(learned + rows("learn/talk.jsonl")).keys()
    assert {a for _, a in rows("ask/identity.jsonl")} == {
        a for _, a in rows("learn/identity.jsonl")
    }


def test_the_assistants_rows_are_those_of_their_script(tmp_path, monkeypatch):
    made = runpy.run_path(str(EXAMPLES / "assistant" / "make.py"))
    monkeypatch.setattr("sys.argv", ["make.py"])
    made["main"].__globals__["HERE"] = tmp_path
    made["main"]()
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.jsonl"))
    assert len(files) == 4
    for file in files:
        assert (tmp_path / file).read_bytes() == (EXAMPLES / "assistant" / file).read_bytes()
    general = {q for held_out in (True, False) for q in made["general"](held_out=held_out)}
    assert {q for name in ("learn", "kept") for q, _ in rows(f"{name}/talk.jsonl")} <= general


@pytest.fixture(scope="module")
def geographer(tmp_path_factory):
    """A model that the preset for small chats taught one file of them, and its dataset."""
    folder = tmp_path_factory.mktemp("geographer")
    source = Source(path=str(EXAMPLES / "chats" / "places.jsonl"))
    config = PrepareConfig(sources=(source,), tokenization="bpe:800")
    data = prepare(config, MaskPolicy(), folder / "data").path
    preset = load_config(ROOT / "configs" / "small_chat.json")
    few = {"batch_size": 1, "epochs": 100, "threads": 1, "eval_interval": 100}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPT_HOME", str(folder / "runs"))
        *_, end = train(plan_run(preset.model_copy(update=few), "geographer", data))
    return Path(end.checkpoint.path), Path(data)


def test_the_preset_for_small_chats_teaches_a_file_of_them_in_seconds(geographer):
    model, data = geographer
    assert share_right(model, taught(data)) >= 0.9


def test_what_it_was_taught_is_known_in_other_words_too(geographer):
    model, _ = geographer
    assert share_right(model, [pair for pair in paraphrases() if "capital" in pair[0]]) >= 0.5
