"""Made again from the raw files: the same bits, or the stage and step at which they part."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mypt.config import MaskPolicy, PrepareConfig, Preset, Source
from mypt.data.dataset import mask, prepare, tokenize
from mypt.data.exchange.adoption import adopt
from mypt.errors import CheckpointError, ConfigError, DataError
from mypt.home import checkpoint_to_use, datasets_dir, home
from mypt.provenance import reproduction
from mypt.provenance.reproduction import reproduce
from mypt.training import step
from mypt.training.checkpoints.state import History
from mypt.training.lineage import read_lineage
from tests.mypt.conftest import write_chat


def write_raw(folder):
    """Write texts in a folder of folders, packed ones too, and two files of chats."""
    import gzip

    (folder / "texts" / "deep").mkdir(parents=True)
    for i in range(6):
        text = f"{i} and the words of text {i}, again and again. " * (3 + i)
        (folder / "texts" / f"{i}.txt").write_text(text)
    (folder / "texts" / "deep" / "0.txt.gz").write_bytes(gzip.compress(b"deeper words. " * 20))
    write_chat(folder / "a.jsonl", 30)
    write_chat(folder / "b.jsonl", 20, "no {i}")


@pytest.fixture
def made(tmp_path, monkeypatch, plan, finish):
    """A base model with a tokenizer of its own, and a chat model masked twice; its step folder."""
    raw = tmp_path / "raw"
    write_raw(raw)
    monkeypatch.chdir(raw)
    base = PrepareConfig(
        sources=(
            Source(path="texts", format="text", name="words"),
            Source(exercises="text", count=60, weight=2),
        ),
        tokenization="bpe:280",
        val_fraction=0.2,
    )
    first = tokenize(base, datasets_dir() / "base-1").path
    chat = PrepareConfig(
        sources=(Source(path="[ab].jsonl"), Source(path=str(raw / "a.jsonl"), weight=3)),
        tokenizer_from=first,
        val_fraction=0.2,
    )
    second = prepare(chat, MaskPolicy(), datasets_dir() / "chat-1").path
    third = mask(second, MaskPolicy(end_of_turn=False), datasets_dir() / "chat-2").path
    size = {"vocab_size": 300, "threads": 0, "device": "auto", "dtype": "auto", "max_iters": 5}
    finish(plan("base", dataset=first, use_loss_mask=False, **size))
    end = finish(plan("chat", dataset=third, init_from="base", **size | {"max_iters": 8}))
    return Path(end["end"].checkpoint.path)


def outcomes(found):
    return [(stage.name, stage.outcome) for stage in found.stages]


def test_everything_is_made_again_bit_for_bit(made, tmp_path):
    told = []
    found = reproduce(made, tmp_path / "again", tell=told.append)
    n_steps = read_lineage(made).step
    assert outcomes(found) == [
        ("dataset base-1", "same"),
        ("dataset chat-2", "same"),
        ("training base, 5 steps", "same"),
        (f"training chat, {n_steps} steps", "same"),
    ]
    assert found.ok
    assert found.notes == ()
    assert tuple(told) == found.stages
    assert found.stages[-1].found == read_lineage(made).weights
    assert not list(home().glob("*again*"))


def test_an_adapter_is_made_again_on_its_base_made_again(made, plan, finish, tmp_path):
    config = {"vocab_size": 300, "max_iters": 4, "lora": {"rank": 2}}
    data = read_lineage(made).dataset.path
    finish(plan("beside", dataset=data, init_from="chat", **config))
    found = reproduce(checkpoint_to_use("beside"), tmp_path / "again")
    assert found.ok
    assert [stage.outcome for stage in found.stages[-3:]] == ["same"] * 3


def test_raw_files_and_parents_may_have_moved_or_gone(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "attic").mkdir()
    shutil.move(tmp_path / "raw", tmp_path / "runs" / "raw")
    shutil.rmtree(datasets_dir())
    shutil.rmtree(home() / "models" / "base")
    shutil.rmtree(home() / "sources")
    found = reproduce(made, tmp_path / "again")
    assert found.ok
    assert len(found.stages) == 4


def test_a_changed_raw_file_is_named_and_nothing_is_trained(made, tmp_path):
    raw = tmp_path / "raw" / "texts" / "3.txt"
    raw.write_text(raw.read_text().replace("3", "4"))
    found = reproduce(made, tmp_path / "again")
    assert outcomes(found) == [("dataset base-1", "differs")]
    assert found.stages[0].details == (f"{raw}: gone, or its bytes changed since they were read",)
    assert not found.ok


def test_other_rows_read_from_the_same_bytes_are_told(made, tmp_path, monkeypatch):
    from mypt.data.preparation import encoding

    true = encoding._digests
    monkeypatch.setattr(encoding, "_digests", lambda *turns: [d[::-1] for d in true(*turns)])
    found = reproduce(made, tmp_path / "again")
    assert outcomes(found) == [("dataset base-1", "differs")]
    details = found.stages[0].details
    assert any(line.startswith("tokens: {'train'") for line in details)
    assert "train/shard_000_rows.npy: other bytes than then" in details


def test_the_first_step_that_parts_is_named(made, tmp_path, monkeypatch):
    true = step.learning_rate_at
    monkeypatch.setattr(
        step, "learning_rate_at", lambda n, config: true(n, config) * (1 + (n == 2) * 1e-4)
    )
    found = reproduce(made, tmp_path / "again")
    assert outcomes(found)[2:] == [("training base, 5 steps", "differs")]
    (line,) = found.stages[-1].details
    # The third update was another, so the fourth step is the first that measures it.
    assert line.startswith("they part at step 4: ")
    assert not (tmp_path / "again" / "models" / "0-base" / "step_000005").exists()


def test_an_update_that_no_step_measured_parts_in_the_last(made, tmp_path, monkeypatch):
    true, last = step.learning_rate_at, read_lineage(made).step
    monkeypatch.setattr(
        step,
        "learning_rate_at",
        lambda n, config: true(n, config) * (1 + (config.max_iters == 8 and n == last - 1)),
    )
    found = reproduce(made, tmp_path / "again")
    assert found.stages[-1].details == (
        f"every loss and gradient is the same; they part in the update of step {last}",
    )


def test_without_recorded_steps_only_the_stage_is_known(made, tmp_path, monkeypatch):
    true = step.learning_rate_at
    monkeypatch.setattr(reproduction, "read_history", lambda _, steps: History.unknown(steps))
    monkeypatch.setattr(step, "learning_rate_at", lambda n, config: true(n, config) * 2)
    found = reproduce(made, tmp_path / "again")
    assert found.stages[-1].details == (
        "at which step they part is not known: an older mypt wrote it",
    )


def test_how_program_and_machine_differ_is_noted(made, tmp_path, monkeypatch):
    from mypt.training import circumstances

    now = circumstances.record_code(Preset())
    other = now.model_copy(
        update={"digest": "f" * 64, "libraries": now.libraries | {"torch": "99.0"}}
    )
    monkeypatch.setattr(circumstances, "record_code", lambda _: other)
    found = reproduce(made, tmp_path / "again")
    assert found.ok
    torch_then = now.libraries["torch"]
    assert f"base step 5: torch {torch_then} then, 99.0 now" in found.notes
    assert any("mypt" in note and "f" * 12 in note for note in found.notes)


def test_shards_made_by_hand_are_used_as_they_are(plan, finish, tmp_path):
    folder = tmp_path / "hand"
    (folder / "train").mkdir(parents=True)
    (folder / "val").mkdir()
    np.arange(200, dtype=np.uint32).tofile(folder / "train" / "shard_000.bin")
    np.ones(200, np.uint8).tofile(folder / "train" / "shard_000_mask.bin")
    adopt(folder, "byte")
    end = finish(plan(dataset=folder, max_iters=2))
    step_folder = Path(end["end"].checkpoint.path)
    found = reproduce(step_folder, tmp_path / "again")
    assert [stage.outcome for stage in found.stages] == ["taken", "same"]
    assert found.ok
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="nobody recorded how it was made"):
        reproduce(step_folder, tmp_path / "more")


def test_an_existing_folder_is_refused(made, tmp_path):
    (tmp_path / "again").mkdir()
    with pytest.raises(ConfigError, match="exists; expected a new folder"):
        reproduce(made, tmp_path / "again")


def test_a_checkpoint_without_lineage_cannot_be_made_again(tmp_path):
    with pytest.raises(CheckpointError):
        reproduce(tmp_path, tmp_path / "again")
