"""The proof of a mask: what it states, on which batches, and that it can fail."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from mypt.config import MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import open_dataset, prepare, tokenize
from mypt.data.packing.layout import plan_rows
from mypt.data.spans import KIND
from mypt.errors import MaskError
from mypt.evaluation.proof import proof
from mypt.evaluation.proof.alignment import Truth, match, pieces_of
from mypt.evaluation.proof.checks import check_gradients
from mypt.evaluation.proof.proof import prove_mask, render
from mypt.training.loader import Batch, GPTDataLoader
from tests.mypt.clean import by_hand, everything, text
from tests.mypt.data.corpora import chats, config, say, write_chats
from tests.mypt.faults import POLICY


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return everything(tmp_path_factory.mktemp("whole"))


def truths(path):
    manifest = open_dataset(path).manifest
    return [Truth(path, shard, manifest.mask.policy) for shard in manifest.split("train")]


def batch(path, **changes):
    given = {"batch_size": 8, "block_size": 64, "use_loss_mask": True, "max_lost": 1.0} | changes
    return GPTDataLoader(path, **given).batch_at("train", 0)


def by_name(report):
    return {check.name: check for check in report.checks}


def test_a_good_dataset_is_proved_on_windows_and_on_packed_batches(whole):
    report = prove_mask(whole)
    checks = by_name(report)
    assert report.ok
    for batching in ("windows", "packed"):
        assert checks[f"{batching}: each target is the next input"].count > 100
        same = f"{batching}: changing unsupervised targets changes no bit of loss or gradient"
        assert checks[same].count > 100
        assert checks[f"{batching}: changing a supervised target changes the loss"].count == 8
        ends = f"{batching}: the ends of turns that the policy supervises are supervised"
        assert checks[ends].count > 0
    assert checks["packed: no padding is supervised"].count > 0
    assert (report.shards, report.shards_in_all) == (5, 5)


def test_pieces_that_begin_with_their_system_message_again_are_proved(tmp_path):
    rules = ["Be brief.", "Be kind, and say so."]
    talks = [
        [say("system", rules[n % 2]), *(turn for one in talk for turn in one)]
        for n, talk in enumerate(zip(chats(40), chats(40, seed=1), strict=True))
    ]
    path = write_chats(tmp_path / "talks.jsonl", talks)
    made = prepare(config(path, template="plain"), MaskPolicy(), tmp_path / "dataset").path
    plan = plan_rows(open_dataset(made), "train", 64, "keep_system")
    assert plan.total.systems_repeated > 10
    report = prove_mask(made, length_policy="keep_system")
    assert report.ok, render(report)


def test_the_same_seed_proves_the_same_and_leaves_torch_as_it_was(whole):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    assert prove_mask(whole, seed=3) == prove_mask(whole, seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_what_should_be_supervised_is_derived_without_the_mask_files(whole):
    dataset = open_dataset(whole)
    for truth, shard in zip(truths(whole), dataset.shards("train"), strict=True):
        assert np.array_equal(truth.wanted, shard.mask)
        lengths = (shard.spans["stop"] - shard.spans["start"]).astype(np.int64)
        assert np.array_equal(truth.kind, np.repeat(shard.spans["kind"], lengths))
    blind = truths(whole)[0].shard.model_copy(update={"mask": None})
    assert np.array_equal(Truth(whole, blind, POLICY).wanted, dataset.shards("train")[0].mask)


def test_a_piece_is_found_by_its_tokens_alone(whole):
    (piece, *_), (shard, *_) = pieces_of(batch(whole)), open_dataset(whole).shards("train")
    found = match(piece, truths(whole), one_row=False)
    assert found.found
    assert np.array_equal(found.wanted, piece.loss_mask)
    start = next(truths(whole)[0].find(np.asarray(shard.tokens[40:140], dtype=np.int64)))
    assert shard.tokens[start : start + 100].tolist() == shard.tokens[40:140].tolist()


def test_packed_pieces_are_told_apart_and_padding_is_none(whole):
    packed = batch(whole, batching="packed", block_size=128)
    pieces = list(pieces_of(packed))
    assert sum(len(piece.targets) for piece in pieces) == int((packed.segments >= 0).sum())
    assert all(piece.positions[0] == 0 for piece in pieces)
    assert all(match(piece, truths(whole), one_row=True).found for piece in pieces)


def test_a_dataset_made_by_hand_is_proved_against_its_own_masks(tmp_path):
    report = prove_mask(by_hand(tmp_path))
    assert report.ok
    assert {name.partition(":")[0] for name in by_name(report)} == {"windows"}


def test_plain_text_is_proved_to_be_learned_whole(tmp_path):
    report = prove_mask(text(tmp_path))
    assert report.ok
    same = "windows: changing unsupervised targets changes no bit of loss or gradient"
    assert by_name(report)[same].count == 0


def test_without_masks_there_is_nothing_to_prove(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}]}) + "\n")
    config = PrepareConfig(sources=(Source(path=str(path)),), tokenization="byte", val_fraction=0.0)
    tokenize(config, tmp_path / "dataset")
    with pytest.raises(MaskError, match="has no masks to prove"):
        prove_mask(tmp_path / "dataset")


def test_tiny_shards_are_proved_in_shorter_windows(tmp_path):
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    source = Source(path=str(tmp_path / "a.jsonl"))
    config = PrepareConfig(sources=(source,), tokenization="byte", val_fraction=0.0)
    assert prove_mask(prepare(config, MaskPolicy(), tmp_path / "dataset").path).ok


def test_of_a_large_dataset_shards_spread_over_all_are_proved(whole, monkeypatch):
    monkeypatch.setattr(proof, "MOST_TOKENS", 7000)
    report = prove_mask(whole)
    assert report.ok
    assert (report.shards, report.shards_in_all) == (2, 5)


def test_a_gradient_that_leaks_is_seen():
    idx, targets = torch.randint(0, 50, (2, 2, 16))
    mask = torch.zeros(2, 16, dtype=torch.uint8)
    mask[0, 5] = 1
    good = check_gradients(Batch(idx, targets, mask), 50, seed=0)
    assert [check.ok for check in good] == [True, True, True]
    assert [check.count for check in good] == [31, 1, 1]


def test_headers_of_packed_batches_are_looked_at(whole):
    kinds = [
        match(piece, truths(whole), one_row=True).kind
        for piece in pieces_of(batch(whole, batching="packed", block_size=512))
    ]
    assert (np.concatenate(kinds) == KIND["header"]).sum() > 5


def test_the_report_is_printed_line_by_line(whole):
    file = io.StringIO()
    Console(file=file, width=200).print(render(prove_mask(whole)))
    lines = file.getvalue().splitlines()
    assert lines[-1] == "proved on 5 of 5 shards, seed 0"
    assert all(line.startswith("ok ") for line in lines[:-1])
