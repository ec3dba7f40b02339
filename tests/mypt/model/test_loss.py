"""The masked loss against the seed's formula, in float64 where exactness is claimed."""

import math

import pytest
import torch
import torch.nn.functional as F

from mypt.model.linear_loss import linear_cross_entropy
from mypt.model.loss import (
    MaskedLoss,
    masked_cross_entropy,
    sums,
    supervised_positions,
    weights_at,
)

B, T, C, V = 2, 5, 8, 11


def seed_formula(logits, targets, loss_mask):
    """The loss as the seed's guide writes it."""
    per_token = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    mask = loss_mask.flatten().to(per_token.dtype)
    return (per_token * mask).sum() / mask.sum()


def head_loss(hidden, weight, targets, mask=None):
    """The head's loss as :meth:`mypt.model.gpt.GPT.loss` takes it: of supervised rows alone."""
    index = supervised_positions(targets, mask)
    rows = hidden.flatten(0, 1).index_select(0, index)
    weights = weights_at(mask, index)
    total = linear_cross_entropy(rows, weight, targets.flatten()[index], weights=weights)
    return sums(total, index, weights)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(B, T, C, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, C, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (B, T), generator=generator)
    mask = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 1, 0, 0]], dtype=torch.uint8)
    return hidden, weight, targets, mask


def masks():
    full = torch.ones(B, T, dtype=torch.uint8)
    last = torch.zeros(B, T, dtype=torch.uint8)
    last[-1, -1] = 1
    random = (torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.4).to(torch.uint8)
    return {"full": full, "last": last, "random": random}


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float32])
def test_sum_over_count_is_the_seeds_formula(batch, name, dtype):
    hidden, weight, targets, _ = batch
    mask = masks()[name].to(dtype)
    logits = hidden @ weight.T
    expected = seed_formula(logits, targets, mask).item()
    assert masked_cross_entropy(logits, targets, mask).mean.item() == pytest.approx(
        expected, abs=1e-12
    )
    assert head_loss(hidden, weight, targets, mask).mean.item() == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize("name", masks())
def test_gathering_before_the_projection_gives_the_seeds_gradients(batch, name):
    hidden, weight, targets, _ = batch
    mask = masks()[name]
    grads = []
    for gathered in (False, True):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = (
            head_loss(h, w, targets, mask).mean
            if gathered
            else seed_formula(h @ w.T, targets, mask)
        )
        loss.backward()
        grads.append((h.grad, w.grad))
    for ours, theirs in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_the_sum_matches_the_formula_term_by_term(batch):
    hidden, weight, targets, mask = batch
    logits = hidden @ weight.T
    terms = [
        -math.log(torch.softmax(logits[b, t], dim=-1)[targets[b, t]])
        for b in range(B)
        for t in range(T)
        if mask[b, t]
    ]
    loss = masked_cross_entropy(logits, targets, mask)
    assert loss.weight.item() == len(terms) == 3
    assert loss.total.item() == pytest.approx(sum(terms), abs=1e-12)


def test_without_a_mask_every_target_counts(batch):
    hidden, weight, targets, _ = batch
    logits = hidden @ weight.T
    loss = head_loss(hidden, weight, targets)
    assert loss.weight.item() == B * T
    assert loss.mean.item() == pytest.approx(
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item(), abs=1e-12
    )


def test_the_sum_is_float32_for_low_precision_input(batch):
    hidden, weight, targets, mask = batch
    loss = head_loss(hidden.bfloat16(), weight.bfloat16(), targets, mask)
    assert loss.total.dtype == torch.float32
    assert loss.weight.dtype == torch.int64


@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_under_the_mask_poisons_neither_loss_nor_gradient(batch, poison):
    hidden, weight, targets, mask = batch
    logits = (hidden @ weight.T).detach()
    logits[0, 0] = poison
    logits.requires_grad_()
    loss = masked_cross_entropy(logits, targets, mask)
    loss.total.backward()
    assert loss.total.isfinite()
    assert logits.grad.isfinite().all()


