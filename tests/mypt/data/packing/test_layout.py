"""Rows of whole conversations, and the account of what they leave out."""

import numpy as np
import pytest

from mypt.data.packing.accounts import BEFORE, FIRST, LONGER, NOTHING, TAIL
from mypt.data.packing.layout import plan_rows
from mypt.errors import DataError
from tests.mypt.data.handmade import dataset, make_view, shard

U, A = "user", "assistant"
SHORT = [(U, 4), (A, 5)]


def losses(entries):
    return {lost.reason: (lost.rows, lost.tokens, lost.supervised) for lost in entries}


def draw_conversations(seed, n=40, longest=30):
    draw = np.random.default_rng(seed)
    talks = []
    for _ in range(n):
        if draw.random() < 0.2:
            talks.append([("text", int(draw.integers(1, 3 * longest)))])
        else:
            roles = draw.choice([U, A, "tool", "system"], size=int(draw.integers(1, 8)))
            talks.append([(str(role), int(draw.integers(2, longest))) for role in roles])
    return talks


def test_each_conversation_lies_in_one_row_once():
    talks = [[(U, 3), (A, int(n))] for n in np.random.default_rng(0).integers(2, 12, size=50)]
    plan = plan_rows(dataset(shard(talks[:20]), shard(talks[20:], number=1)), "train", 20)
    found = sorted(map(tuple, plan.pieces.tolist()))
    whole = []
    for number, part in enumerate((talks[:20], talks[20:])):
        start = 0
        for (_, asked), (_, answered) in part:
            whole.append((number, start, start + asked + answered))
            start += asked + answered
    assert found == whole


def test_no_row_holds_more_than_a_block():
    plan = plan_rows(dataset(shard(draw_conversations(1))), "train", 24)
    places = plan.pieces["stop"] - plan.pieces["start"] - 1
    filled = np.add.reduceat(places, plan.row_offsets[:-1])
    assert (places >= 1).all()
    assert 1 <= filled.min() <= filled.max() <= 24
    assert plan.fill == filled.sum() / (plan.n_rows * 24)


def test_a_conversation_of_one_token_more_than_the_block_fills_a_row():
    plan = plan_rows(dataset(shard([SHORT])), "train", 8)
    assert (plan.n_rows, plan.fill) == (1, 1.0)


