"""The loader: windows and packed rows as pure functions of dataset, seed and step."""

import shutil

import numpy as np
import pytest
import torch

from mypt.config import GPTConfig
from mypt.errors import ConfigError, DataError, ManifestError, MaskError
from mypt.model.gpt import GPT
from mypt.training.loader import GPTDataLoader
from tests.mypt.data.handmade import dataset, make_view, shard

U, A = "user", "assistant"


def stream(n, first=0, mask=None, **where):
    """Return a shard made by hand whose ids count on from ``first``."""
    return make_view(np.arange(first, first + n), mask, None, None, **where)


def loader(data, **changes):
    settings = {"batch_size": 4, "block_size": 8, "seed": 1, **changes}
    return GPTDataLoader(data, **settings)


def packed(data, **changes):
    return loader(data, use_loss_mask=True, batching="packed", **changes)


def talks(seed, n=30):
    draw = np.random.default_rng(seed)
    return [[(U, int(draw.integers(2, 9))), (A, int(draw.integers(2, 9)))] for _ in range(n)]


def same(one, other):
    pairs = zip(one, other, strict=True)
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


def flat_epoch(found, epoch=0, split="train", micros=1):
    steps = found.epoch(split).steps
    for step in range(epoch * steps, (epoch + 1) * steps):
        for micro in range(micros):
            yield found.batch_at(split, step, micro)


def conversations_of(batch):
    """Return the (inputs, targets, mask) of every packed piece of a batch."""
    pieces = []
    for b in range(len(batch.input_ids)):
        for number in range(int(batch.segments[b].max()) + 1):
            there = batch.segments[b] == number
            parts = (batch.input_ids, batch.targets, batch.loss_mask)
            assert batch.positions[b][there].tolist() == list(range(int(there.sum())))
            pieces.append(tuple(tuple(part[b][there].tolist()) for part in parts))
    return pieces


def test_targets_are_the_tokens_that_follow_and_no_window_crosses_a_shard():
    data = dataset(stream(40), stream(30, first=1000, number=1))
    found = loader(data)
    for step in range(50):
        batch = found.batch_at("train", step)
        assert batch.input_ids.dtype == batch.targets.dtype == torch.int64
        assert batch.input_ids.shape == batch.targets.shape == (4, 8)
        assert torch.equal(batch.targets, batch.input_ids + 1)
        assert torch.equal(batch.input_ids, batch.input_ids[:, :1] + torch.arange(8))
        assert batch.loss_mask is batch.positions is batch.segments is None


@pytest.mark.parametrize("k", range(10))
def test_the_mask_belongs_to_the_target(k):
    """Pain 15: one supervised token, at each place in turn; the first can be no target."""
    mask = np.zeros(10, np.uint8)
    mask[k] = 1
    data = dataset(stream(10, first=10, mask=mask))
    _, y, found = loader(data, block_size=9, batch_size=1, use_loss_mask=True).get_batch("train")
    assert y[found == 1].tolist() == ([10 + k] if k else [])
    assert found.dtype == torch.uint8


def test_every_window_can_be_drawn_and_the_last_token_too():
    found = loader(dataset(stream(12)), batch_size=64)
    starts = {int(row[0]) for step in range(4) for row in found.batch_at("train", step).input_ids}
    assert starts == {0, 1, 2, 3}


def test_the_draws_are_the_same_on_every_machine():
    """Pain 26: written down once, so that no process, machine or version draws others."""
    streams = dataset(stream(1000), stream(900, first=5000, number=1))
    drawn = loader(streams, batch_size=6, seed=7).batch_at("train", 300).input_ids[:, 0]
    assert drawn.tolist() == [252, 680, 908, 5180, 5782, 5841]
    chat = dataset(shard([[(U, 4), (A, 5)]] * 8))
    ordered = [int(batch.input_ids[0, 0]) for batch in flat_epoch(packed(chat, batch_size=1))]
    assert ordered == [46, 64, 55, 28, 19, 10, 1, 37]


def test_batches_depend_on_seed_and_step_alone():
    data = dataset(stream(500), stream(300, number=1, source=1))
    one, other = loader(data), loader(data)
    backwards = {step: other.batch_at("train", step) for step in (600, 3, 0)}
    assert all(same(one.batch_at("train", step), batch) for step, batch in backwards.items())
    assert not same(one.batch_at("train", 0), one.batch_at("train", 1))
    assert not same(one.batch_at("train", 0), loader(data, seed=2).batch_at("train", 0))


def test_micro_batches_of_a_step_are_counted_through():
    data = dataset(stream(500))
    three = loader(data, grad_accumulation=3)
    assert same(three.batch_at("train", 2, 1), loader(data).batch_at("train", 7))
    with pytest.raises(ValueError, match="micro-batch 3 of a step of 3"):
        three.batch_at("train", 0, 3)


