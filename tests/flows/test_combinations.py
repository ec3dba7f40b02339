import json

import pytest

from flows.cli import main
from flows.combinations import combine
from flows.forms import changed_config
from mypt.config import load_pipeline
from mypt.data.policies import parse_policy
from mypt.errors import ConfigError


def settings(config, over, seeds=1):
    return [found.settings for found in combine(load_pipeline(config), over, seeds)]


def test_every_value_of_a_knob_meets_every_one_of_the_others_and_every_seed(small_config):
    over = ["mask.policy=assistant,assistant+user=0.1", "sft.learning_rate=1e-4,3e-4"]
    found = combine(load_pipeline(small_config), over, 3)
    assert len(found) == 12
    assert [one.config.sft.seed for one in found[:4]] == [1337, 1338, 1339, 1337]
    assert found[-1].settings == {
        "mask.policy": "assistant,user=0.1",
        "sft.learning_rate": "3e-4",
    }
    assert found[-1].config.sft.learning_rate == 3e-4
    assert found[-1].config.mask == parse_policy("assistant,user=0.1")
    assert {one.config.pretrain.seed for one in found} == {1337}, "the base is shared"


def test_a_seed_of_a_combination_is_that_of_all_that_is_learned_behind_the_base(preferring):
    found = combine(load_pipeline(preferring), ["prefer.train.beta=0.1,0.3"], 2)
    seeds = [(one.config.sft.seed, one.config.prefer.train.seed) for one in found]
    assert seeds == [(1337, 7), (1338, 8)] * 2
    assert [one.config.prefer.train.beta for one in found] == [0.1, 0.1, 0.3, 0.3]
    alone = combine(load_pipeline(preferring), ["prefer.train.seed=1,2"], 1)
    assert [one.config.prefer.train.seed for one in alone] == [1, 2]
    assert {one.config.sft.seed for one in alone} == {1337}
    with pytest.raises(ConfigError, match=r"--over prefer\.train\.seed and --seeds 2 exclude"):
        combine(load_pipeline(preferring), ["prefer.train.seed=1,2"], 2)


def test_a_combination_is_the_config_of_a_single_run_with_its_knobs(small_config):
    found = combine(load_pipeline(small_config), ["sft.max_iters=7,9", "sft.dropout=0.1"], 1)
    alone = changed_config(small_config, ["sft.max_iters=9", "sft.dropout=0.1"])
    assert found[1].config == alone


@pytest.mark.parametrize(
    ("said", "policies"),
    [
        ("assistant,assistant+stop=2", ["assistant", "assistant,stop=2"]),
        ("assistant,stop=2,user=0.1|assistant", ["assistant,stop=2,user=0.1", "assistant"]),
        ("assistant+last|user", ["assistant,last", "user"]),
        ('["assistant,stop=2", {"roles": ["user"]}]', ["assistant,stop=2", "user"]),
        ('{"roles": ["user"]}, {"roles": ["assistant"]}', ["user", "assistant"]),
    ],
)
def test_policies_can_be_said_whatever_stands_in_them(small_config, said, policies):
    found = combine(load_pipeline(small_config), [f"mask.policy={said}"], 1)
    assert [one.config.mask for one in found] == [parse_policy(text) for text in policies]


def test_a_policy_replaces_all_of_the_mask_that_the_file_has(tmp_path, small_config):
    values = json.loads(small_config.read_text())
    path = tmp_path / "weighed.json"
    path.write_text(json.dumps(values | {"mask": {"weights": {"stop": 2.0}, "reasoning": False}}))
    found = combine(load_pipeline(path), ["mask.policy=assistant|user"], 1)
    assert [one.config.mask for one in found] == [parse_policy("assistant"), parse_policy("user")]


def test_a_value_may_be_a_list(small_config):
    over = ['evaluate.prompts=[["a, b"], ["c"]]']
    found = combine(load_pipeline(small_config), over, 1)
    assert [one.config.evaluate.prompts for one in found] == [("a, b",), ("c",)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "1 runs would be made; expected 2 to 256"),
        ("--over sft.learning_rate=1e-4", "1 runs would be made"),
        ("--seeds 300", "300 runs would be made"),
        ("--seeds 0", "--seeds 0: expected at least 1"),
        ("--over sft.learnin_rate=1,2", "did you mean 'learning_rate'?"),
        ("--over nothing=1,2", "unknown key 'nothing'"),
        ("--over sft.learning_rate=1e-4,-1", "--over sft.learning_rate=-1: sft.learning_rate:"),
        ("--over sft.learning_rate=a,b", "expected a valid number, found 'a'"),
        ("--over sft.learning_rate=1e-4,", "an empty value"),
        ("--over sft.learning_rate=1e-4,0.0001", "stands twice"),
        ("--over sft.learning_rate", "expected KNOB=VALUE,VALUE"),
        ("--over sft.learning_rate=[1", "no JSON list"),
        ("--over sft.seed=1,2 --seeds 2", "exclude each other"),
        ("--over sft.seed=1,2 --over sft.seed=3,4", "is given twice"),
        ("--over base.sources.9.count=1,2", "there is no '9'"),
        ("--over mask.policy=assistant,stop=2,user=0.1", "may be one policy or several"),
        ("--over mask.policy=assistant,user", "may be one policy or several"),
        ("--over mask.policy=assistant|assistent", "did you mean assistant?"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_one_line_before_anything_starts(
    words, told, small_config, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", str(small_config), *words.split()]) == 2
    said = capsys.readouterr()
    assert (len(said.err.splitlines()), said.out) == (1, "")
    assert told in said.err
    assert not (tmp_path / "runs").exists()
