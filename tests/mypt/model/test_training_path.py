"""What training computes against the seed's formula on the whole model: exact, and no more."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mypt.config import GPTConfig
from mypt.model.gpt import GPT

B, T, C, V, LAYERS = 3, 32, 16, 61, 2
CONFIG = GPTConfig(block_size=T, vocab_size=V, n_layer=LAYERS, n_head=2, n_embd=C)
SEGMENTS = torch.tensor([[0] * 10 + [1] * 22, [0] * 32, [0] * 3 + [1] * 4 + [-1] * 25])


def build(*, tied=True, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    model = GPT(CONFIG.model_copy(update=changes))
    with torch.no_grad():
        for parameter in model.parameters():  # far from the start, where biases are 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    if not tied:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.flip(0).clone())
    return model.to(dtype)


def batch(density, n=B):
    generator = torch.Generator().manual_seed(1)
    idx, targets = torch.randint(V, (2, n, T), generator=generator).unbind()
    mask = (torch.rand(n, T, generator=generator) < density).to(torch.uint8)
    return idx, targets, mask


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.double().clone() for name, p in model.named_parameters()}


def seeds(model, idx, targets, mask, **places):
    """Sum of the masked losses by the seed's formula, from the logits of every position."""
    logits = model(idx, **places)[0]
    per_token = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (per_token * mask.flatten()).sum()


def norm(parts):
    return torch.stack([part.norm() for part in parts]).norm().item()


def distance(ours, theirs):
    assert ours.keys() == theirs.keys()
    return norm([ours[name] - theirs[name] for name in ours]) / norm(theirs.values())


@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("segments", [None, SEGMENTS])
@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_loss_and_every_gradient_are_the_seeds(prune, tied, bias, segments, density):
    model, (idx, targets, mask) = build(tied=tied, bias=bias), batch(density)
    ours = model.loss(idx, targets, mask, segments=segments, prune_last_block=prune)
    theirs = seeds(model, idx, targets, mask, segments=segments)
    assert ours.weight == mask.sum()
    assert ours.total.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert distance(gradients(model, ours.total), gradients(model, theirs)) < 1e-6


@pytest.mark.parametrize("prune", [True, False])
def test_in_float64_they_agree_to_its_last_digits(prune):
    model, (idx, targets, mask) = build(dtype=torch.float64), batch(0.3)
    ours = model.loss(idx, targets, mask, prune_last_block=prune).total
    theirs = seeds(model, idx, targets, mask)
    assert distance(gradients(model, ours), gradients(model, theirs)) < 1e-13


@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_in_bfloat16_they_are_no_further_from_the_truth_than_the_seeds_own(prune, density):
    model, (idx, targets, mask) = build(), batch(density)
    truth = gradients(model.double(), seeds(model, idx, targets, mask))
    model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = model.loss(idx, targets, mask, prune_last_block=prune).total
        theirs = seeds(model, idx, targets, mask)
    ours, theirs = gradients(model, ours), gradients(model, theirs)
    assert distance(ours, truth) <= 1.05 * distance(theirs, truth)


@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_an_empty_mask_gives_zero_and_zero_gradients(prune, tied):
    model, (idx, targets, mask) = build(tied=tied, bias=True), batch(0.0)
    loss = model.loss(idx, targets, mask, prune_last_block=prune)
    assert (loss.total.item(), loss.weight.item()) == (0.0, 0)
    assert not any(gradient.any() for gradient in gradients(model, loss.total).values())


def test_accumulated_micro_batches_give_the_gradient_of_the_whole():
    model, (idx, targets, mask) = build(dtype=torch.float64), batch(0.4)
    whole = gradients(model, model.loss(idx, targets, mask).total / mask.sum())
    model.zero_grad()
    for row in zip(idx.split(1), targets.split(1), mask.split(1), strict=True):
        (model.loss(*row).total / mask.sum()).backward()
    parts = {name: p.grad for name, p in model.named_parameters()}
    assert distance(parts, whole) < 1e-13


def test_a_gradient_asked_for_by_name_is_the_same():
    """The tied weight's gradient is completed by the embedding, whoever asks for it."""
    model, (idx, targets, mask) = build(dtype=torch.float64), batch(0.4)
    whole = gradients(model, model.loss(idx, targets, mask).total)
    weight = model.lm_head.weight
    (alone,) = torch.autograd.grad(model.loss(idx, targets, mask).total, [weight])
    torch.testing.assert_close(alone, whole["transformer.wte.weight"], rtol=0, atol=1e-12)


def test_a_frozen_embedding_leaves_the_other_gradients_as_they_were():
    model, rows = build(dtype=torch.float64), batch(0.4)
    whole = gradients(model, model.loss(*rows).total)
    model.lm_head.weight.requires_grad_(False)
    model.zero_grad()
    model.loss(*rows).total.backward()
    assert model.lm_head.weight.grad is None
    others = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert len(others) == len(whole) - 1
    assert distance(others, {name: whole[name] for name in others}) < 1e-13


def products(work):
    """Multiplications in the matrix products of a forward pass, attention apart."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    counted = counter.get_flop_counts()["Global"]
    return counted[torch.ops.aten.mm] // 2


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_the_last_block_and_the_head_work_for_supervised_positions_only(density):
    model, (idx, targets, mask) = build(), batch(density)
    tokens, n, block, keys_and_values = B * T, int(mask.sum()), 12 * C * C, 2 * C * C
    assert products(lambda: model(idx)) == tokens * (LAYERS * block + C * V)
    unpruned = products(lambda: model.loss(idx, targets, mask, prune_last_block=False))
    assert unpruned == tokens * LAYERS * block + n * C * V
    pruned = products(lambda: model.loss(idx, targets, mask))
    assert unpruned - pruned == (tokens - n) * (block - keys_and_values)


def test_dropout_is_a_function_of_the_seed_with_and_without_pruning():
    model, rows = build(dropout=0.5), batch(0.3)
    for prune in (True, False):
        losses = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            losses.append(model.loss(*rows, prune_last_block=prune).total.item())
        assert losses[0] == losses[1] != losses[2]
