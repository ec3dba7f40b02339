"""What must hold on a CUDA GPU as it does on a CPU; skipped where there is none."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from mypt.config import GPTConfig
from mypt.model import attention
from mypt.model.attention import separate
from mypt.model.compiling import compile_blocks
from mypt.model.gpt import GPT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
GPT2 = GPTConfig(block_size=128, vocab_size=1024, n_layer=2, n_head=4, n_embd=128)
MODERN = GPT2.model_copy(
    update={
        "pos_encoding": "rope", "norm_type": "rmsnorm", "mlp_type": "swiglu", "qk_norm": True,
        "n_kv_head": 2, "tie_weights": False,
    }
)  # fmt: skip
BOTH = pytest.mark.parametrize("config", [GPT2, MODERN], ids=["gpt2", "modern"])


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    idx, targets = torch.randint(1024, (2, 4, 128), generator=generator).unbind()
    mask = (torch.rand(4, 128, generator=generator) < 0.3).to(torch.uint8)
    segments = torch.randint(3, (4, 128), generator=generator).sort(dim=1).values
    return [part.cuda() for part in (idx, targets, mask, segments)]


def build(config):
    torch.manual_seed(0)
    return GPT(config).cuda()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters()])


@BOTH
@pytest.mark.parametrize("prune", [True, False])
def test_loss_and_gradients_are_the_seeds_formula(batch, config, prune):
    idx, targets, mask, segments = batch
    model = build(config)
    ours = model.loss(idx, targets, mask, segments=segments, prune_last_block=prune).total
    logits = model(idx, segments=segments)[0]
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    theirs = (losses * mask.flatten()).sum()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    ours, theirs = gradients(model, ours), gradients(model, theirs)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@BOTH
def test_no_conversation_sees_its_neighbour(batch, config):
    idx, _, _, segments = batch
    model = build(config).eval()
    before = model(idx, segments=segments)[0]
    changed = torch.where(segments == 0, (idx + 1) % 1024, idx)
    after = model(changed, segments=segments)[0]
    assert torch.equal(before[segments > 0], after[segments > 0])


@BOTH
def test_one_kernel_for_packed_conversations_gives_what_a_dense_mask_gives(
    batch, config, monkeypatch
):
    idx, targets, mask, segments = batch
    assert separate(segments, head_width=config.head_width).blocks is not None
    losses, slopes = [], []
    for dense in (False, True):
        if dense:
            monkeypatch.setattr(attention, "has_kernel", lambda *_: False)
        model = build(config)
        loss = model.loss(idx, targets, mask, segments=segments).total
        losses.append(loss.item())
        slopes.append(gradients(model, loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert (slopes[0] - slopes[1]).norm() <= 1e-5 * slopes[1].norm()


def test_other_borders_need_no_other_graph(batch):
    idx, targets, mask, segments = batch
    model = build(GPT2)
    model.loss(idx, targets, mask, segments=segments).total.backward()
    before = counters["stats"]["unique_graphs"]
    model.loss(idx, targets, mask, segments=segments.roll(7, dims=1)).total.backward()
    assert counters["stats"]["unique_graphs"] == before


@BOTH
def test_compiled_blocks_give_the_same_loss(batch, config):
    idx, targets, mask, segments = batch
    plain, compiled = build(config), build(config)
    compile_blocks(compiled)
    losses = [m.loss(idx, targets, mask, segments=segments).total.item() for m in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_head_takes_a_fraction_of_the_memory_of_all_logits(batch):
    model = GPT(GPT2.model_copy(update={"vocab_size": 50304})).cuda()
    idx, targets, mask, _ = batch
    peaks = []
    for loss in (
        lambda: model.loss(idx, targets, mask).total,
        lambda: F.cross_entropy(model(idx)[0].flatten(0, 1).float(), targets.flatten()),
    ):
        model.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] < 0.7 * peaks[1]
