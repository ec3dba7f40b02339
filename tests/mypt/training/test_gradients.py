"""Law 3 over ranks: the gradients of a step do not depend on how many processes share it."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor

from mypt.training.distributed import ALONE
from mypt.training.gradients import Share, add_gradients
from mypt.training.lineage import RunContext
from mypt.training.loader import Batch
from mypt.training.run import open_run
from tests.mypt.training.gloo import together

BLOCK = 32
STEP = ((31, 5), (1,), (0, 0), (17, 2, 9))
"""Supervised targets of each row of each micro-batch: dense, sparse, none at all, more rows."""
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}


def batch(*supervised):
    generator = torch.Generator().manual_seed(sum(supervised) + len(supervised))
    tokens = torch.randint(0, 256, (len(supervised), BLOCK + 1), generator=generator)
    mask = torch.stack([(torch.arange(BLOCK) < n).to(torch.uint8) for n in supervised])
    return Batch(tokens[:, :-1], tokens[:, 1:], mask)


BATCHES = [batch(*rows) for rows in STEP]
N_SUPERVISED = sum(map(sum, STEP))


def opened(plan, weights, ranks, **changes):
    torch.set_default_dtype(weights)
    try:
        made = plan(block_size=BLOCK, dropout=0.0, grad_accumulation=len(STEP), **changes)
        run = open_run(made, None, RunContext(), None, (), ranks)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {weight.dtype for weight in run.model.parameters()} == {weights}
    return run


def flat(model):
    grads = [weight.grad for weight in model.parameters()]
    whole = [g.full_tensor() if isinstance(g, DTensor) else g for g in grads]
    return torch.cat([g.flatten() for g in whole])


def gradients(run, ranks):
    micros = ranks.share(len(STEP))
    batches = [BATCHES[micro] for micro in micros]
    places = [one.loss_mask.flatten().nonzero().squeeze(1) for one in batches]
    found, _ = add_gradients(run, Share(micros, batches, places, N_SUPERVISED))
    losses = dict(zip(micros, found.tolist(), strict=True))
    return flat(run.model), ranks.merge(losses, len(STEP))


def means_of_ranks(run, ranks):
    """The seed's formula: every rank divides by its own mask, and the means are averaged."""
    share = ranks.share(len(STEP))
    for one in (BATCHES[micro] for micro in share):
        logits, _ = run.model(one.input_ids)
        losses = F.cross_entropy(logits.flatten(0, 1), one.targets.flatten(), reduction="none")
        mask = one.loss_mask.flatten()
        ((losses * mask).sum() / mask.sum() / len(share)).backward()
    total = flat(run.model)
    torch.distributed.all_reduce(total)
    return total / ranks.size


MODES = {
    "tree": {"reduction": "tree", "parallel": "ddp"},
    "ddp": {"parallel": "ddp"},
    "fsdp": {"parallel": "fsdp"},
    "checkpointed fsdp": {"parallel": "fsdp", "activation_checkpointing": True},
    "checkpointed tree": {"reduction": "tree", "parallel": "ddp", "activation_checkpointing": True},
}


@pytest.fixture(scope="module")
def known():
    """Gradients of one process and of groups of ranks, computed once."""
    return {}


@pytest.fixture
def single(plan, known):
    for dtype in TOLERANCE:
        if (1, dtype) not in known:
            known[1, dtype] = gradients(opened(plan, dtype, ALONE), ALONE)
    return known


def all_modes(plan, ranks):
    found = {}
    for dtype in TOLERANCE:
        for mode, words in MODES.items():
            total, losses = gradients(opened(plan, dtype, ranks, **words), ranks)
            found[f"{mode} {dtype}"] = total.tolist(), losses
    for mode in ("ddp", "fsdp"):
        run = opened(plan, torch.float32, ranks, parallel=mode, dtype="bfloat16")
        used = set()
        run.model.transformer.h[0].mlp.register_forward_pre_hook(
            lambda mlp, _, used=used: used.update(str(w.dtype) for w in mlp.parameters())
        )
        total, losses = gradients(run, ranks)
        assert total.dtype == torch.float32
        found[f"mixed {mode}"] = total.tolist(), losses, sorted(used)
    return found


