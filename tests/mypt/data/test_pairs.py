"""Both sides of a pair stand side by side in shards and packed rows, and share its id."""

import json

import numpy as np
import pytest

from mypt.config import MaskPolicy, Preparation, PrepareConfig, Source
from mypt.data.conversations import Conversation, Origin, say
from mypt.data.dataset import open_dataset, prepare
from mypt.data.packing.layout import default_policy, plan_rows
from mypt.data.pairs import ORPHANED, with_pair_ids
from mypt.data.preparation.encoding import encode_counted
from mypt.data.preparation.row_batches import batches
from mypt.data.reading.records import Tally
from mypt.data.spans import ROLE
from mypt.data.tokenizer import load_tokenizer
from mypt.errors import DataError
from mypt.inspection.validation import validate
from tests.mypt.conftest import prepare_pairs


def pair(number, asked="say it", better="yes", worse="no"):
    return [
        Conversation((say("user", asked), say("assistant", text)), Origin(0, number), side)
        for text, side in ((better, "chosen"), (worse, "rejected"))
    ]


def ids(rows):
    return np.ascontiguousarray(rows["digest"]).view("V8").reshape(-1, 2)[:, 0]


def test_only_the_answers_are_supervised_and_the_prompts_are_the_same(pair_dataset):
    dataset = open_dataset(pair_dataset)
    assert dataset.manifest.pairs == 60
    for split in ("train", "val"):
        for shard in dataset.shards(split):
            assert len(shard.rows) % 2 == 0
            assert (ids(shard.rows)[::2] == ids(shard.rows)[1::2]).all()
            learned = np.flatnonzero(shard.mask)
            span = np.searchsorted(shard.spans["stop"], learned, side="right")
            assert (shard.spans["role"][span] == ROLE["assistant"]).all()
            row = shard.spans["conversation"]
            last = np.append(row[1:] != row[:-1], True)
            turn = shard.spans["message"]
            last_turn = dict(zip(row[last].tolist(), turn[last].tolist(), strict=True))
            assert all(turn[s] == last_turn[int(row[s])] for s in span)


def test_ids_tell_pairs_apart_and_begin_with_the_prompts():
    rows = [*pair(1), *pair(2, better="yes!"), *pair(3, asked="say that")]
    digests = with_pair_ids(rows, [bytes([n]) * 16 for n in range(6)])
    found = [digest[:8] for digest in digests]
    assert found[::2] == found[1::2]
    assert len(set(found)) == 3
    assert found[0][:4] == found[2][:4] != found[4][:4]
    assert [digest[8:] for digest in digests] == [bytes([n]) * 8 for n in range(6)]


def test_pairs_of_one_prompt_never_cross_from_train_to_val(tmp_path):
    rows = [
        {"prompt": f"say {i % 8}", "chosen": f"{i} it is", "rejected": f"not {i}"}
        for i in range(64)
    ]
    raw = tmp_path / "pairs.jsonl"
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = PrepareConfig(
        sources=(Source(path=str(raw), pairs=True),), tokenization="byte", val_fraction=0.4
    )
    dataset = open_dataset(prepare(config, MaskPolicy(), tmp_path / "d").path)
    prompts = [
        {int(line - 1) % 8 for shard in dataset.shards(split) for line in shard.rows["line"]}
        for split in ("train", "val")
    ]
    assert not prompts[0] & prompts[1]
    assert prompts[0] | prompts[1] == set(range(8))


@pytest.mark.parametrize("shard_tokens", [1, 100, 333])
def test_no_shard_ends_between_two_sides(tmp_path, shard_tokens):
    dataset = open_dataset(prepare_pairs(tmp_path, 40, shard_tokens=shard_tokens))
    shards = [shard for split in ("train", "val") for shard in dataset.shards(split)]
    assert len(shards) > 5
    assert all(len(shard.rows) % 2 == 0 for shard in shards)


def test_no_list_of_rows_ends_between_two_sides(monkeypatch):
    monkeypatch.setattr("mypt.data.preparation.row_batches._ROWS", 3)
    rows = [row for n in range(5) for row in pair(n)]
    assert [len(batch) for batch in batches(rows)] == [4, 4, 2]