def test_an_empty_mask_sums_to_zero_with_count_zero_and_has_no_mean(batch):
    hidden, weight, targets, mask = batch
    hidden.requires_grad_()
    loss = head_loss(hidden, weight, targets, torch.zeros_like(mask))
    loss.total.backward()
    assert (loss.total.item(), loss.weight.item()) == (0.0, 0)
    assert loss.mean.isnan()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


def test_a_target_that_other_libraries_ignore_is_not_counted(batch):
    hidden, weight, targets, _ = batch
    targets[0, 0] = -100
    loss = head_loss(hidden, weight, targets)
    expected = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten())
    assert loss.weight.item() == B * T - 1
    assert loss.mean.item() == pytest.approx(expected.item(), abs=1e-12)


def test_only_supervised_rows_receive_gradient_at_the_logits(batch):
    """Off by one after the shift would put it elsewhere (pain 15)."""
    hidden, weight, targets, _ = batch
    for position in range(T):
        logits = (hidden @ weight.T).detach().requires_grad_()
        mask = torch.zeros(B, T, dtype=torch.uint8)
        mask[1, position] = 1
        masked_cross_entropy(logits, targets, mask).total.backward()
        assert logits.grad.abs().sum(-1).nonzero().tolist() == [[1, position]]


def test_rows_of_1_and_31_tokens_weigh_by_token_not_by_row():
    """Pain 1, in the loss: the mean of means is another number, so the test can fail."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 31, V, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (2, 31), generator=generator)
    mask = torch.ones(2, 31, dtype=torch.uint8)
    mask[0, 1:] = 0
    whole = masked_cross_entropy(logits, targets, mask)
    rows = [masked_cross_entropy(logits[b], targets[b], mask[b]) for b in range(2)]
    joined = MaskedLoss(sum(r.total for r in rows), sum(r.weight for r in rows))
    assert joined.mean.item() == pytest.approx(whole.mean.item(), abs=1e-12)
    assert abs(sum(r.mean.item() for r in rows) / 2 - whole.mean.item()) > 1e-2


def test_a_mask_of_another_shape_is_refused(batch):
    hidden, weight, targets, mask = batch
    with pytest.raises(ValueError, match=r"loss_mask \(2, 4\) does not fit targets \(2, 5\)"):
        head_loss(hidden, weight, targets, mask[:, 1:])
    with pytest.raises(ValueError, match=r"logits .* does not fit targets"):
        masked_cross_entropy((hidden @ weight.T)[:, 1:], targets, mask)


def test_integers_other_than_0_and_1_and_weights_that_are_none_are_refused(batch):
    hidden, weight, targets, mask = batch
    with pytest.raises(ValueError, match="integers other than 0 and 1; weights are floats"):
        head_loss(hidden, weight, targets, mask * 2)
    for wrong in (-0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="negative or not finite"):
            head_loss(hidden, weight, targets, torch.where(mask == 1, wrong, 0.0))


def test_weight_2_doubles_a_tokens_term_above_and_below():
    """By hand: nats of ln 2 and ln 4, weighed 2 and 1, are (2 ln 2 + ln 4) / 3."""
    logits = torch.tensor([[[0.0, 0.0, -math.inf], [0.0, 0.0, math.log(2.0)], [9.0, 0.0, 0.0]]])
    targets = torch.tensor([[0, 1, 2]])
    weights = torch.tensor([[2.0, 1.0, 0.0]])
    assert masked_cross_entropy(logits, targets, weights).weight.item() == 3
    found = masked_cross_entropy(logits.double(), targets, weights).mean.item()
    assert found == pytest.approx((2 * math.log(2) + math.log(4)) / 3, abs=1e-7)


def test_weights_are_the_formula_in_both_losses_and_their_gradients(batch):
    hidden, weight, targets, mask = batch
    weights = mask * torch.rand(B, T, generator=torch.Generator().manual_seed(5))
    grads = []
    for way in ("formula", "gathered", "logits"):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if way == "formula":
            loss = seed_formula(h @ w.T, targets, weights)
        elif way == "gathered":
            loss = head_loss(h, w, targets, weights).mean
        else:
            loss = masked_cross_entropy(h @ w.T, targets, weights).mean
        loss.backward()
        grads.append((loss.detach(), h.grad, w.grad))
    for ours in grads[1:]:
        for found, expected in zip(ours, grads[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