@pytest.fixture
def of_ranks(plan, known):
    def found(size):
        if size not in known:
            known[size] = together(size, partial(all_modes, plan))
        return known[size]

    return found


def off(found, expected):
    """Largest difference, against the largest gradient."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_together_have_the_gradients_of_one_process(single, of_ranks, size, dtype, mode):
    expected, losses = single[1, dtype]
    for said in of_ranks(size):
        total, theirs = said[f"{mode} {dtype}"]
        assert off(torch.tensor(total, dtype=dtype), expected) <= TOLERANCE[dtype]
        assert theirs == pytest.approx(losses, rel=1e-6)
    assert theirs[2] == 0.0  # the rank without supervision, with four of them


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_mixed_precision_computes_in_bfloat16_and_keeps_float32(single, of_ranks, mode):
    """Near the gradients of float32, and not them; of four ranks, a micro-batch each, the sum is
    not one that bfloat16 can hold."""
    expected, losses = single[1, torch.float32]
    for said in of_ranks(4):
        total, theirs, used = said[f"mixed {mode}"]
        found = torch.tensor(total)
        assert 1e-6 < off(found, expected) < 0.05
        assert (found != found.bfloat16().float()).float().mean() > 0.5
        assert theirs == pytest.approx(losses, rel=1e-2)
        # What FSDP gathers is small already; DDP's weights are cast where they are used.
        assert used == ["torch.bfloat16" if mode == "fsdp" else "torch.float32"]


def test_a_rank_without_any_supervision_takes_its_part_and_adds_nothing(plan, monkeypatch):
    """Pain 2, last half: all that is supervised lies on the other rank."""
    one_sided = [BATCHES[0], BATCHES[3], BATCHES[2], BATCHES[2]]
    monkeypatch.setitem(globals(), "BATCHES", one_sided)
    monkeypatch.setitem(globals(), "N_SUPERVISED", sum(int(b.loss_mask.sum()) for b in one_sided))
    expected, losses = gradients(opened(plan, torch.float64, ALONE), ALONE)

    def both_modes(ranks):
        modes = [opened(plan, torch.float64, ranks, parallel=way) for way in ("ddp", "fsdp")]
        return [(total.tolist(), said) for total, said in (gradients(r, ranks) for r in modes)]

    assert losses[2:] == [0.0, 0.0]
    for said in together(2, both_modes):
        for total, theirs in said:
            assert off(torch.tensor(total, dtype=torch.float64), expected) <= 1e-13
            assert theirs == pytest.approx(losses, rel=1e-6)


def test_a_tree_in_one_process_is_the_same_sum(single, plan):
    for dtype, tolerance in TOLERANCE.items():
        found, _ = gradients(opened(plan, dtype, ALONE, reduction="tree"), ALONE)
        assert off(found, single[1, dtype][0]) <= tolerance


@pytest.mark.parametrize("size", [2, 4])
def test_a_tree_gives_every_bit_at_any_number_of_ranks(of_ranks, plan, size):
    one, _ = gradients(opened(plan, torch.float32, ALONE, reduction="tree"), ALONE)
    for said in of_ranks(size):
        for mode in ("tree", "checkpointed tree"):
            assert said[f"{mode} torch.float32"][0] == one.tolist()


def test_the_mean_of_the_ranks_means_is_another_gradient_and_then_none(plan, monkeypatch):
    """What the seed writes down: far off where masks differ, nan where a mask is empty."""

    def naive(ranks):
        return means_of_ranks(opened(plan, torch.float64, ranks), ranks).tolist()

    wrong, _ = together(2, naive)
    assert torch.tensor(wrong).isnan().all()
    full = [batch(31, 31), batch(1, 0), batch(1, 0), batch(30, 30)]
    monkeypatch.setitem(globals(), "BATCHES", full)
    run = opened(plan, torch.float64, ALONE)
    places = [one.loss_mask.flatten().nonzero().squeeze(1) for one in full]
    add_gradients(run, Share(range(4), full, places, sum(map(len, places))))
    right, (wrong, _) = flat(run.model), together(2, naive)
    assert (torch.tensor(wrong) - right).norm() / right.norm() > 0.5
