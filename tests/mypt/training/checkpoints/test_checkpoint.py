import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mypt import files
from mypt.config import load_config
from mypt.errors import CheckpointError
from mypt.home import models_dir
from mypt.training.checkpointing import keeper
from mypt.training.checkpoints.checkpoint import load_checkpoint, load_model
from mypt.training.claim import claim, last_checkpoint
from mypt.training.lineage import RunContext, read_lineage, verify_folder
from mypt.training.run import open_run
from mypt.training.step import take_step

FILES = {
    "model.safetensors", "optimizer.safetensors", "config.json", "trainer_state.json",
    "history.safetensors", "tokenizer_state.json", "lineage.json",
}  # fmt: skip


def save(run):
    with keeper(run) as checkpoints:
        checkpoints.write()
        return next(checkpoints.saved(wait=True))


@pytest.fixture
def saved(plan):
    """A checkpoint of two steps and the run that wrote it."""
    made = plan(dropout=0.0)
    with claim(made, RunContext()) as folder:
        run = open_run(made, folder, RunContext(), None, ())
        take_step(run)
        take_step(run)
        save(run)
    return folder / "step_000002", run


def test_a_checkpoint_holds_its_files_and_no_other(saved):
    assert {path.name for path in saved[0].iterdir()} == FILES
    assert (saved[0].parent / "latest").read_text() == "step_000002\n"


