"""Which weights decay, and how the learning rate moves."""

import math
import sys

import pytest
import torch
from pydantic import ValidationError

from mypt.config import GPTConfig, TrainConfig
from mypt.errors import ConfigError
from mypt.model.gpt import GPT
from mypt.model.parameters import n_parameters
from mypt.training.optim import learning_rate_at, make_optimizer, narrow, rounded

CONFIG = TrainConfig(learning_rate=1.0, min_lr_ratio=0.1, warmup_iters=4, max_iters=15)


def test_it_warms_up_linearly_peaks_and_ends_at_the_floor():
    rates = [learning_rate_at(step, CONFIG) for step in range(15)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[9] == pytest.approx(0.55)
    assert rates[14] == pytest.approx(0.1)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_past_the_end_it_stays_at_the_floor():
    assert learning_rate_at(1000, CONFIG) == pytest.approx(0.1)


@pytest.mark.parametrize(("warmup", "last"), [(0, 1), (0, 2), (5, 3), (3, 3)])
def test_short_runs_have_a_finite_positive_rate_at_every_step(warmup, last):
    config = CONFIG.model_copy(update={"warmup_iters": warmup, "max_iters": last})
    rates = [learning_rate_at(step, config) for step in range(last)]
    assert all(math.isfinite(rate) and 0 < rate <= 1 for rate in rates)


def test_matrices_decay_and_vectors_do_not():
    model = GPT(GPTConfig(block_size=8, vocab_size=16, n_layer=1, n_head=1, n_embd=8, bias=True))
    matrices, vectors = make_optimizer(model, CONFIG).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {p.dim() for p in matrices["params"]} == {2}
    assert {p.dim() for p in vectors["params"]} == {1}
    counted = sum(p.numel() for g in (matrices, vectors) for p in g["params"])
    assert counted == n_parameters(model)


def test_a_step_is_adamw_as_the_paper_writes_it():
    """Loshchilov and Hutter, algorithm 2, by hand for the first step."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=8, vocab_size=16, n_layer=1, n_head=1, n_embd=8))
    optimizer = make_optimizer(model, CONFIG)
    weight = model.transformer.wpe.weight
    before = weight.detach().clone()
    model.loss(torch.arange(8)[None], torch.arange(8)[None]).mean.backward()
    gradient = weight.grad.clone()
    optimizer.step()
    rate = learning_rate_at(0, CONFIG)
    expected = before * (1 - rate * 0.1) - rate * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected)
    assert optimizer.defaults["fused"]
    assert (optimizer.defaults["betas"]) == (0.9, 0.95)


def test_a_trapezoid_stays_at_the_peak_and_falls_in_a_straight_line():
    config = CONFIG.model_copy(update={"schedule": "trapezoid", "cooldown": 0.4})
    rates = [learning_rate_at(step, config) for step in range(15)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:9] == [1.0] * 5
    assert rates[9:] == pytest.approx([0.85, 0.7, 0.55, 0.4, 0.25, 0.1])
    assert learning_rate_at(1000, config) == pytest.approx(0.1)


@pytest.mark.parametrize(("warmup", "last"), [(0, 1), (0, 2), (5, 3), (3, 3), (8, 10)])
def test_a_short_trapezoid_has_no_sudden_fall(warmup, last):
    changes = {"warmup_iters": warmup, "max_iters": last, "schedule": "trapezoid", "cooldown": 1.0}
    config = CONFIG.model_copy(update=changes)
    rates = [learning_rate_at(step, config) for step in range(last)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates == sorted(rates[:warmup]) + sorted(rates[warmup:], reverse=True)


SMALL = GPTConfig(block_size=8, vocab_size=16, n_layer=1, n_head=1, n_embd=8, bias=True)
LOW = CONFIG.model_copy(update={"weight_dtype": "bfloat16"})
PRODUCTS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def test_a_number_is_rounded_up_as_often_as_it_is_far_from_the_lower_neighbour():
    below, above = 1.0, 1.0 + 2**-7
    chance = torch.Generator().manual_seed(0)
    for share in (0.0, 0.25, 0.9):
        given = torch.full((40_000,), below + share * (above - below))
        found = rounded(given, chance)
        assert set(found.tolist()) <= {below, above}
        assert (found == above).double().mean().item() == pytest.approx(share, abs=0.01)
    assert rounded(torch.tensor([-1.0, 0.0, 384.0]), chance).tolist() == [-1.0, 0.0, 384.0]


@pytest.mark.parametrize("tied", [True, False])
def test_products_are_kept_in_bfloat16_and_all_they_learn_by_in_float32(tied):
    torch.manual_seed(0)
    model = narrow(GPT(SMALL.model_copy(update={"tie_weights": tied})), "bfloat16")
    low = {n for n, w in model.named_parameters() if w.dtype == torch.bfloat16}
    head = "transformer.wte.weight" if tied else "lm_head.weight"
    block = {f"transformer.h.0.{part}.weight" for part in PRODUCTS}
    assert low == block | {head}
    optimizer, ids = make_optimizer(model, LOW), torch.arange(8)[None]
    with torch.autocast("cpu", torch.bfloat16):
        assert model.hidden(ids).dtype == torch.float32
        model.loss(ids, ids).mean.backward()
    assert {w.grad.dtype for w in model.parameters()} == {torch.float32}
    optimizer.step()
    held = {part.dtype for state in optimizer.state.values() for part in state.values()}
    assert held == {torch.float32}


def test_steps_too_small_for_bfloat16_add_up_as_in_float32():
    """A weight of 1 has neighbours at 2^-8 below and 2^-7 above; each step is 1e-4."""
    rate = {"learning_rate": 1e-4, "warmup_iters": 0, "weight_decay": 0.0, "min_lr_ratio": 1.0}
    config = LOW.model_copy(update=rate)
    model = narrow(GPT(SMALL.model_copy(update={"n_embd": 64})), "bfloat16")
    optimizer, weight = make_optimizer(model, config), model.transformer.h[0].mlp.c_fc.weight
    weight.data.fill_(1.0)
    for _ in range(20):
        weight.grad = torch.ones_like(weight, dtype=torch.float32)
        optimizer.step()
    assert weight.float().mean().item() == pytest.approx(1 - 20e-4, abs=2e-4)


def test_weights_in_float32_are_updated_as_by_torch():
    models = [GPT(SMALL) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, config in zip(models, (CONFIG, LOW), strict=True):
        optimizer = make_optimizer(model, config)
        for step in range(3):
            for number, weight in enumerate(model.parameters()):
                weight.grad = torch.full_like(weight, 0.1 * (step - number))
            optimizer.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("other", [{"dtype": "float32"}, {"parallel": "ddp"}])
def test_weights_in_bfloat16_want_their_products_and_one_process(other):
    with pytest.raises(ValidationError, match="weight_dtype bfloat16"):
        TrainConfig.model_validate({"weight_dtype": "bfloat16"} | other)


def test_a_config_that_says_nothing_of_it_is_written_as_before():
    assert "weight_dtype" not in CONFIG.model_dump()


EIGHT = CONFIG.model_copy(update={"optimizer": "adamw8bit"})
WIDE = SMALL.model_copy(update={"n_embd": 64, "n_head": 2, "vocab_size": 100, "tie_weights": False})
LARGE = {f"transformer.h.0.{part}.weight" for part in PRODUCTS}


def gradients(model, step):
    chance = torch.Generator().manual_seed(step)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=chance) * 1e-3


@pytest.mark.parametrize("low", [False, True])
def test_moments_of_eight_bits_are_those_of_large_matrices_and_step_nearly_as_adamw(low):
    pytest.importorskip("bitsandbytes", reason="pip install 'mypt[bitsandbytes]'")
    torch.manual_seed(0)
    models = [GPT(WIDE) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    before = {n: w.detach().clone() for n, w in models[0].named_parameters()}
    narrow(models[1], "bfloat16" if low else "float32")
    made = [make_optimizer(models[0], CONFIG), make_optimizer(models[1], EIGHT)]
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
    for step in range(5):
        for model, optimizer in zip(models, made, strict=True):
            gradients(model, step)
            optimizer.step()
    kept = {n: made[1].state[w] for n, w in models[1].named_parameters()}
    codes = {n for n, state in kept.items() if state["exp_avg"].dtype == torch.uint8}
    assert codes == LARGE | {"lm_head.weight"}
    for name, weight in models[1].named_parameters():
        plain = dict(models[0].named_parameters())[name]
        if name in codes:
            moved = (plain - before[name]).norm()
            assert (weight.float() - plain).norm() < (0.1 if low else 0.05) * moved, name
            parts = kept[name]
            assert {p: (t.dtype, t.numel()) for p, t in parts.items() if p != "step"} == {
                "exp_avg": (torch.uint8, weight.numel()),
                "exp_avg_sq": (torch.uint8, weight.numel()),
                "exp_avg_scale": (torch.float32, -(-weight.numel() // 256)),
                "exp_avg_sq_scale": (torch.float32, -(-weight.numel() // 256)),
            }
        else:
            assert torch.equal(weight, plain), name


def test_eight_bits_without_their_library_are_refused_in_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"adamw8bit.*pip install 'mypt\[bitsandbytes\]'"):
        make_optimizer(GPT(WIDE), EIGHT)


def test_eight_bits_where_they_have_no_kernels_or_no_whole_weights_are_refused():
    with pytest.raises(ConfigError, match="bitsandbytes has none for meta; set optimizer adamw"):
        make_optimizer(GPT(WIDE).to("meta"), EIGHT)
    with pytest.raises(ValidationError, match="optimizer adamw8bit with parallel fsdp"):
        TrainConfig(optimizer="adamw8bit", parallel="fsdp", processes=2)


def test_eight_bits_whose_kernels_do_not_run_are_refused_before_any_step(monkeypatch):
    functional = pytest.importorskip("bitsandbytes.functional", reason="mypt[bitsandbytes]")

    def fail(**_):
        raise RuntimeError("no kernel image is available\nfor execution")

    monkeypatch.setattr(functional, "create_dynamic_map", fail)
    with pytest.raises(ConfigError, match=r"not run on cpu: no kernel image is available; set opt"):
        make_optimizer(GPT(WIDE), EIGHT)


def test_a_library_that_would_fetch_kernels_from_a_hub_cannot(monkeypatch):
    pytest.importorskip("bitsandbytes", reason="pip install 'mypt[bitsandbytes]'")
    own = object()
    monkeypatch.setitem(sys.modules, "kernels", own)
    make_optimizer(GPT(WIDE), EIGHT)
    assert sys.modules["kernels"] is own
