import errno
import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from mypt import __version__
from mypt.config import MaskPolicy, Preset
from mypt.data.dataset import mask
from mypt.errors import CheckpointError
from mypt.provenance.trace import Link, render, trace
from mypt.training import circumstances as provenance
from mypt.training.lineage import RunContext, read_lineage
from mypt.training.loop import train


@pytest.fixture
def chain(tmp_path, monkeypatch, plan, finish, make_chat):
    """A folder with raw file, dataset, re-masked dataset, base and chat model; the checkpoint."""
    world = tmp_path / "world"
    world.mkdir()
    monkeypatch.setenv("MYPT_HOME", str(world))
    monkeypatch.chdir(tmp_path)
    first = make_chat(world)
    second = mask(first, MaskPolicy(end_of_turn=False), world / "datasets" / "masked").path
    finish(plan("base", dataset=first, max_iters=1))
    made = plan("sft", dataset=second, init_from="base", max_iters=2)
    end = finish(made, context=RunContext(mlflow_run_id="run1"))["end"]
    return world, Path(end.checkpoint.path)


def walk(link, depth=0):
    yield depth, link
    for below in link.links:
        yield from walk(below, depth + 1)


def outline(link):
    return [(depth, found.kind, found.name) for depth, found in walk(link)]


def test_a_checkpoint_leads_back_to_the_bytes_of_the_raw_file(chain):
    world, checkpoint = chain
    found = trace(checkpoint)
    assert outline(found) == [
        (0, "checkpoint", "sft step 2"),
        (1, "dataset", "masked"),
        (2, "dataset", "before masking"),
        (2, "source", "chat.jsonl"),
        (3, "file", "chat.jsonl"),
        (1, "checkpoint", "base step 1"),
        (2, "dataset", "chat"),
        (3, "source", "chat.jsonl"),
        (4, "file", "chat.jsonl"),
    ]
    raw = (world / "chat.jsonl").read_bytes()
    files = [link for _, link in walk(found) if link.kind == "file"]
    assert {link.digest for link in files} == {hashlib.sha256(raw).hexdigest()}
    assert {link.path for link in files} == {str(world / "chat.jsonl")}
    assert all(link.verified is None for _, link in walk(found))
    assert found.ok


def test_verify_hashes_everything_again(chain):
    found = trace(chain[1], verify=True)
    assert found.ok
    assert all(link.verified for _, link in walk(found) if link.kind != "source")


def test_one_changed_byte_of_the_source_is_named(chain):
    world, checkpoint = chain
    raw = world / "chat.jsonl"
    raw.write_bytes(raw.read_bytes().replace(b"say 7", b"say 8", 1))
    assert trace(checkpoint).ok
    found = trace(checkpoint, verify=True)
    assert not found.ok
    problems = {problem for _, link in walk(found) for problem in link.problems}
    assert problems == {f"{raw}: its bytes changed"}


@pytest.mark.parametrize(
    "changed",
    [
        "datasets/masked/train/shard_000_mask.bin",
        "datasets/chat/val/shard_000.bin",
        "models/base/step_000001/model.safetensors",
        "models/sft/step_000002/config.json",
    ],
)
def test_each_changed_file_of_the_chain_is_named(chain, changed):
    world, checkpoint = chain
    path = world / changed
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.unlink()  # tokens share an inode between a dataset and its re-masked twin
    path.write_bytes(data)
    found = trace(checkpoint, verify=True)
    problems = {problem for _, link in walk(found) for problem in link.problems}
    assert problems == {f"{path}: its bytes changed since it was written"}


def test_moved_folders_are_found(chain, tmp_path, monkeypatch):
    world, checkpoint = chain
    monkeypatch.delenv("MYPT_HOME")
    there = tmp_path / "elsewhere" / "attic"
    shutil.move(world, there)
    found = trace(there / checkpoint.relative_to(world), verify=True)
    assert found.ok
    places = [Path(link.path) for _, link in walk(found) if link.path]
    assert len(places) == 7
    assert all(place.is_relative_to(there) for place in places)