def test_weights_and_moments_come_back_bit_for_bit(saved, plan):
    _, run = saved
    with claim(plan(dropout=0.0), RunContext()) as folder:
        found, _ = last_checkpoint(folder, plan(dropout=0.0))
        again = open_run(plan(dropout=0.0), folder, RunContext(), found, ())
    assert again.state == run.state
    for before, after in zip(run.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(before, after)
        ours, theirs = run.optimizer.state[before], again.optimizer.state[after]
        assert ours.keys() == theirs.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_tied_embedding_is_stored_once(saved):
    names = load_file(saved[0] / "model.safetensors").keys()
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names


def test_its_config_is_a_preset_like_any_other(saved):
    assert load_config(saved[0] / "config.json") == saved[1].plan.preset


def test_a_model_is_loaded_by_name_and_answers_as_the_one_that_was_saved(saved):
    path, run = saved
    ids = torch.arange(10)[None]
    run.model.eval()
    for name in ("m", path, path.parent):
        model, tokenizer, checkpoint = load_model(name)
        assert not model.training
        assert torch.equal(model(ids)[0], run.model(ids)[0])
        assert tokenizer.digest == run.dataset.tokenizer.digest
        assert (checkpoint.path, checkpoint.ref.step) == (path, 2)


def test_a_name_means_the_best_checkpoint_where_there_is_one(plan, monkeypatch, finish):
    losses = iter([9.0, 1.0, 2.0])
    monkeypatch.setattr(
        "mypt.training.loop._mean_loss",
        lambda run, split: (next(losses) if split == "val" else 0.0, run.groups.none()),
    )
    finish(plan(max_iters=4, eval_interval=2))
    assert load_model("m")[2].ref.step == 2
    assert load_model(models_dir() / "m" / "step_000004")[2].ref.step == 4


@pytest.mark.parametrize("file", sorted(FILES))
def test_one_flipped_bit_anywhere_is_detected_and_the_file_named(saved, file):
    path = saved[0] / file
    data = path.read_bytes()
    for at in range(0, len(data), max(1, len(data) // 25)):
        for bit in (0, 5):
            broken = bytearray(data)
            broken[at] ^= 1 << bit
            path.write_bytes(broken)
            with pytest.raises(CheckpointError, match=file):
                load_checkpoint(saved[0])
    path.write_bytes(data)
    load_checkpoint(saved[0])


def test_even_a_change_that_keeps_every_value_is_detected(saved):
    path = saved[0] / "lineage.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(CheckpointError, match=r"lineage\.json: damaged: its bytes changed"):
        load_checkpoint(saved[0])


@pytest.mark.parametrize("file", sorted(FILES))
@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "zero tail"])
def test_a_torn_file_is_detected_and_named(saved, file, harm):
    path = saved[0] / file
    data = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": data[:-7], "zero tail": data[:-7] + bytes(7)}[harm])
    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(saved[0])


def test_weights_of_another_checkpoint_are_detected(saved, plan):
    path, run = saved
    with claim(plan(dropout=0.0), RunContext()) as folder:
        take_step(run)
        save(run)
    (path / "model.safetensors").write_bytes(
        (folder / "step_000003" / "model.safetensors").read_bytes()
    )
    with pytest.raises(CheckpointError, match=r"model\.safetensors: its bytes changed"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["model.pt", "optimizer.PKL", "x.joblib"])
def test_a_pickle_in_the_folder_is_refused_and_never_read(saved, name):
    (saved[0] / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match="reads no pickle"):
        load_checkpoint(saved[0])


def test_a_checkpoint_is_never_overwritten(saved):
    before = verify_folder(saved[0])
    with pytest.raises(FileExistsError):
        save(saved[1])
    assert verify_folder(saved[0]) == before


def resealed(folder: Path, **changes: object) -> None:
    """Change lineage.json and seal it again, as a forger would."""
    values = files.read_sealed(folder / "lineage.json") | changes
    del values["digest"]
    files.write_sealed(folder / "lineage.json", values)


def test_a_lineage_cannot_point_outside_its_folder(saved):
    outside = saved[0].parent / "run.json"
    record = {
        "name": "../run.json",
        "size": outside.stat().st_size,
        "digest": files.digest_file(outside),
    }
    resealed(saved[0], files=[record])
    with pytest.raises(CheckpointError, match=r"run\.json: lies outside"):
        verify_folder(saved[0])


def test_a_lineage_of_another_version_is_refused(saved):
    resealed(saved[0], version=2)
    with pytest.raises(CheckpointError, match="version 2, this mypt reads 1"):
        read_lineage(saved[0])


def test_a_lineage_with_unknown_keys_is_refused(saved):
    resealed(saved[0], surprise=1)
    with pytest.raises(CheckpointError, match="surprise"):
        read_lineage(saved[0])


def reconfigured(folder: Path, config: dict[str, object]) -> None:
    """Write another config.json and seal it."""
    files.write_json(folder / "config.json", config)
    records = json.loads((folder / "lineage.json").read_bytes())["files"]
    for record in records:
        if record["name"] == "config.json":
            record["size"] = (folder / "config.json").stat().st_size
            record["digest"] = files.digest_file(folder / "config.json")
    resealed(folder, files=records, config=config)


def test_weights_that_do_not_fit_the_config_are_refused(saved):
    config = json.loads((saved[0] / "config.json").read_bytes()) | {"n_layer": 2}
    reconfigured(saved[0], config)
    with pytest.raises(CheckpointError, match=r"does not fit the architecture .*transformer\.h\.1"):
        load_model(saved[0])


def test_a_checkpoint_from_before_the_modern_parts_is_the_same_gpt2(saved):
    """What an older mypt did not write is the default: what it had then."""
    config = json.loads((saved[0] / "config.json").read_bytes())
    for key in ("pos_encoding", "norm_type", "mlp_type", "qk_norm", "n_kv_head", "tie_weights"):
        del config[key]
    reconfigured(saved[0], config)
    model, _, found = load_model(saved[0])
    ids = torch.tensor([[3, 1, 4]])
    assert torch.equal(model(ids)[0], saved[1].model.eval()(ids)[0])
    assert found.preset == saved[1].plan.preset == found.lineage.config


@pytest.mark.parametrize(
    "parts",
    [
        {"pos_encoding": "rope", "tie_weights": False},
        {"norm_type": "rmsnorm", "mlp_type": "swiglu", "qk_norm": True, "n_kv_head": 1},
    ],
)
def test_modern_parts_come_back_from_a_checkpoint(plan, finish, parts):
    finish(plan("modern", max_iters=1, dropout=0.0, **parts))
    model, _, found = load_model("modern")
    assert found.config.model_dump().items() >= parts.items()
    assert {name for name, _ in model.named_parameters()} == found.weights.keys()


def test_a_full_disk_is_one_error_and_leaves_nothing_under_the_name(plan):
    made = plan()
    with claim(made, RunContext()) as folder:
        run = open_run(made, folder, RunContext(), None, ())
        take_step(run)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        for room in (1_000, 20_000, 45_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))
            try:
                with pytest.raises(CheckpointError, match=r"cannot be written: .* make room"):
                    save(run)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            assert {path.name for path in folder.iterdir()} == {".lock", "run.json"}
        assert save(run).step == 1
        verify_folder(folder / "step_000001")


def test_a_model_that_is_not_there_is_one_line():
    with pytest.raises(CheckpointError, match="no model at"):
        load_model("nobody")
