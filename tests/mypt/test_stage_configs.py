"""Any number of stages in a pipeline's config: what they come to, and what is refused."""

import json
from pathlib import Path

import pytest

from mypt.config import MaskPolicy, load_pipeline
from mypt.errors import ConfigError
from tests.flows.conftest import ARCHITECTURE, CONFIG, TRAINING

CONFIGS = Path(__file__).parents[2] / "configs"
TEXT = {"sources": [{"exercises": "text", "count": 200}], "tokenization": "byte"}
CHAT = {"sources": [{"exercises": "chat", "count": 200}]}
PAIRS = {"sources": [{"path": "pairs.jsonl", "pairs": True}]}
BASE = ARCHITECTURE | TRAINING | {"name": "base", "data": TEXT}
MID = TRAINING | {"name": "mid", "data": TEXT, "replay": {"base": 0.2}}
TALK = TRAINING | {"name": "chat", "data": CHAT, "mask": {}}
LAST = TRAINING | {
    "name": "last", "data": PAIRS, "mask": {}, "objective": "dpo", "batching": "packed"
}  # fmt: skip


@pytest.fixture
def load(tmp_path):
    """Return a pipeline read from a file of such stages, and of what else is said."""

    def read(*stages, **said):
        path = tmp_path / "stages.json"
        path.write_text(json.dumps({"name": "small", "stages": stages} | said))
        return load_pipeline(path)

    return read


def test_two_trainings_by_name_and_the_same_as_stages_come_to_the_same_chain(load, tmp_path):
    path = tmp_path / "two.json"
    path.write_text(json.dumps(CONFIG))
    two = load_pipeline(path).chain
    base = CONFIG["pretrain"] | {"name": "base", "data": CONFIG["base"]}
    chat = CONFIG["sft"] | {"name": "chat", "data": CONFIG["chat"], "mask": {}}
    staged = load(base, chat).chain
    for one, other in zip(two, staged, strict=True):
        labels = {"name", "use_loss_mask"}  # which a plan resolves
        for preset in ("train", "checked"):
            assert getattr(one, preset).model_dump(exclude=labels) == getattr(
                other, preset
            ).model_dump(exclude=labels)
        for same in ("name", "title", "what", "data", "mask"):
            assert getattr(one, same) == getattr(other, same)
    assert [stage.label for stage in two] == ["pretrain", "sft"]
    assert [stage.checked.use_loss_mask for stage in staged] == [False, True]


def test_each_stage_has_the_architecture_of_the_first_and_rows_as_long_as_before(load):
    chain = load(BASE, MID, TALK | {"block_size": 16}, LAST).chain
    assert {stage.checked.n_embd for stage in chain} == {ARCHITECTURE["n_embd"]}
    assert [stage.checked.block_size for stage in chain] == [32, 32, 16, 16]
    assert [stage.what for stage in chain] == [
        "base corpus", "text", "chat data", "preference pairs",
    ]  # fmt: skip
    assert [stage.form for stage in chain] == ["plain", "plain", "chat", "chat"]
    assert load(BASE, MID, TALK, LAST).tuned.name == "chat"


def test_a_stage_may_start_from_a_preset_in_a_file_and_has_its_own_name(load, tmp_path):
    (tmp_path / "preset.json").write_text(json.dumps(BASE | {"name": "other", "max_iters": 7}))
    values = json.loads((tmp_path / "preset.json").read_text())
    del values["data"]
    (tmp_path / "preset.json").write_text(json.dumps(values))
    first = {"name": "base", "data": TEXT, "preset": "preset.json", "learning_rate": 0.5}
    found = load(first, TALK).chain[0].train
    assert (found.name, found.max_iters, found.learning_rate) == ("base", 7, 0.5)