def test_who_prepares_does_not_change_a_byte(tmp_path):
    folder = prepare_pairs(tmp_path, 40)
    config = open_dataset(folder).manifest.making.config
    for engine in ("serial", "process"):
        made = prepare(
            config,
            MaskPolicy(),
            tmp_path / engine,
            preparation=Preparation(engine=engine, workers=2),
        )
        assert made.digest == open_dataset(folder).manifest.digest


def test_a_side_that_cannot_be_written_takes_the_other_with_it(monkeypatch):
    rows = [*pair(1), *pair(2, worse="nein, ungefähr"), *pair(3)]
    tally = Tally()

    def writable(found, _, tally, *__):
        tally.dropped["no token"] += 1
        return [row for row in found if row is not rows[3]]

    monkeypatch.setattr("mypt.data.preparation.encoding._writable", writable)
    encoded = encode_counted(rows, load_tokenizer("byte", "plain"), tally)
    assert encoded.rows["line"].tolist() == [1, 1, 3, 3]
    assert tally.dropped == {"no token": 1, ORPHANED: 1}


def test_both_sides_share_a_packed_row_and_none_is_cut(pair_dataset):
    dataset = open_dataset(pair_dataset)
    for block_size in (96, 200, 512):
        plan = plan_rows(dataset, "train", block_size, "drop")
        assert (np.diff(plan.row_offsets) % 2 == 0).all()
        shards = dataset.shards("train")
        for chosen, rejected in plan.pieces.reshape(-1, 2):
            rows = shards[chosen["shard"]].rows
            first = np.searchsorted(rows["start"], chosen["start"])
            assert first % 2 == 0
            assert (rows["start"][first], rows["stop"][first]) == (chosen["start"], chosen["stop"])
            assert rows["start"][first + 1] == rejected["start"]
        for a, b in zip(plan.row_offsets[:-1], plan.row_offsets[1:], strict=True):
            pieces = plan.pieces[a:b]
            assert (pieces["stop"] - pieces["start"] - 1).sum() <= block_size


def test_a_pair_that_does_not_fit_is_dropped_whole_and_counted(pair_dataset):
    dataset = open_dataset(pair_dataset)
    rows = [shard.rows for shard in dataset.shards("train")]
    places = np.concatenate([(r["stop"] - r["start"]).astype(int) - 1 for r in rows])
    places = places[::2] + places[1::2]
    block = int(np.sort(places)[len(places) // 2])
    total = plan_rows(dataset, "train", block, "drop").total
    assert total.rows_kept == 2 * (places <= block).sum()
    assert [(lost.reason, lost.rows) for lost in total.dropped] == [
        ("longer than the block", 2 * (places > block).sum())
    ]


@pytest.mark.parametrize("policy", ["split", "keep_system", "keep_last_turns"])
def test_what_would_cut_a_pair_is_refused(pair_dataset, policy):
    with pytest.raises(DataError, match="would cut preference pairs; expected drop or error"):
        plan_rows(open_dataset(pair_dataset), "train", 64, policy)


def test_pairs_are_dropped_where_nothing_is_said_of_long_ones(pair_dataset, tiny):
    assert default_policy(pair_dataset, tiny(batching="packed"), 64) == "drop"


def test_a_long_pair_is_refused_where_that_is_asked_for(pair_dataset):
    with pytest.raises(DataError, match="tokens and its other side, block_size 48 holds 49"):
        plan_rows(open_dataset(pair_dataset), "train", 48, "error")


def test_a_source_that_weighs_twice_shows_whole_pairs_twice(tmp_path):
    one = prepare_pairs(tmp_path, 20)
    raw = open_dataset(one).manifest.making.config.sources[0].path
    sources = (Source(path=raw, pairs=True), Source(path=raw, pairs=True, weight=2.0))
    config = PrepareConfig(sources=sources, tokenization="byte", val_fraction=0.0)
    dataset = open_dataset(prepare(config, MaskPolicy(), tmp_path / "d").path)
    plan = plan_rows(dataset, "train", 256, "drop")
    assert len(plan.pieces) == 3 * 2 * 20
    sides = plan.pieces.reshape(-1, 2)
    assert (sides["stop"][:, 0] == sides["start"][:, 1]).all()


def test_validation_knows_clean_pairs(pair_dataset):
    report = validate(pair_dataset, block_size=256)
    assert [str(f) for f in report.findings if f.level != "notice"] == []
    assert "doubled" not in report.codes()
