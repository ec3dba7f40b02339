"""Law 3 on hand-made batches: every supervised token of a step weighs the same."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mypt.data.shards import TokenRange
from mypt.training import step
from mypt.training.claim import claim
from mypt.training.lineage import RunContext
from mypt.training.loader import Batch
from mypt.training.run import open_run
from mypt.training.step import take_step


class Rows:
    """A loader of given rows: ``batches[micro]`` at every step."""

    def __init__(self, *batches):
        self.batches = batches

    def batch_at(self, _split, _step, micro):
        return self.batches[micro]

    def places_at(self, _split, _step, micro):
        record = SimpleNamespace(tokens=SimpleNamespace(name="by hand"), source=0)
        row = TokenRange(SimpleNamespace(record=record, spans=None), 0, 33)
        return [[row]] * len(self.batches[micro].targets)


def batch(*supervised, block=32):
    """Rows of ``block`` tokens whose first n targets are supervised."""
    generator = torch.Generator().manual_seed(len(supervised))
    tokens = torch.stack(
        [
            torch.randint(0, 256, (block + 1,), generator=generator.manual_seed(n + 1))
            for n in supervised
        ]
    )
    mask = torch.stack([(torch.arange(block) < n).to(torch.uint8) for n in supervised])
    return Batch(tokens[:, :-1], tokens[:, 1:], mask)


@pytest.fixture
def gradients(plan):
    """The gradient that a step of these micro-batches gives, by one step of plain SGD."""

    def step(name, *batches):
        made = plan(
            name, block_size=32, dropout=0.0, grad_clip=0.0, grad_accumulation=len(batches),
            warmup_iters=0, learning_rate=1.0,
        )  # fmt: skip
        with claim(made, RunContext()) as folder:
            run = open_run(made, folder, RunContext(), None, ())
            run.model.double()
            run.optimizer = torch.optim.SGD(run.model.parameters())
            run.loader = Rows(*batches)
            before = [p.detach().clone() for p in run.model.parameters()]
            report = take_step(run)
        after = run.model.parameters()
        return report, torch.cat([(a - b).flatten() for a, b in zip(before, after, strict=True)])

    return step


def test_accumulation_gives_the_gradient_of_the_whole_batch(gradients):
    together, whole = gradients("a", batch(1, 31))
    apart, summed = gradients("b", batch(1), batch(31))
    assert torch.allclose(whole, summed, rtol=0, atol=1e-6 * whole.abs().max().item())
    assert apart.loss == pytest.approx(together.loss, rel=1e-6)
    assert apart.supervised == together.supervised == 32
    sparse, dense = gradients("c", batch(1))[1], gradients("d", batch(31))[1]
    mean_of_means = (sparse + dense) / 2
    assert (mean_of_means - whole).norm() > 1e-2 * whole.norm()


def test_a_micro_batch_without_supervision_adds_nothing(gradients):
    _, alone = gradients("a", batch(5))
    report, with_empty = gradients("b", batch(5), batch(0))
    assert torch.equal(alone, with_empty)
    assert report.supervised == 5
    assert report.tokens == 64


def test_a_step_without_supervision_touches_nothing_and_says_so(plan):
    made = plan(block_size=32, grad_accumulation=1)
    with claim(made, RunContext()) as folder:
        run = open_run(made, folder, RunContext(), None, ())
        run.loader = Rows(batch(3, 4))
        take_step(run)
        weights = [p.detach().clone() for p in run.model.parameters()]
        moments = [
            {key: value.clone() for key, value in state.items()}
            for state in run.optimizer.state.values()
        ]
        run.loader = Rows(batch(0, 0))
        report = take_step(run)
    assert report.supervised == 0
    assert math.isnan(report.loss)
    assert (run.state.step, run.state.empty_steps, run.state.supervised) == (2, 1, 7)
    assert all(torch.equal(a, b) for a, b in zip(weights, run.model.parameters(), strict=True))
    for before, after in zip(moments, run.optimizer.state.values(), strict=True):
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in run.model.parameters())


def test_clipping_bounds_the_step_and_reports_the_norm_as_it_was(plan):
    norms = []
    for name, limit in (("a", 0.0), ("b", 1e-3)):
        made = plan(name, block_size=32, grad_accumulation=1, dropout=0.0, grad_clip=limit)
        with claim(made, RunContext()) as folder:
            run = open_run(made, folder, RunContext(), None, ())
            run.loader = Rows(batch(3, 4))
            run.optimizer.step = lambda run=run: norms.append(
                torch.nn.utils.get_total_norm([p.grad for p in run.model.parameters()]).item()
            )
            report = take_step(run)
        norms.append(report.grad_norm)
    unclipped, reported, clipped, reported_too = norms
    assert unclipped == pytest.approx(reported) == pytest.approx(reported_too)
    assert clipped == pytest.approx(1e-3, rel=1e-2)


def test_pruning_the_last_block_is_a_switch_that_changes_no_result(plan):
    """The two ways agree to rounding; the events of a run cannot tell them apart."""
    found, widths = {}, {}
    for name, prune in (("a", True), ("b", False)):
        made = plan(name, block_size=32, grad_accumulation=1, dropout=0.0, prune_last_block=prune)
        with claim(made, RunContext()) as folder:
            run = open_run(made, folder, RunContext(), None, ())
            run.loader = Rows(batch(3, 4))
            seen = widths[prune] = []
            run.model.transformer.h[-1].mlp.register_forward_pre_hook(
                lambda _mlp, inputs, seen=seen: seen.append(inputs[0].numel() // 16)
            )
            report = take_step(run)
            found[prune] = report.loss, report.grad_norm
    assert widths == {True: [7], False: [64]}
    assert found[True] == pytest.approx(found[False], rel=1e-6)


class Queue(TorchDispatchMode):
    """Notes what would make a host wait for its device."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique_consecutive"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_a_device_gets_each_batch_after_the_host_counted_and_is_asked_last(plan, monkeypatch):
    seen, true_to, true_norm, true_tolist = [], Batch.to, step._norm, torch.Tensor.tolist

    def asked(tensor):  # on a CPU no operation, on a GPU a wait
        seen.append("asked")
        return true_tolist(tensor)

    def sent(one, device):
        seen.append("sent")
        return true_to(one, device)

    def queued(run):
        norm = true_norm(run)
        seen.append("queued")
        return norm

    monkeypatch.setattr(Batch, "to", sent)
    monkeypatch.setattr(step, "_norm", queued)
    # pruned, a CPU's last block looks how many rows to gather, which a GPU's does not
    made = plan(block_size=32, grad_accumulation=3, dropout=0.0, prune_last_block=False)
    with claim(made, RunContext()) as folder:
        run = open_run(made, folder, RunContext(), None, ())
        run.loader = Rows(batch(3, 4), batch(0, 0), batch(5, 1))
        monkeypatch.setattr(torch.Tensor, "tolist", asked)
        with Queue(seen):
            take_step(run)
    before, after = seen[: seen.index("sent")], seen[seen.index("sent") :]
    assert before.count("nonzero") == 3, "the host counts supervised tokens of every micro-batch"
    assert after[:4] == ["sent", "sent", "queued", "asked"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("batching", ["windows", "packed"])
def test_a_gpu_is_not_waited_for_before_all_of_a_step_is_queued(plan, monkeypatch, batching):
    made = plan(device="cuda", batching=batching, grad_accumulation=3, dropout=0.0)
    true_add, true_norm = step.add_gradients, step._norm

    def strict(run, share):
        torch.cuda.set_sync_debug_mode("error")
        return true_add(run, share)

    def lenient(run):
        norm = true_norm(run)
        torch.cuda.set_sync_debug_mode("default")
        return norm

    with claim(made, RunContext()) as folder:
        run = open_run(made, folder, RunContext(), None, ())
        take_step(run)  # kernels are compiled and memory is found at the first
        monkeypatch.setattr(step, "add_gradients", strict)
        monkeypatch.setattr(step, "_norm", lenient)
        try:
            assert math.isfinite(take_step(run).loss)
        finally:
            torch.cuda.set_sync_debug_mode("default")
