"""Raw files become the same shards every time, and every row is accounted for."""

import gzip
import json
import os
import tracemalloc

import numpy as np
import pytest

from mypt.config import MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import open_dataset, prepare, tokenize
from mypt.data.preparation import row_batches as batches
from mypt.data.preparation import tokenization
from mypt.data.preparation.tokenization import DatasetPlan
from mypt.data.template import load_template
from mypt.errors import ConfigError, DataError
from tests.mypt.data.corpora import chats, config, say, texts, tree, write_chats
from tests.mypt.training.test_base_import import LLAMA3, make_tokenizer


def recipe(prepared):
    return DatasetPlan(prepared).recipe


def rows_of(manifest, split):
    return sum(shard.n_rows for shard in manifest.split(split))


def test_every_row_that_was_read_is_in_one_split_or_counted_as_dropped(tmp_path):
    path = write_chats(tmp_path / "chat.jsonl", chats(50))
    manifest = open_dataset(tokenize(config(path), tmp_path / "d").path).manifest
    (source,) = manifest.sources
    dropped = sum(count.rows for count in source.dropped)
    assert source.rows_read == 50
    assert rows_of(manifest, "train") + rows_of(manifest, "val") + dropped == 50
    assert (manifest.kind, manifest.mask, manifest.parent) == ("chat", None, None)


def test_the_rows_on_disk_say_what_was_read(tmp_path):
    path = write_chats(tmp_path / "chat.jsonl", chats(30))
    found = texts(tokenize(config(path, shard_tokens=200), tmp_path / "d").path)
    wanted = {
        "".join(f"<{t['role'].title()}>{t['content']}</{t['role'].title()}>" for t in turns)
        for turns in chats(30)
    }
    assert {text.replace("\n", "") for text in found["train"] + found["val"]} == wanted


