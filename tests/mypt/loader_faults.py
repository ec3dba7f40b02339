"""Known faults of loaders and losses, switched on by patching: each takes (patch, dataset)."""

import numpy as np
import torch

from mypt.data.dataset import Dataset
from mypt.model.gpt import GPT
from mypt.training.batches import order as row_layout
from mypt.training.batches import packed, windows
from mypt.training.batches.shift import Shifted, shift


def shifting(change):
    """Return a fault in the one function that shifts; ``change`` sees what it should give."""

    def fault(patch, dataset):
        def faulty(tokens, mask):
            return change(shift(tokens, mask), tokens, mask, dataset)

        patch.setattr(packed, "shift", faulty)
        patch.setattr(windows, "shift", faulty)

    return fault


def masking(change):
    """Return a fault of the masks alone."""
    return shifting(lambda *given: given[0]._replace(loss_mask=change(*given)))


def viewing(change):
    """Return a fault in what the loader takes for the shards of a split."""

    def fault(patch, _):
        honest = Dataset.shards
        patch.setattr(Dataset, "shards", lambda self, split: change(honest(self, split)))

    return fault


def as_uint32(shards):
    """Read four mask bytes as one number, as if masks were tokens."""
    return tuple(
        view._replace(mask=np.resize(numbers != 0, len(view.mask)).astype(np.uint8))
        for view in shards
        for numbers in [np.asarray(view.mask)[: len(view.mask) // 4 * 4].view("<u4")]
    )


def other_masks(shards):
    masks = [np.asarray(view.mask) for view in shards]
    return tuple(
        view._replace(mask=np.resize(mask, len(view.mask)))
        for view, mask in zip(shards, masks[-1:] + masks[:-1], strict=True)
    )


def batching(change):
    """Return a fault in the packed batches."""

    def fault(patch, _):
        honest = packed.PackedRows.batch
        patch.setattr(packed.PackedRows, "batch", lambda self, n: change(honest(self, n)))

    return fault


def late_pieces(patch, _):
    """Cut every piece one token late, so that it ends with its neighbour's first token."""
    honest = row_layout.plan_rows

    def faulty(dataset, split, *args, **kwargs):
        plan = honest(dataset, split, *args, **kwargs)
        lengths = np.array([len(view.tokens) for view in dataset.shards(split)])
        there = plan.pieces["stop"] < lengths[plan.pieces["shard"]]
        plan.pieces["start"] += there
        plan.pieces["stop"] += there
        return plan

    patch.setattr(row_layout, "plan_rows", faulty)


def losing(change):
    """Return a fault in the loss: ``change`` gives the mask it takes instead."""

    def fault(patch, _):
        honest = GPT.loss

        def faulty(self, idx, targets, loss_mask=None, **kwargs):
            return honest(self, idx, targets, change(loss_mask), **kwargs)

        patch.setattr(GPT, "loss", faulty)

    return fault


def repeated_row(patch, _):
    """Show one packed row twice an epoch and another one never."""
    honest = packed.PackedRows._epoch_order

    def faulty(self, epoch):
        order = honest(self, epoch).copy()
        order[0] = order[-1]
        return order

    patch.setattr(packed.PackedRows, "_epoch_order", faulty)


def forwarding(patch, _):
    """Forget the mask in the forward pass that people call by hand."""
    honest = GPT.forward
    patch.setattr(
        GPT, "forward", lambda self, idx, targets, _, **more: honest(self, idx, targets, **more)
    )


MASKS = "the mask of each target is what spans and policy say"
HEADERS = "no header is supervised"
ENDS = "the ends of turns that the policy supervises are supervised"
SHIFT = "each target is the next input"
WHOLE = "every token of the split is in the epoch or its account"
LEARNED = "every supervised token of the split is in the epoch or its account"
PLANNED = "the batches of an epoch learn each target of the plan once"
UNSUPERVISED = "changing unsupervised targets changes no bit of loss or gradient"
SUPERVISED = "changing a supervised target changes the loss"

FAULTS = {
    "mask not shifted, aligned with inputs": (
        masking(lambda _, __, mask, ___: mask[..., :-1]), {MASKS, HEADERS}),
    "mask shifted twice": (
        masking(
            lambda right, *_: np.concatenate(
                [right.loss_mask[..., 1:], np.zeros_like(right.loss_mask[..., :1])], axis=-1)),
        {MASKS, ENDS}),
    "targets not shifted": (
        shifting(lambda right, *_: Shifted(right.inputs, right.inputs, right.loss_mask)), {SHIFT}),
    "targets shifted twice": (
        shifting(
            lambda right, tokens, mask, _: Shifted(
                right.inputs, np.roll(tokens, -2)[..., :-1], np.roll(mask, -2)[..., :-1])),
        {SHIFT}),
    "stop token taken for padding": (
        masking(
            lambda right, _, __, dataset:
                right.loss_mask * (right.targets != dataset.tokenizer.stop_id)),
        {MASKS, ENDS}),
    "mask inverted by the loader": (
        masking(lambda right, *_: 1 - right.loss_mask), {MASKS, HEADERS, ENDS}),
    "mask forgotten by the loader": (
        masking(lambda right, *_: np.ones_like(right.loss_mask)), {MASKS, HEADERS}),
    "mask read as uint32": (viewing(as_uint32), {MASKS, LEARNED}),
    "mask of another shard read": (viewing(other_masks), {MASKS, PLANNED}),
    "last shard not read": (
        viewing(lambda shards: shards[:-1]), {f"windows: {WHOLE}", f"packed: {WHOLE}"}),
    "a row shown twice and another never": (repeated_row, {PLANNED}),
    "padding learned": (
        batching(
            lambda batch: batch._replace(
                loss_mask=np.where(batch.segments < 0, 1, batch.loss_mask).astype(np.uint8))),
        {"no padding is supervised"}),
    "positions run through a row": (
        batching(
            lambda batch: batch._replace(
                positions=np.broadcast_to(
                    np.arange(batch.positions.shape[1]), batch.positions.shape).copy())),
        {"positions count from 0 in each piece"}),
    "pieces run into their neighbours": (
        late_pieces, {"each piece stands in the dataset, inside one row"}),
    "loss without its mask": (losing(lambda _: None), {UNSUPERVISED}),
    "loss with its mask inverted": (losing(lambda mask: 1 - mask), {UNSUPERVISED, SUPERVISED}),
    "loss with its mask moved": (
        losing(lambda mask: torch.roll(mask, 1, dims=1)), {UNSUPERVISED, SUPERVISED}),
    "forward pass without its mask": (
        forwarding, {"gradient reaches the logits of supervised targets and no others"}),
}  # fmt: skip
"""What each fault does, and the statements of a proof that must fail."""

OF_WEIGHTS = {
    "weights rounded to 0 and 1": (
        masking(lambda right, *_: np.minimum(np.ceil(right.loss_mask), 1)), {MASKS}),
    "indices taken for weights": (
        lambda patch, _: patch.setattr(Dataset, "weights", np.arange(256, dtype=np.float32)),
        {MASKS}),
    "weights of inputs, not of targets": (
        masking(lambda _, __, mask, ___: mask[..., :-1]), {MASKS, HEADERS}),
    "weights lost under packing": (
        batching(
            lambda batch: batch._replace(loss_mask=(batch.loss_mask > 0).astype(np.uint8))),
        {f"packed: {MASKS}"}),
}  # fmt: skip
"""The same where tokens are weighed."""
