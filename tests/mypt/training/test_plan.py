import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from mypt.config import GPTConfig, MaskPolicy, PrepareConfig, Preset, Source, TrainConfig
from mypt.data.dataset import open_dataset, prepare, tokenize
from mypt.errors import CheckpointError, ConfigError, ManifestError, MaskError
from mypt.home import models_dir
from mypt.training.checkpoints.checkpoint import load_model
from mypt.training.lineage import read_lineage
from mypt.training.loader import GPTDataLoader
from mypt.training.plan import RunPlan, plan_run
from tests.mypt.data.rawfiles import ASK, TELL, chat, jsonl, write


@pytest.fixture
def base(plan, finish):
    """A base model of another architecture than the tiny preset's."""
    end = finish(plan("base", n_embd=24, n_layer=2, dropout=0.2, use_loss_mask=False, max_iters=2))[
        "end"
    ]
    return end.checkpoint


@pytest.mark.usefixtures("base")
def test_architecture_and_weights_come_from_the_base_the_rest_from_the_preset(plan, finish):
    made = plan("sft", init_from="base", max_iters=1, learning_rate=1e-9, warmup_iters=0)
    assert made.preset.gpt() == GPTConfig(
        block_size=16, vocab_size=272, n_layer=2, n_head=2, n_embd=24, dropout=0.1
    )
    assert made.preset.use_loss_mask
    assert made.preset.learning_rate == 1e-9
    finish(made)
    old = load_model("base")[0].state_dict()
    new = load_model("sft")[0].state_dict()
    assert all((old[key] - new[key]).abs().max() < 1e-6 for key in old)


@pytest.mark.usefixtures("base")
def test_what_was_inherited_and_what_changed_is_said_line_by_line(tiny, chat_dataset):
    lines = plan_run(tiny(), "sft", chat_dataset, init_from="base").inherited
    assert lines[0].startswith("from base step 2: weights and architecture (block_size 16, ")
    assert "n_embd: 24 kept from the base model, the preset's 16 is not used" in lines
    assert "use_loss_mask: False -> True (preset)" in lines
    assert "dropout: 0.2 -> 0.1 (preset)" in lines
    assert "max_iters: 2 -> 12 (preset)" in lines
    assert not [line for line in lines if line.startswith(("seed", "batch_size", "n_head"))]


@pytest.mark.usefixtures("base")
def test_a_default_that_overrides_the_base_is_named_as_a_default(chat_dataset):
    lines = plan_run(Preset(use_loss_mask=True), "sft", chat_dataset, init_from="base").inherited
    assert "batch_size: 4 -> 32 (default)" in lines
    assert not [line for line in lines if "n_embd: " in line]


@pytest.mark.usefixtures("base")
def test_knobs_that_are_not_written_at_their_default_are_said_too(tiny, chat_dataset, plan, finish):
    lines = plan_run(tiny(logit_softcap=30.0), "sft", chat_dataset, init_from="base").inherited
    assert "logit_softcap: None kept from the base model, the preset's 30.0 is not used" in lines
    assert not [line for line in lines if line.startswith("base_config")]
    finish(plan("low", weight_dtype="bfloat16", dtype="bfloat16", max_iters=2))
    lines = plan_run(tiny(), "sft", chat_dataset, init_from="low").inherited
    assert "weight_dtype: bfloat16 -> float32 (default)" in lines


def test_the_lineage_names_the_parent_by_its_weights(base, plan, finish):
    end = finish(plan("sft", init_from="base", max_iters=1))["end"]
    parent = read_lineage(models_dir() / "sft" / "step_000001").parent
    assert (parent.model_name, parent.step, parent.path) == ("base", 2, base.path)
    assert parent.digest == base.digest
    assert parent.weights == read_lineage(models_dir() / "base" / "step_000002").weights
    assert end.reason == "max_iters"


def test_fine_tuning_from_scratch_is_allowed_and_says_so(plan, finish):
    made = plan(max_iters=1)
    assert made.inherited == (
        "no base model: fine-tuning starts from random weights (parent: none)",
    )
    finish(made)
    assert read_lineage(models_dir() / "m" / "step_000001").parent is None


def test_pretraining_from_scratch_needs_no_remark(plan):
    assert plan(use_loss_mask=False).inherited == ()


@pytest.mark.usefixtures("base")
def test_another_parent_under_the_name_is_refused(plan, finish):
    finish(plan("sft", init_from="base", max_iters=1))
    finish(plan("base2", n_embd=24, n_layer=2, max_iters=1))
    with pytest.raises(ConfigError, match=r"init_from_model \w{12} -> \w{12};"):
        finish(plan("sft", init_from="base2", max_iters=1))


@pytest.mark.usefixtures("base")
def test_a_base_of_another_tokenizer_is_refused_naming_both(tiny, tmp_path):
    (tmp_path / "x.txt").write_text("to be or not to be\n\n" * 30)
    config = PrepareConfig(
        sources=(Source(path=str(tmp_path / "x.txt")),), tokenization="char", val_fraction=0.0
    )
    other = prepare(config, MaskPolicy(), tmp_path / "char").path
    with pytest.raises(ConfigError, match=r"base reads tokenizer byte .* made with char"):
        plan_run(tiny(), "sft", other, init_from="base")


