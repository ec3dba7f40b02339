"""The rows that a checkpoint was trained on, against a recount of every token of every batch."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mypt.config import MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import mask, tokenize
from mypt.data.exchange.adoption import adopt
from mypt.provenance import row_counts
from mypt.provenance.exposure import MANY_PASSES, exposure
from mypt.training.batches import windows
from mypt.training.lineage import read_lineage
from mypt.training.loader import GPTDataLoader
from tests.mypt.conftest import write_chat


def by_hand(lineage, dataset):
    """Return (times, learned, read) of each (file, line), token by token and batch by batch."""
    config = lineage.config
    loader = GPTDataLoader.of(config, dataset)
    owner = {}
    for shard in dataset.shards("train"):
        source = dataset.manifest.sources[shard.record.source]
        for row in shard.rows:
            for token in range(row["start"], row["stop"]):
                name = Path(source.files[row["file"]].path).name
                owner[shard.record.index, token] = (name, int(row["line"]))
    times, learned, read = Counter(), Counter(), Counter()
    for step in range(lineage.step):
        for micro in range(config.grad_accumulation):
            batch = loader.batch_at("train", step, micro)
            for b, row in enumerate(loader.places_at("train", step, micro)):
                at = 0
                for place in row:
                    n = place.stop - place.start - 1
                    inputs = batch.input_ids[b, at : at + n].numpy()
                    assert (
                        inputs.tolist() == place.shard.tokens[place.start : place.stop - 1].tolist()
                    )
                    taught = np.ones(n, bool)
                    if batch.loss_mask is not None:
                        taught = batch.loss_mask[b, at : at + n].numpy() == 1
                    index = place.shard.record.index
                    names = [owner[index, token] for token in range(place.start, place.stop)]
                    read.update(names)
                    targets = [name for name, bit in zip(names[1:], taught, strict=True) if bit]
                    learned.update(targets)
                    times.update(set(targets))
                    at += n
    return times, learned, read


def check(step_folder):
    """Compare the exposure of a checkpoint's own training with the recount; return it."""
    found = exposure(step_folder)
    assert found.problems == ()
    training = found.trainings[0]
    times, learned, read = by_hand(training.lineage, training.dataset)
    rows = [row for row in found.rows() if row.training == training.name]
    for row in rows:
        name = (Path(row.file).name, row.line)
        assert (row.times, row.learned, row.read) == (times[name], learned[name], read[name])
    assert sum(read.values()) == sum(row.read for row in rows)
    assert sum(row.learned for row in rows) == training.lineage.supervised
    return found


@pytest.fixture
def two_sources(tmp_path):
    """Chats of two files and a source of long texts, in several shards, with weights."""
    tmp_path = tmp_path / "two"
    tmp_path.mkdir()
    write_chat(tmp_path / "a.jsonl", 30)
    write_chat(tmp_path / "b.jsonl", 40, "never {i}, and that at some length")
    (tmp_path / "long.txt").write_text("\n\n".join(f"{i} " + "word " * 5 * i for i in range(1, 9)))
    config = PrepareConfig(
        sources=(
            Source(path=str(tmp_path / "[ab].jsonl"), format="messages", weight=2),
            Source(path=str(tmp_path / "long.txt"), format="text"),
        ),
        tokenization="byte",
        val_fraction=0.2,
        shard_tokens=700,
    )
    bare = tokenize(config, tmp_path / "bare").path
    return Path(mask(bare, MaskPolicy(), tmp_path / "masked").path)


@pytest.mark.parametrize("batching", ["windows", "packed"])
@pytest.mark.parametrize("use_loss_mask", [True, False])
def test_every_row_is_counted_as_a_recount_of_all_batches_does(
    plan, finish, two_sources, batching, use_loss_mask
):
    made = plan(
        dataset=two_sources,
        batching=batching,
        use_loss_mask=use_loss_mask,
        max_iters=23,
        block_size=24,
        max_lost=1.0,
        eval_interval=100,
        checkpoint_interval=100,
    )
    found = check(Path(finish(made)["end"].checkpoint.path))
    assert len({row.source for row in found.rows()}) == 2
    assert any(row.times > 1 for row in found.rows())


