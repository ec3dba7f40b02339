import json

import pytest

from flows.forms import changed_config
from flows.service.parameters import FLOWS, PIPELINE, change
from mypt.config import load_pipeline
from mypt.errors import ConfigError


def test_a_knob_is_changed_by_its_dotted_name(small_config):
    changed = changed_config(
        small_config, ["sft.max_iters=3", "name=other", "mask.last_turn_only=true"]
    )
    assert changed.sft.max_iters == 3
    assert changed.name == "other"
    assert changed.mask.last_turn_only
    assert changed.pretrain == changed_config(small_config, []).pretrain


def test_epochs_end_the_configs_max_iters_and_the_other_way_round(small_config):
    stages = (
        changed_config(small_config, ["sft.epochs=2"]),
        changed_config(small_config, ["sft.epochs=2", "sft.max_iters=3"]),
    )
    assert [stage.sft.epochs for stage in stages] == [2, None]
    assert stages[1].sft.max_iters == 3


def test_lists_are_reached_by_number_and_values_are_json_or_text(small_config):
    changed = changed_config(
        small_config,
        ["chat.sources.0.count=77", 'evaluate.prompts=["a", "b"]', "config.sft.name=1x"],
    )
    assert changed.chat.sources[0].count == 77
    assert changed.evaluate.prompts == ("a", "b")
    assert changed.sft.name == "1x"


def test_a_changed_config_says_no_more_than_was_written(small_config):
    before, after = load_pipeline(small_config), changed_config(small_config, ["sft.max_iters=7"])
    assert after.sft.model_fields_set == before.sft.model_fields_set | {"max_iters"}
    assert "n_layer" not in after.sft.model_fields_set


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("sft.learning_rate=-1", r"sft.learning_rate: expected greater than 0"),
        ("sft.learning_rat=1", r"unknown key 'sft.learning_rat'; did you mean 'learning_rate'"),
        ("learning_rate=1", r"did you mean 'pretrain.learning_rate' or 'sft.learning_rate'\?"),
        ("learning=1", r"unknown key 'learning'; known keys: base, chat"),
        ("sft.max_iters", r"expected NAME=VALUE"),
        ("=3", r"expected NAME=VALUE"),
        ("chat.sources.9.count=1", r"there is no '9' in \[\{"),
        ("name.first=1", r"there is no 'first' in \"small\""),
        ("sft.n_head=7", r"sft: n_head 7 does not divide n_embd 384"),
    ],
)
def test_a_wrong_knob_or_value_is_one_line(small_config, said, told):
    with pytest.raises(ConfigError, match=told) as error:
        changed_config(small_config, [said])
    assert "\n" not in str(error.value)


def test_parameters_of_a_stage_are_named_as_they_are():
    flow = FLOWS["sft"]
    values = change(
        {}, ["config.max_iters=4", "dataset=data/sft", "base=b", "learning_rate=1"], flow
    )
    assert values["overrides"] == {"max_iters": 4, "learning_rate": 1}
    assert (values["dataset"], values["base"]) == ("data/sft", "b")


def test_a_file_stays_a_path_and_what_is_changed_stands_beside_it(small_config):
    flow = FLOWS[PIPELINE]
    assert change({"config": str(small_config)}, [], flow) == {"config": str(small_config)}
    for words in (
        [f"config={small_config}", "sft.seed=5"],
        ["sft.seed=5", f"config={small_config}"],
    ):
        changed = change({"config": "nothing.json"}, words, flow)
        assert changed == {"config": str(small_config), "overrides": {"sft": {"seed": 5}}}
    changed = change(changed, ["sft.use_loss_mask=false", "overrides.mask.reasoning=true"], flow)
    assert changed["overrides"]["sft"] == {"seed": 5, "use_loss_mask": "no"}
    assert changed["overrides"]["mask"] == {"reasoning": "yes"}


def test_a_config_that_is_not_there_is_refused_before_there_is_a_run(small_config):
    with pytest.raises(ConfigError, match=r"configs/smok.json: no such file; .*configs/smoke.json"):
        change({"config": str(small_config)}, ["config=configs/smok.json"], FLOWS[PIPELINE])


def test_a_list_is_overridden_as_a_whole(small_config):
    changed = change({"config": str(small_config)}, ["base.sources.0.count=7"], FLOWS[PIPELINE])
    (source,) = changed["overrides"]["base"]["sources"]
    assert (source["count"], source["exercises"]) == (7, "text")
    json.dumps(changed)


def test_a_config_that_is_no_file_asks_to_be_deployed_again():
    with pytest.raises(ConfigError, match="deploy it again"):
        change({"config": {}}, ["max_iters=3"], FLOWS["sft"])