@pytest.mark.parametrize("policy", ["split", "keep_system", "drop", "keep_last_turns"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_every_token_is_accounted_for_exactly_once(policy, masked, seed):
    talks = draw_conversations(seed)
    data = dataset(shard(talks[:25]), shard(talks[25:], number=1, source=1))
    plan = plan_rows(data, "train", 24, policy, use_loss_mask=masked)
    for view, entry in zip(data.views, plan.accounts, strict=True):
        lost = (*entry.dropped, *entry.cut)
        assert entry.tokens == view.record.n_tokens
        assert entry.tokens == entry.supervised + entry.unsupervised + sum(x.tokens for x in lost)
        assert entry.rows == view.record.n_rows
        assert entry.rows == entry.rows_kept + sum(x.rows for x in lost)
        expected = int(view.mask.sum()) if masked else view.record.n_tokens
        assert entry.supervised_in == expected
    assert plan.total.tokens == sum(view.record.n_tokens for view in data.views)


@pytest.mark.parametrize("policy", ["split", "keep_system", "drop", "keep_last_turns"])
@pytest.mark.parametrize("seed", range(6))
def test_supervised_tokens_of_the_account_are_the_targets_of_the_pieces(policy, seed):
    data = dataset(shard(draw_conversations(seed)))
    plan = plan_rows(data, "train", 24, policy)
    targets = np.zeros(data.views[0].record.n_tokens, int)
    read = np.zeros_like(targets)
    for _, start, stop in plan.pieces.tolist():
        targets[start + 1 : stop] += data.views[0].mask[start + 1 : stop]
        read[start:stop] = 1
    assert targets.max() == 1
    entry = plan.accounts[0]
    first = losses(entry.dropped).get(FIRST, (0, 0, 0))[1]
    assert (targets.sum(), read.sum()) == (
        entry.supervised,
        entry.supervised + entry.unsupervised + first,
    )


def test_drop_counts_a_long_row_by_reason():
    entry = plan_rows(dataset(shard([SHORT, [(U, 90), (A, 6)]])), "train", 32, "drop").accounts[0]
    assert losses(entry.dropped) == {LONGER: (1, 96, 5)}
    assert (entry.rows, entry.rows_kept, entry.supervised, entry.unsupervised) == (2, 1, 4, 5)


def test_split_counts_the_cut_tail_and_what_teaches_nothing():
    """Pain 14: an answer longer than the block loses its stop, which is counted, not invented."""
    data = dataset(shard([[(U, 6), (A, 50)]]))
    plan = plan_rows(data, "train", 32, "split")
    entry = plan.accounts[0]
    assert losses(entry.dropped) == {NOTHING: (0, 6, 0)}
    assert losses(entry.cut) == {TAIL: (0, 17, 17)}
    assert entry.stops_cut == 1
    assert plan.pieces.tolist() == [(0, 6, 39)]
    stop_id = data.views[0].tokens[55]
    assert stop_id not in data.views[0].tokens[6:39]


def test_an_answer_that_is_learned_without_its_question_is_counted():
    data = dataset(shard([SHORT, [(U, 30), (A, 20)], [(U, 9), (A, 9), (U, 9), (A, 9)]]))
    for policy, expected in (("split", 1), ("keep_last_turns", 2), ("drop", 0)):
        assert plan_rows(data, "train", 32, policy).total.lone_answers == expected


def test_an_unsupervised_stop_that_is_cut_is_not_counted_as_lost():
    entry = plan_rows(dataset(shard([[(U, 50), (A, 6)]])), "train", 32).accounts[0]
    assert entry.stops_cut == 0
    assert losses(entry.cut) == {TAIL: (0, 17, 0)}


def test_keep_last_turns_counts_what_stood_before():
    """Pain 13: answer and stop are kept whole."""
    plan = plan_rows(dataset(shard([[(U, 100), (A, 5)]])), "train", 32, "keep_last_turns")
    assert plan.pieces.tolist() == [(0, 100, 105)]
    assert losses(plan.accounts[0].dropped) == {BEFORE: (0, 100, 0)}


def test_a_row_without_answer_is_dropped_and_counted():
    """Pain 11 and 13: nothing supervised, nothing learned, nothing silent."""
    entry = plan_rows(dataset(shard([SHORT, [(U, 7)]])), "train", 32).accounts[0]
    assert losses(entry.dropped) == {NOTHING: (1, 7, 0)}
    assert entry.rows_kept == 1


def test_a_supervised_first_token_can_be_no_target_and_is_counted():
    """Pain 15, k = 0."""
    entry = plan_rows(dataset(shard([[("text", 6)]])), "train", 32).accounts[0]
    assert losses(entry.dropped) == {FIRST: (0, 1, 1)}
    assert entry.supervised == 5
    assert entry.lost_to_length == 0


def test_error_names_the_row_and_its_file():
    data = dataset(shard([SHORT, [(U, 100), (A, 5)], [(U, 80), (A, 5)]]))
    with pytest.raises(DataError, match=r"chat0.jsonl:2: 105 tokens, block_size 32 holds 33 \(and"):
        plan_rows(data, "train", 32, "error")
    assert plan_rows(dataset(shard([SHORT])), "train", 32, "error").n_rows == 1


def test_losing_more_supervised_tokens_than_allowed_stops_the_run():
    data = dataset(shard([SHORT] * 9 + [[(U, 90), (A, 6)]]))
    share = 5 / (9 * 4 + 5)
    plan_rows(data, "train", 32, "drop", max_lost=share)
    with pytest.raises(DataError, match=r"loses 5 of 41 supervised tokens \(12.2%; longer than"):
        plan_rows(data, "train", 32, "drop", max_lost=share - 1e-9)


def test_a_split_that_teaches_nothing_is_refused():
    with pytest.raises(DataError, match="no conversation holds a supervised token"):
        plan_rows(dataset(shard([[(U, 5)]])), "train", 32)


def test_shards_made_by_hand_have_no_conversations_to_pack():
    data = dataset(make_view(np.arange(50), np.ones(50, np.uint8), None, None))
    with pytest.raises(DataError, match=r"made by hand .* set batching: windows"):
        plan_rows(data, "train", 8)


def test_a_heavier_source_is_seen_more_often():
    views = shard([SHORT] * 3), shard([SHORT], number=1, source=1)
    plan = plan_rows(dataset(*views, weights=(0.5, 1.5)), "train", 32)
    assert np.bincount(plan.pieces["shard"]).tolist() == [3, 3]
    assert plan.accounts[1].tokens == 9


def test_weights_that_are_no_multiples_are_refused():
    views = shard([SHORT]), shard([SHORT], number=1, source=1)
    with pytest.raises(DataError, match=r"'source 1' has weight 1\.5, no multiple of the smallest"):
        plan_rows(dataset(*views, weights=(1.0, 1.5)), "train", 32)


def test_the_plan_is_the_same_every_time():
    data = dataset(shard(draw_conversations(3)))
    first, again = (plan_rows(data, "train", 24) for _ in range(2))
    assert np.array_equal(first.pieces, again.pieces)
    assert np.array_equal(first.row_offsets, again.row_offsets)


def test_the_account_names_pieces_without_their_system_message_and_those_that_repeat_it():
    talk = [("system", 4), (U, 3), (A, 4), (U, 3), (A, 4), (U, 3), (A, 4)]
    data = dataset(shard([talk, talk[:3], talk[1:]]))
    lost = {p: plan_rows(data, "train", 10, p).total for p in ("split", "keep_system", "drop")}
    assert [total.lost_systems for total in lost.values()] == [2, 0, 0]
    assert lost["keep_system"].systems_repeated == 2
    assert lost["keep_system"].tokens_repeated == 8
    assert lost["split"].systems_repeated == 0
    assert lost["keep_system"].supervised == lost["split"].supervised == 7 * 3


def test_a_repeated_system_message_fills_places():
    talk = [("system", 4), (U, 3), (A, 4), (U, 3), (A, 4)]
    plan = plan_rows(dataset(shard([talk])), "train", 10, "keep_system")
    found = zip(plan.pieces.tolist(), plan.systems.tolist(), strict=True)
    assert sorted(found) == [((0, 0, 11), [0, 0]), ((0, 11, 18), [0, 4])]
    assert (plan.n_rows, plan.n_places, plan.fill) == (2, 20, 1.0)
