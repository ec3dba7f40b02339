"""The GPT: the seed's contract, isolation of packed conversations, padding."""

import pytest
import torch
import torch.nn.functional as F

from mypt.config import GPTConfig
from mypt.model.gpt import GPT

TINY = GPTConfig(block_size=32, vocab_size=61, n_layer=2, n_head=2, n_embd=16, bias=True)
A, X = list(range(1, 8)), list(range(20, 31))


def tiny(**changes):
    torch.manual_seed(0)
    return GPT(TINY.model_copy(update=changes)).eval()


def ids(*rows):
    return torch.tensor(rows)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    idx = torch.randint(TINY.vocab_size, (2, 32), generator=generator)
    targets = torch.randint(TINY.vocab_size, (2, 32), generator=generator)
    mask = torch.zeros(2, 32, dtype=torch.uint8)
    mask[0, 4] = 1
    mask[1, :31] = 1
    return idx, targets, mask


def gradients(model, idx, targets, mask, count):
    model.zero_grad()
    for row, target, row_mask in zip(idx, targets, mask, strict=True):
        (model.loss(row, target, row_mask).total / count(row_mask)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_forward_gives_the_mean_of_the_seeds_formula_in_float64(batch):
    idx, targets, mask = batch
    model = tiny().double()
    logits, loss = model(idx, targets, loss_mask=mask)
    per_token = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    expected = (per_token * mask.flatten()).sum() / mask.sum()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    assert model(idx, targets)[1].item() == pytest.approx(per_token.mean().item(), abs=1e-12)


def test_forward_without_targets_gives_all_logits_and_no_loss(batch):
    logits, loss = tiny()(batch[0])
    assert logits.shape == (2, 32, TINY.vocab_size)
    assert loss is None


def test_the_training_path_gives_the_same_loss_without_all_logits(batch):
    model = tiny().double()
    loss = model.loss(*batch)
    assert loss.weight == 32
    assert loss.mean.item() == pytest.approx(model(*batch)[1].item(), abs=1e-12)


def test_a_batch_without_supervised_token_has_no_mean(batch):
    idx, targets, mask = batch
    assert tiny()(idx, targets, torch.zeros_like(mask))[1].isnan()


def test_a_mask_without_targets_is_refused(batch):
    with pytest.raises(ValueError, match="without targets"):
        tiny()(batch[0], loss_mask=batch[2])


def test_a_row_longer_than_the_block_is_refused():
    with pytest.raises(ValueError, match="33 tokens do not fit block_size 32"):
        tiny()(torch.zeros(1, 33, dtype=torch.int64))


def test_accumulated_gradients_weigh_each_token_once(batch):
    """Pain 1: rows of 1 and 31 supervised tokens, whole or one at a time."""
    model = tiny().double()
    idx, targets, mask = batch
    whole = gradients(model, idx[None], targets[None], mask[None], lambda m: m.sum())
    split = gradients(model, idx[:, None], targets[:, None], mask[:, None], lambda _: 32)
    means = gradients(model, idx[:, None], targets[:, None], mask[:, None], lambda m: 2 * m.sum())
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-12)
    assert (means - whole).norm() > 1e-2


def test_changing_an_unsupervised_target_changes_no_bit(batch):
    idx, targets, mask = batch
    model = tiny()
    before = gradients(model, idx[None], targets[None], mask[None], lambda m: m.sum())
    changed = torch.where(mask == 0, (targets + 1) % TINY.vocab_size, targets)
    after = gradients(model, idx[None], changed[None], mask[None], lambda m: m.sum())
    assert torch.equal(before, after)
    moved = torch.where(mask == 1, (targets + 1) % TINY.vocab_size, targets)
    other = gradients(model, idx[None], moved[None], mask[None], lambda m: m.sum())
    assert not torch.equal(before, other)


def test_the_future_changes_no_bit_of_the_past(batch):
    idx = batch[0]
    changed = idx.clone()
    changed[:, 20:] += 1
    changed %= TINY.vocab_size
    model = tiny()
    assert torch.equal(model(idx)[0][:, :20], model(changed)[0][:, :20])
    assert not torch.equal(model(idx)[0][:, 20:], model(changed)[0][:, 20:])


