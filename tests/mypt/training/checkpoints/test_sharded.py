"""A checkpoint in parts: the same bits on any number of ranks, and nothing read unverified."""

import os
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from mypt import files
from mypt.errors import CheckpointError
from mypt.home import models_dir
from mypt.training.checkpoints.checkpoint import load_checkpoint
from mypt.training.checkpoints.sharded import consolidate, verify_shards
from mypt.training.claim import beginning
from mypt.training.lineage import RunContext, verify_folder
from mypt.training.loop import train
from mypt.training.optim import moments_of
from mypt.training.run import open_run
from tests.mypt.training.gloo import together

WORDS = {"parallel": "fsdp", "grad_accumulation": 6, "max_iters": 4, "checkpoint_interval": 2}


def trained(plan, ranks):
    return [type(event).__name__ for event in train(plan, ranks=ranks)]


def held(plan, ranks):
    """Digests of what ranks hold together after going on from the newest checkpoint."""
    with beginning(plan, RunContext(), ranks) as (folder, found, notes):
        run = open_run(plan, folder, RunContext(), found, notes, ranks)
        tensors = dict(run.model.named_parameters()) | moments_of(run.model, run.optimizer)
        whole = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()}
        return {n: files.digest_bytes(t.detach().numpy().tobytes()) for n, t in whole.items()}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A home in which two ranks have trained, made once; copied for each test."""
    return {"home": tmp_path_factory.mktemp("kept")}


@pytest.fixture
def model(kept, plan, tmp_path, monkeypatch):
    """The model's folder, with a step folder and the parts of its last step."""
    import shutil

    made = plan("parts", **WORDS)
    if "said" not in kept:
        monkeypatch.setenv("MYPT_HOME", str(kept["home"]))
        kept["said"] = together(2, partial(trained, made))
    shutil.copytree(kept["home"], tmp_path / "copy")
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "copy"))
    return models_dir() / "parts"


def test_ranks_leave_parts_and_one_file_of_all(model, kept):
    leader, other = kept["said"]
    assert leader.count("CheckpointSaved") == 2
    assert "CheckpointSaved" not in other
    record = verify_shards(model / "shards_000004")
    assert sum(one.name.startswith("parts/shard-0000") for one in record.files) == 2
    assert verify_folder(model / "step_000004").step == 4
    assert not (model / "shards_000002").exists()


@pytest.mark.parametrize("size", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_ranks_goes_on_from_the_same_bits(model, plan, size):
    step = load_checkpoint(model / "step_000004")
    expected = {n: files.digest_bytes(t.numpy().tobytes()) for n, t in step.weights.items()}
    from_parts = together(size, partial(held, plan("parts", **WORDS)))
    assert all(one == from_parts[0] for one in from_parts)
    assert expected.items() <= from_parts[0].items()
    assert len(from_parts[0]) == 4 * len(expected)  # two moments and a count each
    files.remove_folder(model / "shards_000004")
    assert together(size, partial(held, plan("parts", **WORDS))) == from_parts


def test_parts_alone_are_joined_where_a_crash_came_between(model, plan):
    before = files.digest_file(model / "step_000004" / "model.safetensors")
    files.remove_folder(model / "step_000004")
    files.write_bytes(model / "latest", b"step_000002\n")
    (end,) = train(plan("parts", **WORDS | {"parallel": "none"}))
    assert (end.reason, end.step) == ("already finished", 4)
    assert files.digest_file(model / "step_000004" / "model.safetensors") == before
    assert (model / "latest").read_text() == "step_000004\n"


def test_every_changed_byte_is_named_before_anything_is_read(model):
    parts = model / "shards_000004"
    for path in sorted(one for one in parts.rglob("*") if one.is_file()):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CheckpointError, match=path.name):
            consolidate(parts)
        path.write_bytes(whole)
    verify_shards(parts)


class Evil:
    """A pickle that leaves a file where it was loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", [".metadata", "parts/.metadata", "parts/__0_0.distcp"])
def test_a_pickle_that_torch_would_load_is_refused_unread(model, plan, tmp_path, name):
    mark = tmp_path / "executed"
    (model / "shards_000004" / name).write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(CheckpointError, match=Path(name).name):
        consolidate(model / "shards_000004")
    (said,) = together(1, partial(trained, plan("parts", **WORDS)))
    assert said == ["Finished"]
    assert (model / "damaged-shards_000004").is_dir()  # put aside; the step folder is whole
    (model / "step_000004" / Path(name).name).write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(CheckpointError, match="mypt reads no pickle"):
        verify_folder(model / "step_000004")
    assert not mark.exists()


def test_a_rank_that_dies_while_it_writes_leaves_the_old_checkpoint(model, plan):
    longer = plan("parts", **WORDS)
    files.remove_folder(model / "step_000004")
    files.remove_folder(model / "shards_000004")

    def dying(ranks):
        from mypt.training.checkpoints import sharded as shards

        true = shards.HuggingFaceStorageWriter.write_data

        def die(*given):
            done = true(*given)
            if ranks.rank == 1:
                os._exit(0)
            return done

        shards.HuggingFaceStorageWriter.write_data = die
        with pytest.raises(RuntimeError):
            trained(longer, ranks)
        os._exit(0)

    with pytest.raises((AssertionError, TypeError)):
        together(2, dying)
    assert not list(model.glob("shards_*"))
    assert sorted(one.name for one in model.glob("step_*")) == ["step_000002"]
    torch.manual_seed(0)
    said = together(2, partial(trained, longer))
    assert said[0].count("CheckpointSaved") == 1
    assert verify_shards(model / "shards_000004").state.step == 4
