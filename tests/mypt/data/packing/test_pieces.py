"""What becomes of rows longer than a block, against a reference that walks turn by turn."""

import numpy as np
import pytest

from mypt.data.packing.pieces import (
    CUT,
    EARLIER,
    PIECE,
    TOO_LONG,
    count_lost_systems,
    cut_rows,
)
from tests.mypt.data.handmade import index

U, A, S = "user", "assistant", "system"


def fates(conversations, block_size, policy):
    """Return (start, stop, context, fate) of each stretch."""
    spans, rows = index(conversations)
    found = cut_rows(rows, spans, block_size, policy)
    return [(int(s["start"]), int(s["stop"]), int(s["context"]), int(s["fate"])) for s in found]


def walk(conversations, block_size, keep_system=False):
    """The policies ``split`` and ``keep_system``, turn by turn."""
    room, at, out = block_size + 1, 0, []
    for turns in conversations:
        edges = np.cumsum([at, *(n for _, n in turns)]).tolist()
        opens = [i == 0 or (turns[i][0] != A and turns[i - 1][0] == A) for i in range(len(turns))]
        at = edges[-1]
        if turns[0][0] == "text" and edges[-1] - edges[0] > room:
            begin = edges[0]
            while begin < edges[-1]:
                context = int(begin > edges[0])
                stop = min(begin - context + room, edges[-1])
                out.append((begin, stop, context, PIECE))
                begin = stop
            continue
        i, system = 0, turns[0][1] if keep_system and turns[0][0] == S else 0
        repeated = system if 2 * system <= block_size else 0
        while i < len(turns):
            left = room - repeated * (i > 0)
            j = i + 1
            while j < len(turns) and edges[j + 1] - edges[i] <= left:
                j += 1
            if j < len(turns):
                j = max([k for k in range(i + 1, j + 1) if opens[k]], default=j)
            stop = min(edges[j], edges[i] + left)
            out.append((edges[i], stop, 0, PIECE))
            if stop < edges[j]:
                out.append((stop, edges[j], 0, CUT))
            i = j
    return out


@pytest.mark.parametrize("seed", range(60))
def test_split_is_what_walking_turn_by_turn_gives(seed):
    draw = np.random.default_rng(seed)
    conversations = []
    for _ in range(int(draw.integers(1, 8))):
        if draw.random() < 0.2:
            conversations.append([("text", int(draw.integers(1, 60)))])
        else:
            roles = draw.choice([U, A, S, "tool"], size=int(draw.integers(1, 7)))
            conversations.append([(str(r), int(draw.integers(3, 15))) for r in roles])
    block_size = int(draw.integers(2, 40))
    assert fates(conversations, block_size, "split") == walk(conversations, block_size)
    assert fates(conversations, block_size, "keep_system") == walk(conversations, block_size, True)


def test_a_row_that_fits_stays_whole_under_every_policy():
    talk = [[(U, 5), (A, 4)]]
    for policy in ("split", "keep_system", "drop", "keep_last_turns", "error"):
        assert fates(talk, 8, policy) == [(0, 9, 0, PIECE)]


def test_pieces_of_a_conversation_begin_with_its_system_message_where_half_a_block_is_left():
    talk = [[(S, 4), (U, 3), (A, 4), (U, 3), (A, 4), (U, 3), (A, 9)]]
    spans, rows = index(talk)

    def found(block_size, policy="keep_system"):
        made = cut_rows(rows, spans, block_size, policy)
        lost = (made["fate"] == PIECE) & (made["system"] == 0)
        assert count_lost_systems(made, spans) == int(lost[1:].sum())
        return [(int(s["start"]), int(s["stop"]), int(s["system"])) for s in made]

    # 11 tokens a piece: 4 of the system and 7 of an exchange, whose last one is cut
    assert found(10) == [(0, 11, 0), (11, 18, 4), (18, 21, 4), (21, 28, 4), (28, 30, 0)]
    assert [stop for _, stop, _ in found(10, "split")] == [11, 18, 21, 30]
    assert {system for *_, system in found(10, "split")} == {0}
    assert {system for *_, system in found(7)} == {0}


def test_split_keeps_an_answer_with_its_question():
    talk = [[(U, 5), (A, 5), (U, 5), (A, 5)]]
    # 16 tokens would hold three turns, but the third is a question whose answer comes later
    assert fates(talk, 15, "split") == [(0, 10, 0, PIECE), (10, 20, 0, PIECE)]


def test_split_parts_question_and_answer_only_where_they_do_not_fit_together():
    talk = [[(U, 30), (A, 5)]]
    assert fates(talk, 31, "split") == [(0, 30, 0, PIECE), (30, 35, 0, PIECE)]


def test_a_turn_longer_than_the_block_loses_its_tail():
    assert fates([[(U, 5), (A, 30)]], 9, "split") == [
        (0, 5, 0, PIECE),
        (5, 15, 0, PIECE),
        (15, 35, 0, CUT),
    ]


def test_plain_text_is_divided_so_that_each_token_but_the_first_is_a_target_once():
    assert fates([[("text", 9)]], 4, "split") == [(0, 5, 0, PIECE), (5, 9, 1, PIECE)]
    assert fates([[("text", 10)]], 4, "split")[-1] == (9, 10, 1, PIECE)


def test_drop_keeps_nothing_of_a_long_row():
    assert fates([[(U, 4), (A, 4)], [(U, 40), (A, 4)]], 8, "drop") == [
        (0, 8, 0, PIECE),
        (8, 52, 0, TOO_LONG),
    ]


def test_keep_last_turns_keeps_answer_and_stop_of_a_long_prompt():
    """Pain 13: a prompt of 100 tokens, an answer of 5, a block of 32."""
    assert fates([[(U, 100), (A, 5)]], 32, "keep_last_turns") == [
        (0, 100, 0, EARLIER),
        (100, 105, 0, PIECE),
    ]
    assert fates([[(S, 3), (U, 9), (A, 9), (U, 4), (A, 4)]], 16, "keep_last_turns") == [
        (0, 12, 0, EARLIER),
        (12, 29, 0, PIECE),
    ]


def test_keep_last_turns_cuts_a_last_turn_that_is_too_long_alone():
    assert fates([[(U, 4), (A, 20)]], 9, "keep_last_turns") == [
        (0, 4, 0, EARLIER),
        (4, 14, 0, PIECE),
        (14, 24, 0, CUT),
    ]


@pytest.mark.parametrize("policy", ["split", "drop", "keep_last_turns"])
@pytest.mark.parametrize("seed", range(10))
def test_stretches_tile_every_row(policy, seed):
    draw = np.random.default_rng(seed)
    talks = [
        [(str(draw.choice([U, A])), int(draw.integers(2, 20))) for _ in range(draw.integers(1, 6))]
        for _ in range(6)
    ]
    spans, rows = index(talks)
    found = cut_rows(rows, spans, 12, policy)
    assert found["start"][0] == 0
    assert (found["start"][1:] == found["stop"][:-1]).all()
    assert found["stop"][-1] == rows["stop"][-1]
    for stretch in found:
        row = rows[stretch["row"]]
        assert row["start"] <= stretch["start"] < stretch["stop"] <= row["stop"]


def test_no_rows_give_no_stretches():
    spans, rows = index([])
    for policy in ("split", "drop", "keep_last_turns"):
        assert len(cut_rows(rows, spans, 8, policy)) == 0