@pytest.mark.usefixtures("base")
def test_a_base_whose_bytes_changed_before_they_are_loaded_is_refused(plan, finish):
    made = plan("sft", init_from="base", max_iters=1)
    path = models_dir() / "base" / "step_000002" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for again in (made, plan("sft", init_from="base", max_iters=1)):
        with pytest.raises(CheckpointError, match=r"model\.safetensors: its bytes changed"):
            finish(again)


@pytest.mark.usefixtures("base")
def test_a_base_that_changed_after_planning_is_refused(plan, finish):
    made = plan("sft", init_from="base", max_iters=1)
    parent = made.parent.model_copy(update={"weights": "0" * 64})
    with pytest.raises(CheckpointError, match="000000000000 planned"):
        finish(made.model_copy(update={"parent": parent}))


def test_a_vocabulary_larger_than_the_models_is_refused(plan):
    with pytest.raises(ConfigError, match="byte has 269 tokens, the model's vocab_size is 200"):
        plan(vocab_size=200)


@pytest.fixture
def bare_dataset(tmp_path, make_chat):
    """Chats without masks."""
    make_chat(tmp_path)
    config = PrepareConfig(
        sources=(Source(path=str(tmp_path / "chat.jsonl")),), tokenization="byte"
    )
    return tokenize(config, tmp_path / "bare").path


def test_a_dataset_without_masks_is_refused_with_both_ways_out(plan, bare_dataset):
    with pytest.raises(MaskError, match=r"has no masks .*'mypt mask'.*use_loss_mask: false"):
        plan(dataset=bare_dataset)
    assert plan(dataset=bare_dataset, use_loss_mask=False).kind == "chat"


def test_a_config_that_does_not_say_is_refused_on_masks_with_both_ways_out(plan):
    wanted = r"has masks \(assistant\).*use_loss_mask: true.*use_loss_mask: false.*every token"
    with pytest.raises(MaskError, match=wanted) as error:
        plan(use_loss_mask=None)
    assert "\n" not in str(error.value)


def test_a_config_that_does_not_say_learns_every_token_where_there_are_no_masks(
    bare_dataset, plan, finish
):
    made = plan(dataset=bare_dataset, use_loss_mask=None, max_iters=1)
    assert made.preset.use_loss_mask is False
    assert made.digest == plan(dataset=bare_dataset, use_loss_mask=False, max_iters=1).digest
    step = Path(finish(made)["end"].checkpoint.path)
    assert json.loads((step / "config.json").read_text())["use_loss_mask"] is False
    assert read_lineage(step).config.use_loss_mask is False


@pytest.mark.usefixtures("base")
def test_a_stage_that_uses_masks_by_itself_names_that_as_a_default(tiny, chat_dataset):
    preset = tiny(use_loss_mask=None)
    made = plan_run(preset, "sft", chat_dataset, init_from="base", masks_by_default=True)
    assert made.preset.use_loss_mask is True
    assert "use_loss_mask: False -> True (default)" in made.inherited


def test_patience_without_a_validation_split_is_refused(plan, tmp_path, make_chat):
    with pytest.raises(ConfigError, match="patience 2 needs a validation split"):
        plan(dataset=make_chat(tmp_path, val_fraction=0.0), patience=2)


@pytest.mark.parametrize("batching", ["packed", "windows"])
def test_epochs_become_steps_by_the_dataset_and_both_are_said(tiny, chat_dataset, finish, batching):
    preset = tiny(batching=batching).model_copy(update={"max_iters": 5000, "epochs": 1.5})
    made = plan_run(preset, "m", chat_dataset)
    epoch = GPTDataLoader.of(made.preset, open_dataset(chat_dataset)).epoch("train").steps
    steps = round(1.5 * epoch)
    assert f"epochs: 1.5, of {epoch} steps each: max_iters {steps}" in made.inherited
    done = finish(made)
    assert done["end"].step == len(done["steps"]) == steps
    lineage = read_lineage(models_dir() / "m" / f"step_{steps:06d}")
    assert (lineage.config.max_iters, lineage.epoch.steps) == (steps, epoch)


def test_a_run_by_epochs_is_the_run_by_as_many_steps_and_goes_on_as_that(tiny, chat_dataset):
    by_epochs = tiny(batching="packed").model_copy(update={"max_iters": 5000, "epochs": 2})
    first = plan_run(by_epochs, "m", chat_dataset)
    assert plan_run(by_epochs, "m", chat_dataset).digest == first.digest
    by_steps = tiny(batching="packed", max_iters=first.preset.max_iters)
    assert plan_run(by_steps, "m", chat_dataset).digest == first.digest


