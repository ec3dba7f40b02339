import json

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import ValidationError, validate

from flows.forms import AS_IN_FILE, asked_pipeline, difference, written
from flows.service.parameters import FLOWS, PIPELINE
from mypt.config import Lora, load_pipeline
from mypt.config.stages import StageConfig
from mypt.errors import ConfigError

PLAIN = ("string", "integer", "number", "array", "object")


def form(flow=PIPELINE):
    return parameter_schema(FLOWS[flow]).model_dump()


def knobs(properties, place=""):
    """Every knob of a form that has no knobs in it, by its dotted name."""
    for name, knob in properties.items():
        if "properties" in knob:
            yield from knobs(knob["properties"], f"{place}{name}.")
        else:
            yield f"{place}{name}", knob


def reads(asked, flow=PIPELINE):
    """What Prefect's server does with the parameters of a run, before there is one."""
    validate(asked, form(flow), raise_on_error=True, preprocess=True)


@pytest.mark.parametrize("flow", FLOWS)
def test_a_form_has_a_sentence_for_every_field(flow):
    schema = form(flow)
    inner = [definition["properties"] for definition in schema["definitions"].values()]
    for fields in (schema["properties"], *inner):
        for name, field in knobs(fields):
            assert field.get("description"), (flow, name)


def test_every_knob_says_what_it_is_in_the_file():
    found = dict(knobs(form()["properties"]["overrides"]["properties"]))
    said = {name: knob["description"] for name, knob in found.items()}
    assert said["sft.learning_rate"] == "Peak learning rate of AdamW. In demo.json: 0.001"
    assert said["sft.use_loss_mask"].endswith('In demo.json: "yes"')
    assert said["sft.dropout"].endswith("Left out in demo.json, default: 0.0")
    for name, default in (("mask.last_round_only", '"no"'), ("sft.weight_dtype", '"float32"')):
        assert said[name].endswith(f"Left out in demo.json, default: {default}")
    assert [name for name in said if "n demo.json" not in said[name]] == [
        "base.sources",
        "chat.sources",
        "prefer.pairs.sources",
        "stages",
    ]


@pytest.mark.parametrize("flow", [PIPELINE, "pretrain", "sft"])
def test_nothing_in_a_form_chooses_by_itself(flow):
    """No kind to be chosen, no switch that is off, no value that is filled in."""
    schema = form(flow)["properties"]
    assert schema["config"]["type"] == "string"
    for name, knob in knobs(schema["overrides"]["properties"]):
        assert knob["type"] in PLAIN, name
        assert not {"anyOf", "$ref", "default"} & set(knob), name


def test_a_stage_asks_for_what_makes_it_before_the_knobs_of_any_preset():
    asked = dict(knobs(form()["properties"]["overrides"]["properties"]))["stages"]
    first = [*asked["items"]["properties"]][:6]
    assert first == ["name", "data", "mask", "replay", "gate", "use_loss_mask"]


@pytest.mark.parametrize("file", ["demo", "small_stages"])
def test_what_an_untouched_form_sends_is_the_file_itself(file):
    """As a browser was seen to send it."""
    untouched = {"mask": {}, "evaluate": {}, "prefer": {"mask": {}}}
    asked = {"config": f"configs/{file}.json", "overrides": untouched}
    reads(asked)
    assert asked_pipeline(**asked) == load_pipeline(asked["config"])


def test_an_empty_object_is_one_of_defaults_where_the_file_has_none(small_config):
    assert asked_pipeline(str(small_config), {"sft": {"lora": {}}}).sft.lora == Lora()


UNTOUCHED = {
    "mask": None, "gate": None, "lora": None, "rope_scaling": None,
    "data": {"sources": [{"mapping": None, "path": "docs/data.md"}]},
}  # fmt: skip
"""What a browser sends of a stage of which the file was typed alone."""