def test_packed_conversations_give_the_losses_they_give_alone():
    """Pain 4, first half."""
    model = tiny()
    segments = ids([0] * len(A) + [1] * len(X))
    packed = model(ids(A + X), segments=segments)[0][0]
    alone = torch.cat([model(ids(A))[0][0], model(ids(X))[0][0]])
    targets = ids([*A[1:], 0, *X[1:], 0])[0]
    torch.testing.assert_close(
        F.cross_entropy(packed, targets, reduction="none"),
        F.cross_entropy(alone, targets, reduction="none"),
        rtol=0,
        atol=1e-5,
    )
    naive = model(ids(A + X))[0][0]
    assert (naive - alone)[len(A) :].abs().max() > 1e-3


@pytest.mark.parametrize("first", [True, False])
def test_changing_one_conversation_changes_no_bit_of_the_other(first):
    """Pain 4, second half: bitwise, every logit, every token, in both directions."""
    model = tiny()
    segments = ids([0] * len(A) + [1] * len(X))
    mine, other = (slice(0, len(A)), slice(len(A), None))[:: 1 if first else -1]
    before = model(ids(A + X), segments=segments)[0][0]
    row = ids(A + X)
    for place in range(row.shape[1])[mine]:
        changed = row.clone()
        changed[0, place] = 60
        after = model(changed, segments=segments)[0][0]
        assert torch.equal(before[other], after[other])
        assert not torch.equal(before[place], after[place])


def test_conversations_are_told_apart_by_segment_not_by_any_token():
    """Pain 5: the end token thrice inside one conversation begins no other."""
    model, end = tiny(), 60
    row = ids([1, end, 2, end, 3, end])
    one = model(row, segments=ids([4] * 6))[0]
    assert torch.equal(one, model(row, segments=ids([0] * 6))[0])
    torch.testing.assert_close(one, model(row)[0])
    two = model(row, segments=ids([0, 0, 1, 1, 1, 1]))[0]
    assert not torch.allclose(one[0, 2:], two[0, 2:])


def test_positions_restart_with_each_segment_unless_given():
    model = tiny()
    row, segments = ids([7, 7, 7, 7]), ids([0, 0, 1, 1])
    derived = model(row, segments=segments)[0]
    given = model(row, segments=segments, positions=ids([0, 1, 0, 1]))[0]
    counted_on = model(row, segments=segments, positions=ids([0, 1, 2, 3]))[0]
    assert torch.equal(derived, given)
    assert not torch.equal(derived, counted_on)


@pytest.mark.parametrize("padding", [0, 7, 21])
def test_padding_on_the_right_changes_neither_loss_nor_gradient(padding):
    """Pain 16; and pain 7: the pad is the stop token, yet the real one is learned."""
    stop = 60
    row, target, mask = A, [*A[1:], stop], [0, 0, 0, 1, 1, 1, 1]
    padded = [ids(v + [p] * padding) for v, p in ((row, stop), (target, stop), (mask, 0))]
    model = tiny().double()
    alone, long = model.loss(ids(row), ids(target), ids(mask)), model.loss(*padded)
    assert long.weight == alone.weight == 4
    assert long.total.item() == pytest.approx(alone.total.item(), abs=1e-10)
    grads = [torch.autograd.grad(loss.total, list(model.parameters())) for loss in (alone, long)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_a_model_trained_on_one_answer_learns_to_stop():
    """Pain 7: pad equals stop, and after a few steps the stop follows the answer."""
    torch.manual_seed(0)
    model, stop = GPT(TINY), 60
    row, target = ids([1, 2, 3, 4, *[stop] * 12]), ids([2, 3, 4, stop, *[stop] * 12])
    mask = ids([0, 0, 1, 1, *[0] * 12])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        model.loss(row, target, mask).mean.backward()
        optimizer.step()
    assert model(row)[0][0, 3].softmax(-1)[stop] > 0.9


def test_weights_start_as_gpt2s_and_are_tied():
    torch.manual_seed(0)
    config = TINY.model_copy(update={"n_embd": 128, "n_layer": 8})
    model = GPT(config)
    block = model.transformer.h[3]
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.transformer.wpe.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
    assert not block.mlp.c_fc.bias.any()
    assert torch.equal(block.ln_1.weight, torch.ones(128))


def test_bias_is_an_option_of_linears_and_norms():
    names = [name for name, _ in tiny(bias=False).named_parameters()]
    assert not [name for name in names if name.endswith("bias")]
    assert len([n for n, _ in tiny().named_parameters() if n.endswith("bias")]) == 2 * 6 + 1


def test_dropout_acts_in_training_only(batch):
    model = tiny(dropout=0.5)
    assert torch.equal(model(batch[0])[0], model(batch[0])[0])
    model.train()
    assert not torch.equal(model(batch[0])[0], model(batch[0])[0])
