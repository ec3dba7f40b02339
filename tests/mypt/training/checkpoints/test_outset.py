"""Adapters: what they compute, how they train, and how a run of them ends and goes on."""

import signal
from functools import partial

import pytest
import safetensors.numpy
import torch

from mypt import home
from mypt.config import PrepareConfig, Source
from mypt.data.dataset import tokenize
from mypt.data.tokenizer import load_tokenizer
from mypt.errors import CheckpointError, ConfigError
from mypt.training.checkpoints.checkpoint import load_checkpoint, load_model
from mypt.training.checkpoints.outset import begin_model
from mypt.training.events import StepReport
from mypt.training.lineage import ADAPTER, WEIGHTS, read_lineage
from mypt.training.loop import train
from tests.mypt.training.gloo import together
from tests.mypt.training.test_resume import die, in_a_child

LORA = {"rank": 3, "alpha": 6.0}


@pytest.fixture
def base(plan, finish):
    """A trained base model's step folder."""
    finish(plan("base", max_iters=6, lora=None))
    return home.checkpoint_to_use("base")


def bits(folder):
    return (folder / ADAPTER).read_bytes(), (folder / "optimizer.safetensors").read_bytes()


def test_a_checkpoint_holds_the_adapter_alone_and_the_base_is_not_touched(base, plan, finish):
    before = (base / WEIGHTS).read_bytes()
    finish(plan("tuned", init_from="base", lora=LORA))
    made = home.checkpoint_to_use("tuned")
    assert not (made / WEIGHTS).exists()
    assert (made / ADAPTER).stat().st_size < len(before) / 2
    assert (base / WEIGHTS).read_bytes() == before
    lineage = read_lineage(made)
    assert lineage.parent.weights == read_lineage(base).weights != lineage.weights


@pytest.mark.usefixtures("base")
def test_a_loaded_model_computes_what_training_did(plan, finish):
    made = plan("tuned", init_from="base", lora=LORA)
    finish(made)
    step = home.checkpoint_to_use("tuned")
    trained, _, _ = begin_model(made, load_checkpoint(step, merge=False), torch.device("cpu"))
    merged, tokenizer, _ = load_model("tuned")
    began, _, _ = load_model("base")
    ids = torch.randint(tokenizer.n_vocab, (2, 16))
    with torch.no_grad():
        expected, found, before = (m.eval()(ids)[0] for m in (trained, merged, began))
    assert (found - expected).abs().max() < 1e-6
    assert (found - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batching": "packed"},
        {"lora": LORA | {"dropout": 0.2}},
        {"lora": LORA | {"rslora": True, "targets": ("q_proj", "down_proj")}},
        {"weight_dtype": "nf4"},
        {"weight_dtype": "bfloat16", "dtype": "bfloat16"},
        {"batching": "packed", "normalisation": "conversation", "objective": "dft"},
    ],
    ids=["plain", "packed", "dropout", "rslora", "nf4", "bfloat16", "weighed"],
)
@pytest.mark.usefixtures("base")
def test_a_killed_run_ends_bit_for_bit_as_an_undisturbed_one(plan, finish, changes):
    if changes.get("weight_dtype") == "nf4":
        pytest.importorskip("bitsandbytes", reason="pip install 'mypt[bitsandbytes]'")
    changes = {"lora": LORA} | changes
    finish(plan("whole", init_from="base", **changes))
    halves = plan("halves", init_from="base", **changes)

    def killed():
        for event in train(halves):
            if isinstance(event, StepReport) and event.step == 7:
                die()

    assert in_a_child(killed) == -signal.SIGKILL
    assert 0 < finish(halves)["steps"][0].step <= 7
    whole, again = (home.checkpoint_to_use(name) for name in ("whole", "halves"))
    assert whole.name == again.name
    assert bits(whole) == bits(again)


def test_an_adapter_wants_a_base(plan):
    with pytest.raises(ConfigError, match="lora adapts its base, and there is none"):
        plan("none", lora=LORA)