def test_a_stage_of_which_little_was_typed_says_no_more_than_that():
    row = UNTOUCHED | {"name": "more", "block_size": 64, "compile": "yes", "tie_weights": "no"}
    stages = [*written(load_pipeline("configs/small_stages.json"))["stages"][:1], row]
    asked = {"config": "configs/small_stages.json", "overrides": {"stages": stages}}
    reads(asked)
    made = asked_pipeline(**asked).stages[1]
    assert (made.compile, made.tie_weights, made.mask) == (True, False, None)
    rest = {"name": "more", "block_size": 64, "compile": True, "tie_weights": False}
    assert made == StageConfig(data={"sources": [{"path": "docs/data.md"}]}, **rest)


def test_nothing_in_a_row_of_a_list_chooses_by_itself_but_that_an_object_is_missing():
    for name in ("base.sources", "chat.sources", "prefer.pairs.sources", "stages"):
        row = dict(knobs(form()["properties"]["overrides"]["properties"]))[name]["items"]
        for key, knob in knobs(row["properties"]):
            assert knob.get("default") is None, key
            assert knob.get("type") in PLAIN or {"type": "null"} in knob["anyOf"], key


def test_rows_of_a_list_are_said_as_a_form_says_them():
    values = [{"name": "a", "compile": True, "data": {"sources": [{"pairs": False}]}}]
    said = [{"name": "a", "compile": "yes", "data": {"sources": [{"pairs": "no"}]}}]
    assert difference({"stages": values}, {"stages": []}) == {"stages": said}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"sft": {"learning_rate": -1}}, "'overrides.sft.learning_rate'"),
        ({"sft": {"max_iters": "many"}}, "'overrides.sft.max_iters'"),
        ({"mask": {"reasoning": "maybe"}}, "'overrides.mask.reasoning'"),
        ({"pretrain": {"n_layers": 3}}, "'overrides.pretrain'.*'n_layers' was unexpected"),
    ],
)
def test_a_wrong_value_is_refused_by_name_before_there_is_a_run(overrides, told):
    with pytest.raises(ValidationError, match=told) as error:
        reads({"config": "configs/demo.json", "overrides": overrides})
    assert "\n" not in str(error.value)


def test_what_fits_no_other_knob_is_one_line(small_config):
    with pytest.raises(ConfigError, match=r"^overrides: pretrain: n_head 7 does not divide"):
        asked_pipeline(str(small_config), {"pretrain": {"n_head": 7}})


def test_a_choice_of_yes_or_no_is_a_switch_of_the_config(small_config):
    overrides = {"sft": {"use_loss_mask": "no"}, "mask": {"last_turn_only": True}}
    config = asked_pipeline(str(small_config), overrides)
    assert (config.sft.use_loss_mask, config.mask.last_turn_only) == (False, True)
    reads({"overrides": {"sft": {"use_loss_mask": "no"}}})


def test_what_a_file_leaves_out_stays_left_out(small_config):
    """To leave use_loss_mask out is to use the masks, and of two lengths one alone is said."""
    start = load_pipeline(small_config)
    config = asked_pipeline(str(small_config), {"sft": {"epochs": 2.0}, "mask": {"text": "no"}})
    assert (config.sft.epochs, "max_iters" in config.sft.model_fields_set) == (2.0, False)
    assert config.pretrain.model_fields_set == start.pretrain.model_fields_set
    assert config.mask.model_fields_set == {"text"}


def test_a_difference_makes_one_config_of_the_other(small_config):
    start = written(load_pipeline(small_config))
    other = json.loads(json.dumps(start))
    other["sft"] |= {"seed": 5, "use_loss_mask": False, "n_kv_head": 1}
    other["base"]["sources"][0]["count"] = 7
    other["mask"] = {"text": True}
    overrides = difference(other, start)
    assert overrides["sft"] == {"seed": 5, "use_loss_mask": "no", "n_kv_head": 1}
    assert overrides["mask"] == {"text": "yes"}
    assert written(asked_pipeline(str(small_config), overrides)) == other
    assert difference(start, start) == AS_IN_FILE
    reads({"overrides": overrides})