@pytest.mark.usefixtures("base")
def test_the_steps_that_epochs_give_are_said_against_the_base(tiny, chat_dataset):
    preset = tiny().model_copy(update={"max_iters": 5000, "epochs": 1})
    made = plan_run(preset, "sft", chat_dataset, init_from="base")
    assert f"max_iters: 2 -> {made.preset.max_iters} (preset)" in made.inherited


def test_a_knob_that_came_later_makes_another_run_too(plan):
    narrow = {"weight_dtype": "bfloat16", "dtype": "auto"}
    old, new = plan(dtype="auto"), plan(**narrow)
    assert old.differences(new) == ("weight_dtype none -> bfloat16",)
    assert new.differences(old) == ("weight_dtype bfloat16 -> none",)


@pytest.mark.usefixtures("base")
def test_a_base_that_is_not_whose_the_preset_says_is_refused(plan):
    with pytest.raises(ConfigError, match=r"base transformers: base in .* is mypt's; leave base"):
        plan("chat", "base", base="transformers", dropout=0.0)


def test_epochs_and_max_iters_together_are_refused(tiny):
    with pytest.raises(ValidationError, match=r"epochs and max_iters 12 are both given"):
        tiny(epochs=2)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 65, "/etc", "a\0b", "dot."])
def test_a_model_name_that_is_a_path_is_refused(plan, name):
    with pytest.raises(ConfigError, match="no plain name"):
        plan(name)


def test_a_dataset_of_another_digest_is_refused(tiny, chat_dataset):
    with pytest.raises(ManifestError, match="000000000000 expected"):
        plan_run(tiny(), "m", chat_dataset, dataset_digest="0" * 64)


def test_a_dataset_that_changed_after_planning_is_refused(plan, tmp_path, finish, make_chat):
    made = plan(dataset=make_chat(tmp_path), max_iters=1)
    shard = next((tmp_path / "datasets" / "chat" / "train").glob("shard_*_mask.bin"))
    shard.write_bytes(bytes([1 - shard.read_bytes()[0]]) + shard.read_bytes()[1:])
    with pytest.raises(ManifestError, match="its bytes changed"):
        finish(made)


def test_a_plan_survives_json_and_its_digest_knows_no_paths(plan, tmp_path, make_chat):
    made = plan()
    assert RunPlan.model_validate_json(made.model_dump_json()) == made
    moved = plan(dataset=make_chat(tmp_path))
    assert moved.dataset.path != made.dataset.path
    assert moved.digest == made.digest
    assert plan(seed=2).digest != made.digest


def test_planning_imports_no_torch():
    program = "import sys, mypt.training.plan, mypt.provenance.trace; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("system", "knobs", "policy"),
    [
        ("s", {"batching": "packed"}, "keep_system"),
        ("s", {"batching": "packed", "length_policy": "split"}, "split"),
        ("s", {"batching": "packed", "block_size": 200}, "split"),
        ("s", {"batching": "windows"}, "split"),
        ("", {"batching": "packed"}, "split"),
        ("much longer than half a block", {"batching": "packed"}, "split"),
    ],
)
def test_pieces_keep_their_system_message_where_nothing_is_said(
    tmp_path, tiny, system, knobs, policy
):
    said = [*chat(("system", system))[: bool(system)], *chat(*[ASK, TELL] * 6)]
    rows = write(tmp_path / "a.jsonl", jsonl(*({"messages": said, "id": n} for n in range(4))))
    data = PrepareConfig(sources=(Source(path=str(rows)),), tokenization="byte", val_fraction=0.0)
    prepare(data, MaskPolicy(), tmp_path / "talk")
    made = plan_run(tiny(**{"use_loss_mask": True} | knobs), "long", tmp_path / "talk")
    assert made.preset.length_policy == policy


@pytest.mark.parametrize("length", [{"max_iters": 40}, {"max_iters": 5000, "epochs": 2.0}])
def test_a_warmup_said_as_a_share_becomes_steps_of_the_length(tiny, chat_dataset, length):
    share = tiny().model_copy(update={"warmup_iters": 100, "warmup": 0.25} | length)
    made = plan_run(share, "m", chat_dataset).preset
    assert (made.warmup, made.warmup_iters) == (None, round(0.25 * made.max_iters))
    steps = tiny(max_iters=made.max_iters).model_copy(update={"warmup_iters": made.warmup_iters})
    assert plan_run(share, "m", chat_dataset).digest == plan_run(steps, "m", chat_dataset).digest
    assert "warmup" not in steps.model_dump()


def test_a_warmup_is_said_once():
    with pytest.raises(ValidationError, match="warmup and warmup_iters 7 are both given"):
        TrainConfig(warmup=0.1, warmup_iters=7)


def test_a_knob_that_is_written_only_when_changed_makes_another_run(plan):
    plain, low = plan(), plan(weight_dtype="bfloat16", dtype="auto")
    assert "weight_dtype none -> bfloat16" in plain.differences(low)
    assert "weight_dtype bfloat16 -> none" in low.differences(plain)