@pytest.mark.usefixtures("base")
def test_a_base_that_moved_with_its_models_is_found_and_another_is_refused(
    plan, finish, tmp_path, monkeypatch
):
    finish(plan("tuned", init_from="base", lora=LORA))
    moved = tmp_path / "elsewhere"
    (tmp_path / "runs").rename(moved)
    monkeypatch.setenv("MYPT_HOME", str(moved))
    load_model("tuned")
    (moved / "models" / "base").rename(moved / "models" / "other")
    with pytest.raises(
        CheckpointError, match=r"an adapter of base step 6.*put that checkpoint back"
    ):
        load_model("tuned")


def test_an_adapter_learns_and_moments_are_kept_for_it_alone(plan, finish, other_dataset):
    finish(plan("base", max_iters=150))
    config = {"lora": LORA, "max_iters": 60, "learning_rate": 3e-2}
    made = finish(plan("tuned", "base", other_dataset, **config))
    assert made["evals"][-1].val_loss < made["evals"][0].val_loss - 1.0
    held = load_checkpoint(home.checkpoint_to_use("tuned"), merge=False)
    optimizer = safetensors.numpy.load_file(held.path / "optimizer.safetensors")
    assert {name.rpartition(".")[0] for name in optimizer} == held.weights.keys()
    assert all(".adapter." in name for name in held.weights)


@pytest.mark.usefixtures("base")
def test_kl_base_holds_an_adapter_to_its_base_without_a_second_copy(plan, finish):
    ids, away = torch.randint(272, (4, 16)), {}
    for kl in (0.0, 900.0):
        made = plan(f"kl{kl:g}", init_from="base", lora=LORA, kl_base=kl, dropout=0.0)
        finish(made)
        model, beneath, _ = begin_model(made, None, torch.device("cpu"))
        own = dict(model.named_parameters())
        assert beneath is None or all(w is own[n] for n, w in beneath.named_parameters())
        tuned, _, _ = load_model(made.model_name)
        with torch.no_grad():
            one, other = (m(ids)[0].log_softmax(-1) for m in (tuned, model))
        away[kl] = (one - other).abs().mean()
    assert away[900.0] < away[0.0] / 2


@pytest.mark.parametrize("low", ["bfloat16", "nf4"])
@pytest.mark.usefixtures("base")
def test_frozen_matrices_may_have_fewer_bits_and_merge_as_they_were_trained(plan, finish, low):
    if low == "nf4":
        pytest.importorskip("bitsandbytes", reason="pip install 'mypt[bitsandbytes]'")
    made = plan("low", init_from="base", lora=LORA, weight_dtype=low, dtype="auto", max_iters=4)
    finish(made)
    step = home.checkpoint_to_use("low")
    trained, _, _ = begin_model(made, load_checkpoint(step, merge=False), torch.device("cpu"))
    block = trained.transformer.h[0].attn.c_attn
    assert block.adapter.a.dtype == torch.float32
    assert (block.packed is not None) == (low == "nf4")
    assert trained.lm_head.weight.dtype == (torch.bfloat16 if low == "bfloat16" else torch.float32)
    ids = torch.randint(272, (2, 16))
    with torch.no_grad():
        found = load_model("low")[0](ids)[0]
        expected = trained.float().eval()(ids)[0]
    assert (found - expected).abs().max() < 1e-6


@pytest.mark.usefixtures("base")
def test_four_bits_begin_near_the_base_and_keep_its_objective(plan, finish):
    pytest.importorskip("bitsandbytes", reason="pip install 'mypt[bitsandbytes]'")
    first = {
        low: finish(plan(low, init_from="base", lora=LORA, weight_dtype=low, kl_base=0.1))["evals"]
        for low in ("float32", "nf4")
    }
    begun = [evals[0].val_loss for evals in first.values()]
    assert abs(begun[1] - begun[0]) < 0.02 * begun[0]
    assert first["nf4"][-1].val_loss < first["nf4"][0].val_loss


