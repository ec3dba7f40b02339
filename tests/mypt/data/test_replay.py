"""Rows of earlier datasets beside new ones: how many, which, and what is said of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from mypt.config import MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import mask, open_dataset, tokenize
from mypt.data.manifest import read_manifest
from mypt.data.replay import Earlier, replay
from mypt.errors import ConfigError, DataError
from mypt.inspection.validation import validate


@pytest.fixture
def earlier(tmp_path):
    """Texts of two sources, of which one is drawn four times as often."""
    sources = []
    for name, weight in (("a", 1.0), ("b", 4.0)):
        path = tmp_path / f"{name}.jsonl"
        rows = [{"text": f"{name} {i} " + "x" * (i % 17)} for i in range(400)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append(Source(path=str(path), name=name, weight=weight))
    config = PrepareConfig(sources=tuple(sources), tokenization="byte")
    return tokenize(config, tmp_path / "earlier")


@pytest.fixture
def own(tmp_path, earlier):
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"},
                      {"role": "assistant", "content": f"answer {i}", "weight": (1, 0.5)[i % 2]}]}
        for i in range(60)
    ]  # fmt: skip
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = (Source(path=str(path), name="chats", weight=2.0),)
    return tokenize(PrepareConfig(sources=sources, tokenizer_from=earlier.path), tmp_path / "own")


def row_texts(dataset, source, split="train"):
    found = []
    for shard in dataset.shards(split):
        if shard.record.source == source:
            tokens = np.asarray(shard.tokens)
            found += [tokens[int(row["start"]) : int(row["stop"])].tobytes() for row in shard.rows]
    return found


def test_replayed_rows_make_up_their_share_of_the_training_tokens(tmp_path, own, earlier):
    made = replay(own, [Earlier("base", earlier, 0.3)], tmp_path / "mixed")
    manifest = read_manifest(Path(made.path), made.digest)
    assert [source.name for source in manifest.sources] == ["chats", "base/a", "base/b"]
    assert {source.weight for source in manifest.sources} == {2.0}, "each row once an epoch"
    by_source = np.zeros(3)
    for shard in manifest.split("train"):
        by_source[shard.source] += shard.n_tokens
    assert by_source[1:].sum() / by_source.sum() == pytest.approx(0.3, abs=0.01)
    read = read_manifest(Path(earlier.path))
    then = np.zeros(2)
    for shard in read.split("train"):
        then[shard.source] += shard.n_tokens * read.sources[shard.source].weight
    assert by_source[1:] / by_source[1:].sum() == pytest.approx(then / then.sum(), abs=0.03)


def test_the_own_rows_and_the_validation_split_stay_as_they_are(tmp_path, own, earlier):
    made = open_dataset(replay(own, [Earlier("base", earlier, 0.3)], tmp_path / "mixed").path)
    alone = open_dataset(own.path)
    for split in ("train", "val"):
        assert row_texts(made, 0, split) == row_texts(alone, 0, split)
    assert not any(shard.record.source for shard in made.shards("val"))
    for source in (1, 2):
        rows, all_rows = row_texts(made, source), row_texts(open_dataset(earlier.path), source - 1)
        assert 0 < len(rows) < len(all_rows)
        assert [row for row in all_rows if row in set(rows)] == rows


def test_what_is_left_out_is_counted_and_the_whole_is_valid(tmp_path, own, earlier):
    made = replay(own, [Earlier("base", earlier, 0.3)], tmp_path / "mixed")
    masked = mask(made.path, MaskPolicy(), tmp_path / "masked")
    manifest = read_manifest(Path(masked.path))
    for index, source in enumerate(manifest.sources):
        kept = sum(shard.n_rows for shard in manifest.shards if shard.source == index)
        assert source.rows_read == kept + sum(count.rows for count in source.dropped)
    assert manifest.row_weights == (0.5,)
    assert [one.share for one in manifest.making.replays] == [0.3]
    assert len(manifest.making.sources) == len(manifest.sources)
    assert validate(Path(masked.path)).ok


def test_equal_replays_are_equal_and_another_share_adds_rows_to_the_same(tmp_path, own, earlier):
    shares = {"one": 0.2, "two": 0.2, "more": 0.4}
    made = {
        name: replay(own, [Earlier("base", earlier, share)], tmp_path / name)
        for name, share in shares.items()
    }
    assert made["one"].digest == made["two"].digest != made["more"].digest
    few, many = (set(row_texts(open_dataset(made[n].path), 1)) for n in ("one", "more"))
    assert few < many


def test_several_earlier_datasets_have_a_share_each(tmp_path, own, earlier):
    both = [Earlier("base", earlier, 0.3), Earlier("mid", earlier, 0.1)]
    manifest = read_manifest(Path(replay(own, both, tmp_path / "mixed").path))
    tokens = np.zeros(5)
    for shard in manifest.split("train"):
        tokens[shard.source] += shard.n_tokens
    assert tokens[1:3].sum() / tokens.sum() == pytest.approx(0.3, abs=0.02)
    assert tokens[3:].sum() / tokens.sum() == pytest.approx(0.1, abs=0.02)


def test_what_cannot_be_replayed_is_refused_in_one_line(tmp_path, own, earlier):
    with pytest.raises(DataError, match=r"replay of base/a: [\d,]+ tokens .*; lower the share"):
        replay(earlier, [Earlier("base", earlier, 0.9)], tmp_path / "much")
    masked = mask(own.path, MaskPolicy(), tmp_path / "masked")
    with pytest.raises(DataError, match="masked already; expected tokens and spans alone"):
        replay(own, [Earlier("chat", masked, 0.1)], tmp_path / "twice")
    long = tmp_path / "long.txt"
    long.write_text("word " * 8_000)
    source = Source(path=str(long), format="text")
    config = PrepareConfig(sources=(source,), tokenizer_from=earlier.path)
    documents = tokenize(config, tmp_path / "documents")
    with pytest.raises(DataError, match=r"0\.1 of all, and whole rows have 0 at the nearest"):
        replay(own, [Earlier("long", documents, 0.1)], tmp_path / "long")
    other = tokenize(PrepareConfig(sources=(source,), tokenization="char"), tmp_path / "char")
    with pytest.raises(ConfigError, match="--tokenizer_from"):
        replay(own, [Earlier("base", other, 0.1)], tmp_path / "other")