def test_the_same_input_gives_the_same_bytes_however_it_is_batched(tmp_path, monkeypatch):
    path = write_chats(tmp_path / "chat.jsonl", chats(40))
    once = tokenize(config(path, shard_tokens=300), tmp_path / "a")
    monkeypatch.setattr(batches, "_ROWS", 3)
    again = tokenize(config(path, shard_tokens=300), tmp_path / "b")
    assert once.digest == again.digest
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_where_the_files_lie_changes_neither_digest_nor_recipe(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    paths = [write_chats(tmp_path / p / "chat.jsonl", chats(20)) for p in ("", "elsewhere")]
    first, second = (tokenize(config(p), tmp_path / f"d{i}") for i, p in enumerate(paths))
    assert first.digest == second.digest
    assert recipe(config(paths[0])) == recipe(config(paths[1]))


def test_one_changed_character_changes_the_recipe_though_size_and_time_stay(tmp_path):
    path = write_chats(tmp_path / "chat.jsonl", chats(5))
    before, stat = recipe(config(path)), path.stat()
    path.write_bytes(path.read_bytes().replace(b"0.3", b"0.7"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert recipe(config(path)) != before


def test_a_file_that_changed_since_the_plan_hashed_it_is_refused(tmp_path):
    path = write_chats(tmp_path / "chat.jsonl", chats(5))
    plan = DatasetPlan(config(path))
    assert plan.recipe
    path.write_bytes(path.read_bytes().replace(b"0.3", b"0.7"))
    with pytest.raises(DataError, match=r"chat\.jsonl: changed while it was read"):
        tokenize(plan, tmp_path / "d", reuse=True)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"tokenization": "char"}, {"template": "chatml"}, {"val_fraction": 0.2},
        {"shard_tokens": 7},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_knob_that_decides_the_content_is_in_the_recipe(tmp_path, change):
    path = write_chats(tmp_path / "chat.jsonl", chats(5))
    assert recipe(config(path, **change)) != recipe(config(path))


def test_twins_never_cross_from_train_to_val(tmp_path):
    first = write_chats(tmp_path / "a.jsonl", chats(60) + chats(20))
    second = write_chats(tmp_path / "b.jsonl", list(reversed(chats(40))))
    dataset = open_dataset(tokenize(config(first, second, val_fraction=0.3), tmp_path / "d").path)
    train, val = (
        {row["digest"].tobytes() for shard in dataset.shards(split) for row in shard.rows}
        for split in ("train", "val")
    )
    assert len(train | val) == 60
    assert not train & val
    assert min(len(train), len(val)) > 5


def test_the_order_of_sources_does_not_move_a_row_to_the_other_split(tmp_path):
    a = write_chats(tmp_path / "a.jsonl", chats(30))
    b = write_chats(tmp_path / "b.jsonl", chats(30, seed=1))
    one, other = (
        texts(tokenize(config(*paths, val_fraction=0.3), tmp_path / name).path)
        for name, paths in (("ab", (a, b)), ("ba", (b, a)))
    )
    assert {split: sorted(rows) for split, rows in one.items()} == {
        split: sorted(rows) for split, rows in other.items()
    }


def test_each_source_has_its_own_shards_and_name(tmp_path):
    (tmp_path / "other").mkdir()
    a = write_chats(tmp_path / "chat.jsonl", chats(10))
    b = write_chats(tmp_path / "other" / "chat.jsonl", chats(10, seed=1))
    manifest = open_dataset(tokenize(config(a, b), tmp_path / "d").path).manifest
    assert [source.name for source in manifest.sources] == ["chat.jsonl", "chat.jsonl #2"]
    assert {shard.source for shard in manifest.split("train")} == {0, 1}
    assert [s.index for s in manifest.split("train")] == list(range(len(manifest.split("train"))))


def test_a_chat_of_three_turns_is_one_row_and_ends_of_turns_do_not_cut_it(tmp_path):
    three = [say("user", "a"), say("assistant", "b")] * 3
    path = write_chats(tmp_path / "chat.jsonl", [three, [say("user", "c"), say("assistant", "d")]])
    ref = tokenize(config(path, template="chatml", val_fraction=0.0), tmp_path / "d")
    (shard,) = open_dataset(ref.path).shards("train")
    stop = open_dataset(ref.path).tokenizer.stop_id
    assert len(shard.rows) == 2
    assert [
        int((shard.tokens[row["start"] : row["stop"]] == stop).sum()) for row in shard.rows
    ] == [6, 2]


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_a_small_corpus_has_a_row_in_each_split_and_says_that_it_was_put_there(tmp_path, fraction):
    path = write_chats(tmp_path / "chat.jsonl", chats(3))
    manifest = open_dataset(
        tokenize(config(path, val_fraction=fraction), tmp_path / "d").path
    ).manifest
    repaired = "val" if fraction < 0.5 else "train"
    assert rows_of(manifest, repaired) == 1
    (note,) = manifest.sources[0].notes
    assert (note.reason, note.rows) == (f"put into {repaired}, which would have been empty", 1)


def test_rows_that_all_say_the_same_are_refused_with_the_way_out(tmp_path):
    path = write_chats(tmp_path / "chat.jsonl", chats(1) * 4)
    with pytest.raises(DataError, match=r"chat\.jsonl: all rows say the same.*val_fraction to 0"):
        tokenize(config(path), tmp_path / "d")
    assert not (tmp_path / "d").exists()
    manifest = open_dataset(tokenize(config(path, val_fraction=0.0), tmp_path / "d").path).manifest
    assert (rows_of(manifest, "train"), manifest.split("val")) == (4, ())


@pytest.mark.parametrize("tokenization", ["char", "bpe:300"])
def test_a_tokenizer_made_from_the_corpus_travels_with_the_dataset(tmp_path, tokenization):
    path = write_chats(tmp_path / "chat.jsonl", chats(30))
    made = tokenize(config(path, tokenization=tokenization), tmp_path / "d")
    dataset = open_dataset(made.path)
    assert dataset.manifest.tokenizer_name == tokenization
    assert all("<User>" in text for text in texts(made.path)["train"])
    again = tokenize(config(path, tokenization=tokenization), tmp_path / "again")
    assert again.digest == made.digest


def test_a_tokenizer_is_taken_from_another_dataset_with_its_template(tmp_path):
    a = write_chats(tmp_path / "a.jsonl", chats(30))
    b = write_chats(tmp_path / "b.jsonl", chats(30, seed=1))
    base = tokenize(config(a, tokenization="bpe:300", template="chatml"), tmp_path / "base")
    chat = tokenize(config(b, tokenizer_from=base.path), tmp_path / "chat")
    first, second = open_dataset(base.path).manifest, open_dataset(chat.path).manifest
    assert second.tokenizer == first.tokenizer
    assert (second.template, second.tokenizer_name) == (first.template, "bpe:300")


@pytest.mark.parametrize("where", ["name", "file", "dataset"])
def test_alpacas_prompt_is_never_written_twice(tmp_path, where):
    """The template may be named, be the user's own file, or come with another dataset."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"instruction": "Add 1 and 1", "output": "2"}) + "\n")
    knobs = {"template": "alpaca"}
    if where == "file":
        knobs["template"] = str(tmp_path / "mine.json")
        (tmp_path / "mine.json").write_text(load_template("alpaca").model_dump_json())
    elif where == "dataset":
        chat = write_chats(tmp_path / "chat.jsonl", chats(5))
        knobs = {"tokenizer_from": tokenize(config(chat, **knobs), tmp_path / "base").path}
    with pytest.raises(ConfigError, match="holds the prompt that template alpaca writes"):
        tokenize(config(path, **knobs), tmp_path / "d")


def test_a_mix_of_text_and_chat_keeps_both(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("A paragraph.\n\n" * 3000)
    chat = write_chats(tmp_path / "chat.jsonl", chats(20))
    dataset = open_dataset(prepare(config(text, chat), MaskPolicy(), tmp_path / "d").path)
    stats = dataset.manifest.mask.stats
    assert dataset.manifest.kind == "chat"
    assert stats.by_source["text.txt"].density == 1.0
    assert 0 < stats.by_source["chat.jsonl"].density < 1
    only_text = open_dataset(tokenize(config(text), tmp_path / "t").path).manifest
    assert only_text.kind == "text"


def test_packed_files_are_read_as_they_are(tmp_path):
    path = write_chats(tmp_path / "chat.jsonl", chats(20))
    packed = tmp_path / "chat.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert texts(tokenize(config(packed), tmp_path / "a").path) == texts(
        tokenize(config(path), tmp_path / "b").path
    )


def test_progress_goes_up_to_the_end_over_all_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "_ROWS", 5)
    paths = [write_chats(tmp_path / f"{i}.jsonl", chats(20, seed=i)) for i in range(2)]
    seen = []
    tokenize(
        config(*paths, tokenization="bpe:270"), tmp_path / "d", progress=lambda *a: seen.append(a)
    )
    done, total, rows, tokens = zip(*seen, strict=True)
    assert list(done) == sorted(done)
    assert set(total) == {2 * sum(path.stat().st_size for path in paths)}
    assert done[-1] == total[-1]
    manifest = open_dataset(tmp_path / "d").manifest
    assert tokens[-1] <= manifest.tokens("train") + manifest.tokens("val")
    assert tokens[-1] > 0
    assert 0 < rows[-1] <= 40


def test_progress_counts_one_pass_where_no_tokenizer_is_trained(tmp_path):
    path = write_chats(tmp_path / "chat.jsonl", chats(20))
    base = tokenize(config(path, tokenization="bpe:270"), tmp_path / "base")
    seen = []
    again = config(path, tokenization="bpe:270", tokenizer_from=base.path)
    tokenize(again, tmp_path / "d", progress=lambda *a: seen.append(a))
    assert seen[-1][:2] == (path.stat().st_size, path.stat().st_size)


def test_a_wrong_line_deep_in_the_file_leaves_nothing_behind(tmp_path):
    path = write_chats(tmp_path / "chat.jsonl", chats(500))
    with path.open("a") as file:
        file.write(json.dumps({"messages": [say("wizard", "?")]}) + "\n")
    with pytest.raises(DataError, match=r"chat\.jsonl.*501.*wizard"):
        tokenize(config(path), tmp_path / "d")
    assert not (tmp_path / "d").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".tmp")]


def test_a_crash_between_batches_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "_ROWS", 10)
    path = write_chats(tmp_path / "chat.jsonl", chats(50))

    def stop(done, total, *_):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(config(path), tmp_path / "d", progress=stop)
    assert not (tmp_path / "d").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".tmp")]


def test_an_unknown_tokenization_is_refused_before_anything_is_written(tmp_path):
    path = write_chats(tmp_path / "chat.jsonl", chats(5))
    with pytest.raises(ConfigError, match="gtp2"):
        tokenize(config(path, tokenization="gtp2"), tmp_path / "d")
    assert not (tmp_path / "d").exists()


def peak_of(out_dir, prepared):
    tracemalloc.start()
    tokenize(prepared, out_dir)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_memory_stays_flat_however_large_the_input_is(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "_CHARACTERS", 1 << 16)
    peaks = []
    for count in (1, 8):
        path = tmp_path / f"{count}.txt"
        path.write_text("".join(f"line {i} of a corpus\n" for i in range(count * 15_000)))
        peaks.append(peak_of(tmp_path / f"d{count}", config(path, shard_tokens=100_000)))
    assert peaks[1] < 1.3 * peaks[0]


def test_an_account_that_does_not_add_up_is_refused(tmp_path, monkeypatch):
    path = write_chats(tmp_path / "chat.jsonl", chats(20))
    select = tokenization.select_rows

    def lose_one(encoded, chosen):
        return select(encoded, chosen & (np.arange(len(chosen)) != 7))

    monkeypatch.setattr(tokenization, "select_rows", lose_one)
    with pytest.raises(DataError, match="20 rows read, but 19 kept and 0 dropped"):
        tokenize(config(path), tmp_path / "d")


def test_generated_exercises_are_a_source_like_any_other(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "home"))
    source = Source(exercises="chat", count=50, seed=3)
    prepared = PrepareConfig(sources=(source,), tokenization="byte")
    manifest = open_dataset(prepare(prepared, MaskPolicy(), tmp_path / "d").path).manifest
    assert manifest.sources[0].rows_read == 50
    assert 0.1 < manifest.mask.stats.total.density < 0.9


def test_a_vocabulary_in_a_folder_counts_by_what_it_holds(tmp_path):
    theirs = make_tokenizer(LLAMA3)
    theirs.save(str(tmp_path / "tokenizer.json"))
    made = config(write_chats(tmp_path / "a.jsonl", chats(3)), tokenization=f"hf:{tmp_path}")
    before = recipe(made)
    assert recipe(made) == before
    make_tokenizer(LLAMA3, 350).save(str(tmp_path / "tokenizer.json"))
    assert recipe(made) != before
