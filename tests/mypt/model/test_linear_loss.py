"""The fused loss against the seed's formula: values, gradients, memory, every chunk size."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mypt.model import linear_loss
from mypt.model.linear_loss import TiedGradient, embed, linear_cross_entropy
from mypt.model.objectives import Objective

N, C, V = 23, 16, 301


def make(n=N, dtype=torch.float32, spread=1.0):
    generator = torch.Generator().manual_seed(n)
    rows = spread * torch.randn(n, C, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, C, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (n,), generator=generator)
    return rows.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def plain(rows, weight, targets):
    """The seed's way: all the logits, then the loss of each, then the sum."""
    return F.cross_entropy(F.linear(rows, weight), targets, reduction="none").float().sum()


def truth(rows, weight, targets, scale=1.0):
    r, w = (t.detach().double().requires_grad_() for t in (rows, weight))
    total = F.cross_entropy(r @ w.T, targets, reduction="sum")
    return total, *torch.autograd.grad(scale * total, (r, w))


def found(rows, weight, targets, scale=1.0, **choices):
    total = linear_cross_entropy(rows, weight, targets, **choices)
    return total, *torch.autograd.grad(scale * total, (rows, weight))


def in_pieces(rows, weight, targets, size):
    """The seed's way on ``size`` rows at a time."""
    total = sum(
        plain(part, weight, some)
        for part, some in zip(rows.split(size), targets.split(size), strict=True)
    )
    return total, *torch.autograd.grad(total, (rows, weight))


def distance(ours, theirs):
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


@pytest.mark.parametrize("chunk_rows", [None, 1, 7, N, N + 1])
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_loss_and_gradients_are_the_plain_ones(chunk_rows, spread, dtype, limit):
    batch = make(dtype=dtype, spread=spread)
    exact = truth(*batch)
    seeds = in_pieces(*batch, chunk_rows or N)
    for ours, theirs, seed in zip(found(*batch, chunk_rows=chunk_rows), exact, seeds, strict=True):
        assert ours.dtype == dtype
        # some processors multiply a single row with less care than many; so does the seed there
        assert distance(ours, theirs) < max(limit, 1.1 * distance(seed, theirs))


@pytest.mark.parametrize("objective", [Objective(), Objective("dft", 1e-2), Objective(kl_base=0.4)])
@pytest.mark.parametrize("weighed", [False, True])
def test_bent_logits_give_the_plain_loss_and_gradients(objective, weighed):
    cap, (rows, weight, targets) = 3.0, make(dtype=torch.float64)
    weights = torch.rand(N, generator=torch.Generator().manual_seed(1)).double()
    base = torch.randn(N, C).double(), torch.randn(V, C).double()
    logits, others = (cap * torch.tanh(x @ w.T / cap) for x, w in ((rows, weight), base))
    log_p, log_q = logits.log_softmax(1), others.log_softmax(1)
    terms = -log_p.gather(1, targets[:, None])[:, 0]
    if objective.name == "dft":
        terms = terms * (-terms.detach()).exp()
    terms = terms + objective.z_loss * logits.logsumexp(1).square()
    terms = terms + objective.kl_base * (log_q.exp() * (log_q - log_p)).sum(1)
    total = (terms * weights if weighed else terms).sum()
    exact = total, *torch.autograd.grad(total, (rows, weight))
    choices = {"weights": weights if weighed else None, "base": base, "objective": objective}
    ours = found(rows, weight, targets, chunk_rows=5, softcap=cap, **choices)
    for our, true in zip(ours, exact, strict=True):
        assert distance(our, true) < 1e-13