def test_get_batch_counts_each_split_for_itself():
    mask = np.ones(100, np.uint8)
    found = loader(dataset(stream(100, mask=mask), stream(100, mask=mask, split="val")),
                   use_loss_mask=True)  # fmt: skip
    first = found.get_batch("train")
    for _ in range(5):
        found.get_batch("val")
    second = found.get_batch("train")
    assert len(first) == 3
    assert same(first, found.batch_at("train", 0)[:3])
    assert same(second, found.batch_at("train", 1)[:3])
    assert len(loader(dataset(stream(100, mask=mask))).get_batch("train")) == 2


def test_a_source_is_drawn_as_often_as_its_weight_says():
    """Weights multiply the natural share: 100 windows at 3 beside 200 windows at 1."""
    data = dataset(stream(108), stream(208, first=1000, number=1, source=1), weights=(3.0, 1.0))
    ids = torch.cat([loader(data).batch_at("train", s).input_ids[:, 0] for s in range(1000)])
    assert (ids < 1000).float().mean().item() == pytest.approx(300 / 500, abs=0.03)


def test_a_shard_shorter_than_a_window_is_skipped_and_counted():
    found = loader(dataset(stream(100), stream(8, first=1000, number=1)))
    assert found.epoch("train").tokens == found.tokens_per_epoch == 100
    assert found.epoch("train").skipped == 8
    assert all(found.batch_at("train", step).input_ids.max() < 1000 for step in range(20))


def test_a_split_of_short_shards_gives_shorter_windows_and_says_so():
    found = loader(dataset(stream(8)))
    assert [part.shape[1] for part in found.get_batch("train")] == [7, 7]
    assert found.notes == ("train: windows of 7 tokens, no shard holds block_size 8 + 1",)
    assert loader(dataset(stream(100))).notes == ()


def test_a_split_without_a_single_target_is_refused():
    with pytest.raises(DataError, match="longest shard has 1 tokens, a window needs 2"):
        loader(dataset(stream(1)))


def test_missing_masks_are_an_error_that_names_files_and_both_ways_out():
    """The seed's troubleshooting 1: here nothing trains on everything in silence."""
    data = dataset(stream(100, mask=np.ones(100, np.uint8)), stream(100, number=1))
    with pytest.raises(MaskError) as caught:
        loader(data, use_loss_mask=True)
    for part in ("train/shard_001_mask.bin", "1 of 2", "mypt mask", "use_loss_mask: false"):
        assert part in str(caught.value)
    assert "shard_000_mask" not in str(caught.value)
    assert len(loader(data).get_batch("train")) == 2


def test_masks_of_nothing_but_zeros_are_an_error():
    """The seed's troubleshooting 3, before the loss is nan."""
    for batching in ("windows", "packed"):
        with pytest.raises(MaskError, match="masks of train are all zero"):
            loader(dataset(shard([[(U, 9)]] * 20)), use_loss_mask=True, batching=batching)


def test_a_split_that_is_not_there_is_an_error_and_never_the_other_one():
    found = loader(dataset(stream(100)))
    for ask in (found.get_batch, found.epoch, lambda split: found.batch_at(split, 0)):
        with pytest.raises(DataError, match="no rows in its split 'val'"):
            ask("val")


def test_an_unknown_batching_is_refused():
    with pytest.raises(ConfigError, match="'window' found"):
        loader(dataset(stream(100)), batching="window")