def test_rows_are_counted_the_same_in_small_lots(plan, finish, two_sources, monkeypatch):
    made = plan(dataset=two_sources, max_iters=9, eval_interval=100, checkpoint_interval=100)
    step_folder = Path(finish(made)["end"].checkpoint.path)
    monkeypatch.setattr(row_counts, "_TOKENS_AT_ONCE", 50)
    monkeypatch.setattr(windows, "_RECOUNTED_AT_ONCE", 20)
    check(step_folder)


def test_a_row_that_was_only_context_is_read_and_not_learned(plan, finish, two_sources):
    made = plan(dataset=two_sources, max_iters=3, block_size=4)
    found = check(Path(finish(made)["end"].checkpoint.path))
    assert any(row.read and not row.learned for row in found.rows())


def test_packed_rows_that_fit_count_once_an_epoch_times_their_weight(plan, finish, two_sources):
    made = plan(dataset=two_sources, batching="packed", block_size=64, max_lost=1.0, max_iters=1)
    end = finish(made)
    steps = read_lineage(Path(end["end"].checkpoint.path)).epoch.steps
    made = plan(
        "whole", dataset=two_sources, batching="packed", block_size=64, max_lost=1.0,
        max_iters=2 * steps, eval_interval=1000,
    )  # fmt: skip
    found = exposure(Path(finish(made)["end"].checkpoint.path))
    chats = [row for row in found.rows() if row.file.endswith(".jsonl")]
    assert {(row.times, row.passes) for row in chats} == {(4, 4.0)}
    (chat, text) = found.sources()
    assert (chat.rows, chat.rows_learned, chat.times_most) == (len(chats), len(chats), 4)
    assert text.passes == pytest.approx(2, rel=0.05)


def test_what_the_parents_were_trained_on_counts_too(plan, finish, two_sources, chat_dataset):
    finish(plan("base", dataset=two_sources, max_iters=2))
    end = finish(plan("chat", dataset=chat_dataset, init_from="base", max_iters=3))
    found = check(Path(end["end"].checkpoint.path))
    assert [training.name for training in found.trainings] == ["chat step 3", "base step 2"]
    assert {row.training for row in found.rows()} == {"chat step 3", "base step 2"}


def test_a_warning_is_shown_above_the_stated_number_of_passes(plan, finish):
    end = finish(plan(max_iters=40, eval_interval=100, checkpoint_interval=100))
    found = exposure(Path(end["end"].checkpoint.path))
    (source,) = found.sources()
    assert source.passes > MANY_PASSES
    (line,) = found.warnings()
    assert f"chat.jsonl was learned {source.passes:.1f} times over, more than 4" in line
    few = exposure(Path(finish(plan("few", max_iters=1))["end"].checkpoint.path))
    assert few.warnings() == ()


def test_what_is_gone_is_said_and_the_rest_is_counted(plan, finish, two_sources, chat_dataset):
    finish(plan("base", dataset=two_sources, max_iters=2))
    end = finish(plan("chat", dataset=chat_dataset, init_from="base", max_iters=3))
    shutil.rmtree(two_sources)
    found = exposure(Path(end["end"].checkpoint.path))
    assert [training.name for training in found.trainings] == ["chat step 3"]
    (problem,) = found.problems
    assert problem.startswith(f"base step 2: {two_sources}: no dataset of digest")


def test_a_count_that_the_lineage_contradicts_is_not_trusted(plan, finish, monkeypatch):
    step_folder = Path(finish(plan(max_iters=2))["end"].checkpoint.path)
    monkeypatch.setattr(windows, "_DRAWN_AT_ONCE", 1)
    (problem,) = exposure(step_folder).problems
    assert "another version drew other rows" in problem


def test_shards_made_by_hand_have_no_rows_to_name(plan, finish, tmp_path):
    folder = tmp_path / "hand"
    (folder / "train").mkdir(parents=True)
    (folder / "val").mkdir()
    np.arange(200, dtype=np.uint32).tofile(folder / "train" / "shard_000.bin")
    np.ones(200, np.uint8).tofile(folder / "train" / "shard_000_mask.bin")
    adopt(folder, "byte")
    end = finish(plan(dataset=folder, max_iters=1))
    found = exposure(Path(end["end"].checkpoint.path))
    assert found.trainings == ()
    assert "made by hand and has no index of rows" in found.problems[0]


def test_counting_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, mypt.provenance.exposure; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
