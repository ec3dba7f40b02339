"""Which weights decay, and how the learning rate moves."""

import math

import pytest
import torch

from mypt.config import GPTConfig, TrainConfig
from mypt.model.gpt import GPT
from mypt.training.optim import learning_rate_at, make_optimizer

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
    assert counted == model.n_parameters()


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