@pytest.mark.parametrize("micros", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_an_epoch_holds_each_conversation_once_with_its_own_mask(seed, micros):
    made = talks(seed)
    data = dataset(shard(made[:20]), shard(made[20:], number=1, first=5000))
    found = packed(data, block_size=24, grad_accumulation=micros)
    expected = []
    for view in data.views:
        for row in view.rows:
            tokens = view.tokens[int(row["start"]) : int(row["stop"])].tolist()
            mask = view.mask[int(row["start"]) : int(row["stop"])].tolist()
            expected.append((tuple(tokens[:-1]), tuple(tokens[1:]), tuple(mask[1:])))
    orders = []
    for epoch in range(2):
        seen = [p for batch in flat_epoch(found, epoch, micros=micros)
                for p in conversations_of(batch)]  # fmt: skip
        assert sorted(seen) == sorted(expected)
        orders.append(seen)
    assert orders[0] != orders[1]


def test_two_seeds_order_an_epoch_differently():
    data = dataset(shard(talks(0)))
    one, again, other = (packed(data, block_size=24, seed=seed) for seed in (1, 1, 2))
    assert all(map(same, flat_epoch(one), flat_epoch(again)))
    assert not all(map(same, flat_epoch(one), flat_epoch(other)))


def test_padding_is_never_supervised_and_a_segment_of_its_own():
    found = packed(dataset(shard(talks(1))), block_size=24)
    n_padding = 0
    for batch in flat_epoch(found):
        padding = batch.segments == -1
        n_padding += int(padding.sum())
        assert not batch.loss_mask[padding].any()
        assert not batch.input_ids[padding].any()
        assert (batch.input_ids[~padding] > 0).all()
    rows = sum(len(batch.input_ids) for batch in flat_epoch(found))
    assert n_padding == rows * 24 - found.tokens_per_epoch > 0


def test_without_a_mask_every_target_inside_a_conversation_is_learned():
    found = loader(dataset(shard(talks(1), masked=False)), block_size=24, batching="packed")
    for batch in flat_epoch(found):
        assert torch.equal(batch.loss_mask == 1, batch.segments >= 0)


def test_five_micro_batches_make_three_steps_of_two_and_six_in_two_epochs():
    """Pains 3 and 32: the plan is known before the run; no rest leaks into the next epoch."""
    data = dataset(shard([[(U, 4), (A, 5)]] * 5))
    found = packed(data, batch_size=1, block_size=8, grad_accumulation=2)
    assert found.epoch("train").steps == 3
    for epoch in range(2):
        batches = list(flat_epoch(found, epoch, micros=2))
        assert len(batches) == 6
        assert len({p for batch in batches for p in conversations_of(batch)}) == 5
        assert sum(int(batch.loss_mask.sum()) for batch in batches) == 5 * 4
        assert sorted(int(batch.loss_mask.sum()) for batch in batches)[:2] == [0, 4]


@pytest.mark.parametrize("n", [1, 3, 31, 32, 33, 65])
def test_rows_are_spread_evenly_and_the_shape_stays(n):
    found = packed(dataset(shard([[(U, 4), (A, 5)]] * n)), batch_size=32)
    batches = list(flat_epoch(found))
    assert len(batches) == -(-n // 32)
    assert len({batch.input_ids.shape for batch in batches}) == 1
    sizes = [len(conversations_of(batch)) for batch in batches]
    assert sum(sizes) == n
    assert max(sizes) - min(sizes) <= 1


def test_packed_rows_are_not_given_without_what_keeps_them_apart():
    with pytest.raises(ConfigError, match=r"batch_at\(split, step\)"):
        packed(dataset(shard(talks(0))), block_size=24).get_batch("train")


def test_a_packed_batch_has_the_loss_of_its_conversations_alone():
    """Pain 4 through the loader: sums and counts agree, row by row of the dataset."""
    data = dataset(shard(talks(2)))
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=24, vocab_size=600, n_layer=2, n_head=2, n_embd=16)).eval()
    total, count = 0.0, 0
    for batch in flat_epoch(packed(data, block_size=24)):
        loss = model.loss(*batch[:3], positions=batch.positions, segments=batch.segments)
        total, count = total + loss.total.item(), count + loss.weight.item()
    view, alone = data.views[0], 0.0
    for row in view.rows:
        place = slice(int(row["start"]), int(row["stop"]))
        tokens = torch.from_numpy(view.tokens[place].astype(np.int64))[None]
        mask = torch.from_numpy(view.mask[place])[None]
        alone += model.loss(tokens[:, :-1], tokens[:, 1:], mask[:, 1:]).total.item()
    assert count == int(view.mask.sum())
    assert total == pytest.approx(alone, rel=1e-6)


def test_the_account_of_a_block_size_is_there_for_the_report():
    epoch = packed(dataset(shard(talks(0))), block_size=24).epoch("train")
    (account,) = epoch.accounts
    assert account.tokens == account.supervised + account.unsupervised
    assert 0.9 < epoch.fill <= 1


@pytest.mark.parametrize("batching", ["windows", "packed"])
def test_a_prepared_dataset_is_batched_from_disk(chat_dataset, batching):
    found = loader(chat_dataset, use_loss_mask=True, batching=batching, block_size=24)
    batch, tokenizer = found.batch_at("train", 0), found.dataset.tokenizer
    assert torch.equal(found.batch_at("train", 0).targets, batch.targets)
    learned = tokenizer.decode(batch.targets[batch.loss_mask == 1].tolist())
    assert "it is</Assistant>" in learned
    assert "say" not in learned
    assert "<Assistant>" not in learned


def test_a_dataset_that_changed_is_not_loaded(chat_dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(chat_dataset, copy)
    mask = copy / "train" / "shard_000_mask.bin"
    mask.write_bytes(mask.read_bytes()[:-1])  # the seed's troubleshooting 2
    with pytest.raises(ManifestError, match=r"bytes found, .* expected"):
        loader(copy, use_loss_mask=True)