@pytest.mark.usefixtures("base")
def test_full_tuning_goes_on_from_what_an_adapter_made(plan, finish):
    finish(plan("tuned", init_from="base", lora=LORA))
    tuned, _, _ = load_model("tuned")
    model, _, _ = begin_model(plan("full", init_from="tuned"), None, torch.device("cpu"))
    assert torch.equal(model.lm_head.weight, tuned.lm_head.weight)
    again = plan("again", init_from="tuned", lora=LORA)
    finish(again)
    assert read_lineage(home.checkpoint_to_use("again")).parents == 2
    load_model("again")


@pytest.mark.usefixtures("base")
def test_a_tree_trains_an_adapter_to_the_same_bits_in_two_processes(plan):
    tree = {"reduction": "tree", "grad_accumulation": 4, "max_iters": 4, "lora": LORA}
    for _ in train(plan("alone", init_from="base", **tree)):
        pass
    together(2, partial(_trained, plan("two", init_from="base", parallel="ddp", **tree)))
    assert bits(home.checkpoint_to_use("alone")) == bits(home.checkpoint_to_use("two"))


@pytest.mark.usefixtures("base")
def test_ddp_adds_up_the_gradients_of_an_adapter_alone(plan):
    usual = {"grad_accumulation": 4, "max_iters": 4, "lora": LORA, "dropout": 0.0}
    for _ in train(plan("alone", init_from="base", **usual)):
        pass
    together(2, partial(_trained, plan("two", init_from="base", parallel="ddp", **usual)))
    one, other = (load_model(name)[2].weights for name in ("alone", "two"))
    assert all((one[name] - other[name]).abs().max() < 1e-5 for name in one)


def _trained(plan, ranks, last=0):
    """Train to the end, or until a step is asked to be the last."""
    made = []
    for event in train(plan, ranks=ranks, should_stop=lambda made=made: 0 < last <= len(made)):
        made += [event.step] * isinstance(event, StepReport)


def test_rows_of_tokens_that_the_base_never_read_are_learned_and_kept(plan, finish, tmp_path):
    raw = tmp_path / "text.txt"
    raw.write_text("7 it is, and 8 it is. " * 200)
    config = PrepareConfig(
        sources=(Source(path=str(raw), format="text"),), tokenization="byte", val_fraction=0.0
    )
    text = tokenize(config, tmp_path / "text").path
    finish(plan("plain", dataset=text, use_loss_mask=False))
    made = plan("tuned", init_from="plain", lora=LORA, sample_prompts=("say 7",))
    tokenizer = load_tokenizer(made.dataset.path)
    new = made.preset.lora.tokens
    ids = [tokenizer.special_tokens[token] for token in tokenizer.template.special_tokens]
    assert [*new] == sorted(ids)
    finish(made)
    before, after = (load_model(name)[0].lm_head.weight for name in ("plain", "tuned"))
    moved = (before != after).any(1).nonzero().flatten().tolist()
    assert moved == [*new]
    again = plan("again", init_from="tuned", lora=LORA)
    assert again.preset.lora.tokens == ()


@pytest.mark.usefixtures("base")
def test_fsdp_parts_what_is_frozen_and_what_is_learned_and_goes_on(plan):
    usual = {
        "grad_accumulation": 4,
        "max_iters": 6,
        "lora": LORA | {"tokens": (7,)},
        "dropout": 0.0,
    }
    for _ in train(plan("alone", init_from="base", **usual)):
        pass
    for name, last in (("two", 0), ("halves", 4)):
        made = plan(name, init_from="base", parallel="fsdp", **usual)
        if last:
            together(2, partial(_trained, made, last=last))
        together(2, partial(_trained, made))
    one, other = (load_model(name)[2].weights for name in ("alone", "two"))
    assert all((one[name] - other[name]).abs().max() < 1e-5 for name in one)
    whole, again = (home.checkpoint_to_use(name) for name in ("two", "halves"))
    assert bits(whole) == bits(again)
    assert not (whole / WEIGHTS).exists()


@pytest.mark.parametrize("low", ["bfloat16", "nf4"])
def test_fsdp_parts_no_frozen_matrices_of_fewer_bits(tiny, low):
    with pytest.raises(ValueError, match=f"weight_dtype {low} with parallel fsdp"):
        tiny(lora=LORA, parallel="fsdp", weight_dtype=low, dtype="auto")