@pytest.mark.parametrize("blocks", [1, 5])
def test_blocks_that_fit_a_cache_change_nothing(monkeypatch, blocks):
    monkeypatch.setattr(linear_loss, "CACHE_BYTES", 4 * V * -(-N // blocks))
    monkeypatch.setattr(linear_loss, "_VOCABULARY_ROWS", 64)
    batch = make()
    for ours, theirs in zip(found(*batch, chunk_rows=9), truth(*batch), strict=True):
        assert distance(ours, theirs) < 1e-6


@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("chunk_rows", [None, 1, 7])
@pytest.mark.parametrize("n", [N, 400])
def test_bfloat16_is_no_further_from_the_truth_than_the_seeds_own(spread, chunk_rows, n):
    rows, weight, targets = make(n, spread=spread)
    exact = truth(rows, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = found(rows, weight, targets, chunk_rows=chunk_rows)
        total = plain(rows, weight, targets)
    seeds = total, *torch.autograd.grad(total, (rows, weight))
    for name, our, seed, true in zip(("loss", "rows", "weight"), ours, seeds, exact, strict=True):
        assert our.dtype == torch.float32, name
        rounding = 3e-7 if name == "loss" else 0.0  # of the sum itself, to float32
        assert distance(our, true) <= distance(seed, true) + rounding, name


def test_a_confident_model_keeps_its_small_gradients_in_bfloat16():
    """Where p is nearly 1, p - 1 must not be the difference of two rounded products."""
    weight = torch.eye(V, C).requires_grad_()
    rows = (12 * torch.eye(C)[:8]).requires_grad_()
    targets = torch.arange(8)
    exact = truth(rows, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = found(rows, weight, targets)
    assert exact[1].abs().max() < 0.01
    assert distance(ours[1], exact[1]) < 1e-2
    assert distance(ours[2], exact[2]) < 1e-2


def test_low_precision_weights_get_low_precision_gradients_summed_in_float32():
    rows, weight, targets = make(400, torch.bfloat16)
    total, d_rows, d_weight = found(rows, weight, targets, chunk_rows=3)
    assert (total.dtype, d_rows.dtype, d_weight.dtype) == (
        torch.float32, torch.bfloat16, torch.bfloat16,
    )  # fmt: skip
    assert distance(d_weight, truth(rows, weight, targets)[2]) < 8e-3


def test_gradients_are_scaled_by_what_comes_in():
    batch = make(dtype=torch.float64)
    halves, whole = found(*batch, scale=0.37), truth(*batch, scale=0.37)
    for ours, theirs in zip(halves[1:], whole[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_micro_batches_add_up_in_the_gradient_buffers():
    rows, weight, targets = make(dtype=torch.float64)
    for part in (slice(0, 5), slice(5, None)):
        (linear_cross_entropy(rows[part], weight, targets[part]) / N).backward()
    _, d_rows, d_weight = truth(rows, weight, targets, scale=1 / N)
    torch.testing.assert_close(rows.grad, d_rows, rtol=0, atol=1e-14)
    torch.testing.assert_close(weight.grad, d_weight, rtol=0, atol=1e-14)


def test_no_rows_sum_to_zero_with_zero_gradients():
    rows, weight, targets = make(0)
    total, d_rows, d_weight = found(rows, weight, targets)
    assert total.item() == 0.0
    assert d_rows.shape == (0, C)
    assert torch.equal(d_weight, torch.zeros(V, C))


def test_without_gradients_the_sum_has_the_same_bits():
    batch = make()
    with torch.no_grad():
        alone = linear_cross_entropy(*batch)
    assert not alone.requires_grad
    assert torch.equal(alone, linear_cross_entropy(*batch).detach())


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side_gets_no_gradient_and_the_other_all_of_it(frozen):
    batch = make(dtype=torch.float64)
    batch[frozen].requires_grad_(False)
    linear_cross_entropy(*batch).backward()
    assert batch[frozen].grad is None
    expected = truth(*batch)[2 - frozen]
    torch.testing.assert_close(batch[1 - frozen].grad, expected, rtol=0, atol=1e-12)


def test_a_second_backward_pass_is_refused():
    total = linear_cross_entropy(*make())
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        total.backward()


def test_logits_too_large_for_exp_are_no_trouble():
    rows, weight, targets = make(spread=3000.0)
    total, d_rows, d_weight = found(rows, weight, targets)
    assert distance(total, truth(rows, weight, targets)[0]) < 1e-6
    assert d_rows.isfinite().all()
    assert d_weight.isfinite().all()


def test_what_is_not_finite_is_not_hidden():
    """The step refuses to update by it, so it has to show."""
    rows, weight, targets = make()
    with torch.no_grad():
        rows[3, 0] = torch.nan
    assert linear_cross_entropy(rows, weight, targets).isnan()


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, _types, arguments=(), choices=None):
        result = function(*arguments, **(choices or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_no_tensor_holds_more_than_a_chunk_of_logits():
    rows, weight, targets = make(400)
    with Largest() as seen:
        linear_cross_entropy(rows, weight, targets, chunk_rows=32).backward()
    assert seen.numel == 32 * V
    with Largest() as seen:
        plain(rows, weight, targets).backward()
    assert seen.numel == 400 * V


def test_several_threads_give_the_same_bits_each_time():
    """A CPU's index_put_ adds in any order, seen as other bits with many rows of few targets."""
    torch.manual_seed(0)
    rows, weight = torch.randn(3000, 256), torch.randn(64, 256)
    ids = torch.randint(5, (3000,))

    def bits():
        r, w = rows.clone().requires_grad_(), weight.clone().requires_grad_()
        shared = TiedGradient()
        states = embed(ids[None], w, shared).flatten(0, 1) * r
        linear_cross_entropy(states, w, ids, shared=shared).backward()
        return w.grad.numpy().tobytes()

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert len({bits() for _ in range(20)}) == 1
    finally:
        torch.set_num_threads(before)


def by_formula(rows, weight, targets, weights, objective, base):
    """The published formulas, with all the logits."""
    logits = rows @ weight.T
    log_p = logits.log_softmax(1)
    nats = -log_p.gather(1, targets[:, None])[:, 0]
    factor = torch.ones_like(nats)
    if objective.name == "dft":
        factor = (-nats).exp().detach()
    if objective.name == "eaft":
        top = logits.detach().topk(20, dim=1).values.softmax(1)
        factor = -(top * top.log()).sum(1) / math.log(20)
    q = (base[0] @ base[1].T).softmax(1)
    away = (q * (q.log() - log_p)).sum(1)
    z = logits.logsumexp(1).square()
    terms = factor * nats + objective.z_loss * z + objective.kl_base * away
    return (terms if weights is None else weights * terms).sum()


@pytest.mark.parametrize("chunk_rows", [None, 7])
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("kl_base", [0.0, 0.3])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("name", ["nll", "dft", "eaft"])
def test_each_objective_is_its_published_formula(name, z_loss, kl_base, weighed, chunk_rows):
    rows, weight, targets = make(dtype=torch.float64, spread=0.5)
    generator = torch.Generator().manual_seed(1)
    weights = 3 * torch.rand(N, generator=generator, dtype=torch.float64) if weighed else None
    base = make(N + 1, torch.float64)[0].detach()[:N, :5], weight.detach()[:, :5]
    objective = Objective(name, z_loss, kl_base)
    expected = by_formula(rows, weight, targets, weights, objective, base)
    gradients = torch.autograd.grad(expected, (rows, weight))
    how = {"weights": weights, "objective": objective, "base": base}
    ours = found(rows, weight, targets, chunk_rows=chunk_rows, **how)
    for our, theirs in zip(ours, (expected, *gradients), strict=True):
        assert (our - theirs).abs().max() <= 1e-12 * max(1.0, theirs.abs().max().item())
    with torch.no_grad():
        scored = linear_cross_entropy(rows, weight, targets, chunk_rows=chunk_rows, **how)
    assert scored.item() == pytest.approx(expected.item(), rel=1e-13)


def test_weights_of_1_change_no_bit_of_plain_loss_and_gradients():
    batch = make(400)
    plainly, weighed = found(*batch), found(*batch, weights=torch.ones(400))
    assert all(torch.equal(one, other) for one, other in zip(plainly, weighed, strict=True))


def test_weight_2_doubles_loss_and_gradients_in_bfloat16_too():
    rows, weight, targets = make(400)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        once = found(rows, weight, targets)
        twice = found(rows, weight, targets, weights=torch.full((400,), 2.0))
    for one, two in zip(once, twice, strict=True):
        assert distance(two, 2 * one) < 1e-5
