"""Packed rows whose pieces read their system message again."""

import numpy as np

from mypt.data.packing.layout import plan_rows
from mypt.provenance.row_counts import RowCounts, count_packed
from mypt.training.batches.packed import PackedRows
from tests.mypt.data.handmade import dataset, shard

U, A, S = "user", "assistant", "system"
TALK = [(S, 4), (U, 3), (A, 4), (U, 3), (A, 4)]


def packed(policy, *, masked=True, talks=(TALK,)):
    data = dataset(shard(talks, masked=masked))
    plan = plan_rows(data, "train", 10, policy, use_loss_mask=masked)
    rows = PackedRows(
        data, "train", plan, batch_size=8, grad_accumulation=1, use_loss_mask=masked, seed=0
    )
    return data, rows


def by_first_target(batch):
    """Inputs, targets and mask of the rows, the row of the later piece last."""
    order = np.argsort(batch.targets.max(axis=1))
    return [values[order].tolist() for values in (batch.input_ids, batch.targets, batch.loss_mask)]


def test_a_piece_reads_its_system_message_again_and_does_not_learn_it():
    _, rows = packed("keep_system")
    inputs, targets, mask = by_first_target(rows.batch(0))
    assert inputs == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [1, 2, 3, 4, 12, 13, 14, 15, 16, 17]]
    assert targets == [[2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [2, 3, 4, 12, 13, 14, 15, 16, 17, 18]]
    assert mask == [[0, 0, 0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]]
    assert rows.batch(0).positions.tolist() == [list(range(10))] * 2


def test_without_masks_all_but_the_repeated_message_is_learned():
    _, rows = packed("keep_system", masked=False)
    _, _, mask = by_first_target(rows.batch(0))
    assert mask == [[1] * 10, [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]]
    assert rows.plan.total.supervised == 17


def test_places_and_counts_say_what_was_read_and_learned():
    data, rows = packed("keep_system", talks=[TALK, TALK[:3], TALK[1:]])
    batch = rows.batch(0)
    read = {(place.start, place.stop, *place.system) for found in rows.places(0) for place in found}
    begun = {(0, 11, 0, 0), (11, 18, 0, 4), (18, 29, 18, 18)}
    assert read == begun | {(29, 36, 29, 29), (36, 43, 29, 29)}
    counts = {0: RowCounts(*(np.zeros(3, np.int64) for _ in RowCounts._fields))}
    count_packed(rows, data.shards("train"), rows.batches_per_epoch, counts, masked=True)
    assert counts[0].learned.sum() == batch.loss_mask.sum() == rows.plan.total.supervised
    assert counts[0].read.tolist() == [11 + 4 + 7, 11, 14]