def test_folders_come_from_a_home_that_nobody_else_may_enter(chain, tmp_path, monkeypatch):
    world, checkpoint = chain
    there = tmp_path / "mine"
    shutil.move(world, there)
    monkeypatch.setenv("MYPT_HOME", str(there))
    true = os.stat

    def stat(path, *words, **choices):
        if not isinstance(path, int) and str(path).startswith(str(world)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return true(path, *words, **choices)

    monkeypatch.setattr(os, "stat", stat)
    assert trace(there / checkpoint.relative_to(world), verify=True).ok


def test_what_is_gone_is_said_and_the_records_still_speak(chain):
    world, checkpoint = chain
    shutil.rmtree(world / "datasets")
    shutil.rmtree(world / "models" / "base")
    (world / "chat.jsonl").unlink()
    found = trace(checkpoint)
    assert found.ok
    assert outline(found) == [
        (0, "checkpoint", "sft step 2"),
        (1, "dataset", "masked"),
        (2, "dataset", "before masking"),
        (2, "source", "chat.jsonl"),
        (3, "file", "chat.jsonl"),
        (1, "checkpoint", "base step 1"),
        (2, "dataset", "chat"),
        (3, "source", "chat.jsonl"),
        (4, "file", "chat.jsonl"),
    ]
    problems = [p for _, link in walk(trace(checkpoint, verify=True)) for p in link.problems]
    assert len(problems) == 6
    assert all("there any more" in problem for problem in problems)


def test_the_records_say_what_matters(chain):
    _, checkpoint = chain
    lineage = read_lineage(checkpoint)
    assert lineage.context.mlflow_run_id == "run1"
    assert lineage.config.seed == 1337
    assert lineage.code.version == __version__
    assert set(lineage.code.libraries) >= {"python", "torch", "numpy", "tiktoken"}
    assert lineage.code.libraries.keys().isdisjoint({"transformers", "bitsandbytes"})
    assert (lineage.compute.device, lineage.compute.threads) == ("cpu", 1)
    assert lineage.step == 2
    assert lineage.tokens == 2 * 2 * 4 * 16
    assert 0 < lineage.supervised < lineage.tokens
    dataset = lineage.dataset
    assert dataset.mask.policy == MaskPolicy(end_of_turn=False)
    assert 0 < dataset.mask.stats.by_role["assistant"].density < 1
    source = dataset.sources[0]
    assert (source.licence, source.rows_read) == ("CC0", 80)
    facts = [fact for _, link in walk(trace(checkpoint)) for fact in link.facts]
    assert "parent: none" in facts
    assert "mlflow_run_id run1" in facts
    assert "format messages, weight 1, licence CC0" in facts
    assert "mask: assistant,no_stop" in facts
    assert "mask: assistant" in facts


def test_who_made_the_first_steps_and_what_a_block_loses_is_told(plan, finish):
    made = plan(batching="packed", block_size=15, length_policy="drop", max_lost=1.0, max_iters=6)
    asked = iter([False, False, True])
    list(train(made, context=RunContext(mlflow_run_id="one"), should_stop=lambda: next(asked)))
    end = finish(made, context=RunContext(mlflow_run_id="two"))
    facts = trace(Path(end["end"].checkpoint.path)).facts
    assert any(fact.startswith("until step 2: mypt ") for fact in facts)
    account = read_lineage(Path(end["end"].checkpoint.path)).epoch.accounts[0].dropped[0]
    assert (
        f"chat.jsonl: dropped {account.tokens} tokens, {account.supervised} supervised, of"
        f" {account.stretches} stretches: longer than the block"
    ) in facts


def test_the_tree_is_drawn_and_travels_as_json(chain):
    found = trace(chain[1], verify=True)
    console = Console(file=io.StringIO(), width=200)
    console.print(render(found))
    drawn = console.file.getvalue()
    assert "checkpoint sft step 2" in drawn
    assert "chat.jsonl" in drawn
    assert Link.model_validate(json.loads(found.model_dump_json())) == found


def test_no_name_in_the_tree_steers_the_terminal():
    evil = "a\x1b[2J\u202e"
    file = Link(kind="file", name=evil, digest="0", path=evil, facts=(evil,), problems=(evil,))
    console = Console(file=io.StringIO(), width=200)
    console.print(render(file))
    assert console.file.getvalue().count("a\\x1b[2J\\u202e") == 4
    assert not {"\x1b", "\u202e"} & set(console.file.getvalue())


def test_a_checkpoint_without_lineage_is_refused(chain):
    (chain[1] / "lineage.json").unlink()
    with pytest.raises(CheckpointError, match=r"lineage\.json.* missing"):
        trace(chain[1])


def test_code_outside_a_checkout_has_no_commit(tmp_path):
    assert provenance._checkout(tmp_path) == (None, None)


def test_the_code_digest_covers_every_file_of_the_package(monkeypatch):
    before = provenance.record_code(Preset())
    assert before == provenance.record_code(Preset())
    true_read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda p: true_read(p) + (b" " if p.name == "spans.py" else b"")
    )
    assert provenance.record_code(Preset()).digest != before.digest