def test_a_model_from_elsewhere_brings_its_tokenizer_to_the_first_stage(load):
    bare = {"sources": CHAT["sources"]}
    first = BASE | {"name": "one", "data": bare, "mask": {}}
    found = load(first, TALK, init_from_model="hf:folder").chain
    assert found[0].data.tokenization == "hf:folder"
    assert load(first, init_from_model="mine").chain[0].data.tokenizer_from == "mine"


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ([BASE], "base alone, from random weights, leaves nothing to compare"),
        ([BASE, MID, MID], "stages: two are called mid; give each a name of its own"),
        ([BASE, MID | {"replay": {"chat": 0.1}}, TALK], "chat is no stage before it"),
        ([BASE | {"replay": {"base": 0.1}}, TALK], "expected of none, it is the first"),
        ([BASE, MID | {"replay": {"base": 1.0}}], "expected shares above 0, and of all less than"),
        ([BASE, TALK, LAST | {"replay": {"base": 0.1}}], "preference pairs are not mixed"),
        ([BASE, LAST | {"mask": None}], "pairs without a mask; add mask"),
        ([BASE, LAST | {"objective": "nll"}], "data are pairs, objective nll; set dpo"),
        ([BASE, TALK | {"objective": "dpo", "batching": "packed"}], "wants pairs; set pairs"),
        ([BASE, MID | {"use_loss_mask": True}], "use_loss_mask without a mask; add mask"),
        ([BASE | {"gate": {}}, TALK], "gate wants a model to begin with"),
        ([BASE | {"lora": {}}, TALK], "lora wants a model to begin with"),
        ([LAST, TALK], "objective dpo wants a model to begin with"),
        ([BASE, TALK | {"data": CHAT | {"tokenization": "gpt2"}}], "tokens of base; leave it out"),
        ([BASE, TALK | {"data": CHAT | {"val_fraction": 0}}], "nothing would be left to evaluate"),
        ([BASE, TALK | {"name": "1"}], "stages.1.name"),
        ([BASE, TALK | {"learning_rte": 1}], "did you mean 'learning_rate'?"),
        ([BASE, TALK | {"nam": "x"}], "did you mean 'name'?"),
    ],
)
def test_stages_that_do_not_follow_from_each_other_are_refused_in_one_line(load, stages, told):
    with pytest.raises(ConfigError) as error:
        load(*stages)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"mask": {}}, "mask beside stages; say it as a stage, or leave stages out"),
        ({"base": TEXT}, "base beside stages"),
        ({"stages": (), "init_from_model": "x"}, "init_from_model goes with stages"),
        ({"stages": (BASE | {"name": "x"},), "init_from_model": ""}, "x alone"),
        ({"stages": (MID | {"replay": {}},), "init_from_model": "m"}, "mid.block_size is missing"),
        ({"stages": (), **{k: v for k, v in CONFIG.items() if k != "sft"}}, "sft is missing"),
    ],
)
def test_a_config_is_of_one_form(load, said, told):
    with pytest.raises(ConfigError, match=told):
        load(BASE, TALK, **said)


def test_the_example_goes_from_text_to_pairs():
    chain = load_pipeline(CONFIGS / "small_stages.json").chain
    assert [stage.name for stage in chain] == ["base", "mid", "chat", "prefer"]
    assert dict(chain[1].replay) == {"base": 0.2}
    assert chain[2].mask == MaskPolicy()
    assert chain[3].train.objective == "dpo"
    assert all(source.licence for stage in chain for source in stage.data.sources)


def test_data_that_nothing_learns_from_have_a_split_and_a_name_of_their_own(load):
    aside = {"sources": [{"exercises": "chat", "count": 20}]}
    assert load(BASE, TALK, held_out={"aside": aside}).held_out["aside"].val_fraction == 0.1
    assert "held_out" not in load(BASE, TALK).model_dump()
    for name in ("x/../../y", "../x\x1b[31m", "", "a" * 300):
        with pytest.raises(ConfigError, match="names a folder; expected"):
            load(BASE, TALK, held_out={name: aside})
    with pytest.raises(ConfigError, match=r"held_out\.Chat is the name of a stage too"):
        load(BASE, TALK, held_out={"Chat": aside})
    with pytest.raises(ConfigError, match=r"held_out\.aside\.val_fraction is 0"):
        load(BASE, TALK, held_out={"aside": aside | {"val_fraction": 0}})
    with pytest.raises(ConfigError, match=r"held_out\.aside is a name of evaluate\.sets too"):
        load(BASE, TALK, held_out={"aside": aside}, evaluate={"sets": {"aside": "data"}})
