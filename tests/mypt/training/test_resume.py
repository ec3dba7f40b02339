"""A run that stopped, was killed or lost a checkpoint ends in the bits of an undisturbed one."""

import os
import shutil
import signal
from importlib.metadata import version
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mypt import files
from mypt.errors import ManifestError
from mypt.home import models_dir
from mypt.training import checkpointing as writer
from mypt.training import loop
from mypt.training.checkpoints import checkpoint
from mypt.training.checkpoints.checkpoint import load_checkpoint
from mypt.training.events import CheckpointSaved, StepReport
from mypt.training.lineage import read_lineage, verify_folder
from mypt.training.loop import train

FILES = (
    "model.safetensors", "optimizer.safetensors", "config.json", "trainer_state.json",
    "history.safetensors", "tokenizer_state.json", "lineage.json",
)  # fmt: skip
DECIDED = FILES[:-1]
"""All but the lineage, whose machine and ids may differ."""


def digests(name):
    latest = models_dir() / name / "latest"
    step = latest.parent / latest.read_text().strip()
    return {file: files.digest_file(step / file) for file in DECIDED}


@pytest.fixture(scope="module")
def straight():
    """Digests and step reports of a run that nothing disturbs, made once."""
    return {}


@pytest.fixture
def undisturbed(straight, plan, finish):
    if not straight:
        steps = finish(plan("straight"))["steps"]
        straight |= {"digests": digests("straight"), "losses": {s.step: s.loss for s in steps}}
        shutil.rmtree(models_dir() / "straight")
    return straight


class Rows:
    """Records which rows each step reads."""

    def __init__(self, monkeypatch):
        self.read = {}
        true_batch = loop.Run.batch

        def batch(run, micro):
            found = true_batch(run, micro)
            self.read[run.state.step, micro] = found.input_ids.tolist()
            return found

        monkeypatch.setattr(loop.Run, "batch", batch)


@pytest.mark.parametrize("stop_at", [0, 1, 3, 4, 5, 11])
def test_a_stopped_run_goes_on_bit_for_bit(plan, finish, undisturbed, stop_at):
    done = []
    first = list(train(plan(), should_stop=lambda: len(done) >= stop_at or done.append(0)))
    assert (first[-1].reason, first[-1].step) == ("stopped", stop_at)
    second = finish(plan())
    assert second["all"][0].step == stop_at
    assert digests("m") == undisturbed["digests"]
    losses = {e.step: e.loss for e in [*first, *second["all"]] if isinstance(e, StepReport)}
    assert losses == undisturbed["losses"]


def test_weights_in_bfloat16_go_on_bit_for_bit_and_lie_so_on_disk(plan, finish):
    low = {"weight_dtype": "bfloat16", "dtype": "auto", "max_iters": 4, "sample_prompts": ("hi",)}
    finish(plan("low", **low))
    done = []
    list(train(plan(**low), should_stop=lambda: len(done) >= 2 or done.append(0)))
    finish(plan(**low))
    assert digests("m") == digests("low")
    held = load_checkpoint(models_dir() / "m" / "step_000004").weights
    assert held["transformer.h.0.mlp.c_fc.weight"].dtype == torch.bfloat16
    assert held["transformer.ln_f.weight"].dtype == torch.float32


@pytest.mark.parametrize("low", [{}, {"weight_dtype": "bfloat16", "dtype": "auto"}])
def test_moments_of_eight_bits_go_on_bit_for_bit_after_a_kill(plan, finish, low):
    pytest.importorskip("bitsandbytes", reason="pip install 'mypt[bitsandbytes]'")
    words = {"optimizer": "adamw8bit", "max_iters": 4, "n_embd": 64, "checkpoint_interval": 2}
    words |= low
    finish(plan("straight", **words))

    def killed():
        for event in train(plan(**words)):
            if isinstance(event, CheckpointSaved):
                die()

    assert in_a_child(killed) == -signal.SIGKILL
    assert finish(plan(**words))["all"][0].step == 2
    assert digests("m") == digests("straight")
    held = safetensors.torch.load_file(models_dir() / "m" / "step_000004" / "optimizer.safetensors")
    assert held["transformer.h.0.mlp.c_fc.weight.exp_avg"].dtype == torch.uint8
    libraries = read_lineage(models_dir() / "m" / "step_000004").code.libraries
    assert libraries["bitsandbytes"] == version("bitsandbytes")


def test_a_resumed_run_reads_the_same_rows_in_the_same_order(plan, finish, monkeypatch):
    whole = Rows(monkeypatch)
    finish(plan("a", batching="packed", block_size=32))
    monkeypatch.undo()
    halves = Rows(monkeypatch)
    monkeypatch.setenv("MYPT_HOME", str(models_dir().parent))
    done = []
    made = plan("b", batching="packed", block_size=32)
    list(train(made, should_stop=lambda: len(done) >= 5 or done.append(0)))
    finish(made)
    assert halves.read == whole.read
    assert len(whole.read) == 24
    assert 5 < read_lineage(models_dir() / "b" / "step_000012").epoch.steps < 12  # over its edge


def in_a_child(work):
    """Run ``work`` in a forked process; return how it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(monkeypatch, place, name, nth):
    """Let the nth call of ``place.name`` be the process's last."""
    true_function, calls = getattr(place, name), []

    def counted(*arguments, **choices):
        calls.append(0)
        if len(calls) == nth:
            die()
        return true_function(*arguments, **choices)

    monkeypatch.setattr(place, name, counted)


@pytest.mark.parametrize(
    ("place", "name", "nth"),
    [
        (loop.Run, "batch", 16),  # between two micro-batches of step 8
        (loop, "loss_of", 7),  # inside the evaluation after step 4
        (checkpoint, "write_lineage", 3),  # in the third checkpoint, all files but the last there
        (files, "sync_tree", 2),  # the second checkpoint whole, not yet named
        (loop.Run, "snapshot", 5),
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(plan, finish, undisturbed, place, name, nth):
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, place, name, nth)
        assert in_a_child(lambda: list(train(plan()))) == -signal.SIGKILL
    with pytest.MonkeyPatch.context() as patch:  # a second one during recovery
        kill_at(patch, loop.Run, "batch", 3)
        assert in_a_child(lambda: list(train(plan()))) == -signal.SIGKILL
    finish(plan())
    assert digests("m") == undisturbed["digests"]
    assert not list((models_dir() / "m").glob(".tmp-*"))


def test_a_crash_between_the_last_checkpoint_and_its_pointer_loses_nothing(
    plan, finish, undisturbed
):
    true_point = writer.point

    def point(place, step, best_step):
        if step == 12:
            die()
        true_point(place, step, best_step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "point", point)
        assert in_a_child(lambda: list(train(plan()))) == -signal.SIGKILL
    assert (models_dir() / "m" / "latest").read_text() != "step_000012\n"
    assert finish(plan())["end"].reason == "already finished"
    assert digests("m") == undisturbed["digests"]


def count_operations(monkeypatch, stop_after=None):
    """Count every write, sync, rename and removal; end the process after number ``stop_after``."""
    done = []

    def wrap(place, name):
        true_function = getattr(place, name)

        def counted(*arguments, **choices):
            result = true_function(*arguments, **choices)
            done.append(name)
            if len(done) == stop_after:
                os._exit(137)
            return result

        monkeypatch.setattr(place, name, counted)

    for place, name in (
        (os, "fsync"), (Path, "rename"), (Path, "unlink"), (Path, "mkdir"), (os, "rmdir"),
        (os, "unlink"), (safetensors.torch, "serialize_file"),
    ):  # fmt: skip
        wrap(place, name)
    return done


def crash_points(plan):
    models_dir().mkdir(parents=True, exist_ok=True)  # else the counted run alone makes it
    with pytest.MonkeyPatch.context() as patch:
        done = count_operations(patch)
        list(train(plan("counted", keep_checkpoints=1)))
    shutil.rmtree(models_dir() / "counted")
    return len(done)


def assert_recovers(plan, finish, undisturbed, point):
    with pytest.MonkeyPatch.context() as patch:
        count_operations(patch, stop_after=point)
        assert in_a_child(lambda: list(train(plan(keep_checkpoints=1)))) == 137
    latest = models_dir() / "m" / "latest"
    if latest.exists():
        verify_folder(latest.parent / latest.read_text().strip())
    finish(plan(keep_checkpoints=1))
    left = {path.name for path in (models_dir() / "m").iterdir()}
    best = (models_dir() / "m" / "best").read_text().strip()
    assert left == {".lock", "run.json", "latest", "best", "step_000012", best}
    weights = digests("m")
    assert weights["model.safetensors"] == undisturbed["digests"]["model.safetensors"]
    assert weights["optimizer.safetensors"] == undisturbed["digests"]["optimizer.safetensors"]
    shutil.rmtree(models_dir() / "m")


def test_a_crash_after_a_write_leaves_latest_whole(plan, finish, undisturbed):
    points = crash_points(plan)
    assert points > 50
    for point in range(1, points + 1, points // 5):
        assert_recovers(plan, finish, undisturbed, point)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, 9))
def test_a_crash_after_any_write_leaves_latest_whole(plan, finish, undisturbed, first):
    for point in range(first, crash_points(plan) + 1, 8):
        assert_recovers(plan, finish, undisturbed, point)


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    plan, finish, undisturbed, file
):
    done = []
    list(train(plan(), should_stop=lambda: len(done) >= 7 or done.append(0)))
    path = models_dir() / "m" / "step_000007" / file
    flip(path, path.stat().st_size // 2)
    found = finish(plan())
    started = found["all"][0]
    assert started.step == 6
    assert str(path) in started.notes[0]
    assert (models_dir() / "m" / "damaged-step_000007" / file).is_file()
    assert digests("m") == undisturbed["digests"]


def swap_seed(plan, folder):
    list(train(plan("other", seed=5)))
    shutil.copytree(models_dir() / "other" / "step_000012", folder / "step_000009")
    return "seed"


def swap_name(plan, folder):
    list(train(plan("other")))
    shutil.copytree(models_dir() / "other" / "step_000012", folder / "step_000012")
    return "other"


def swap_step(_, folder):
    shutil.copytree(folder / "step_000006", folder / "step_000009")
    return "step -> 6"


@pytest.mark.parametrize("swap", [swap_seed, swap_name, swap_step])
def test_a_whole_checkpoint_of_another_run_or_step_is_named_and_not_gone_on_from(
    plan, finish, undisturbed, swap
):
    done = []
    list(train(plan(), should_stop=lambda: len(done) >= 7 or done.append(0)))
    says = swap(plan, models_dir() / "m")
    started = finish(plan())["all"][0]
    assert started.step == 7
    assert "of another run" in started.notes[0]
    assert says in started.notes[0]
    assert digests("m") == undisturbed["digests"]


def test_when_no_checkpoint_is_whole_training_begins_again(plan, finish, undisturbed):
    done = []
    list(train(plan(), should_stop=lambda: len(done) >= 7 or done.append(0)))
    for step in (models_dir() / "m").glob("step_*"):
        (step / "optimizer.safetensors").unlink()
    started = finish(plan())["all"][0]
    assert started.step == 0
    assert len(started.notes) == 3
    assert digests("m") == undisturbed["digests"]


def test_a_resume_on_another_thread_count_says_so(plan, monkeypatch):
    done = []
    list(train(plan(threads=0), should_stop=lambda: len(done) >= 2 or done.append(0)))
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    run = train(plan(threads=0))
    assert "threads: 1 until step 2, 2 from here on" in next(run).notes[0]
    run.close()


def test_a_resume_on_another_processor_says_so(plan, monkeypatch):
    done = []
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    list(train(plan(), should_stop=lambda: len(done) >= 2 or done.append(0)))
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    run = train(plan())
    assert "isa: AVX2 until step 2, AVX512 from here on" in next(run).notes[0]
    run.close()


def test_data_that_is_written_to_while_it_trains_is_noticed_before_a_checkpoint(plan):
    made = plan(max_iters=60, checkpoint_interval=3, eval_interval=60)
    path = Path(made.dataset.path) / "train" / "shard_000.bin"
    kept, whole = [], path.read_bytes()

    def spoil(event):
        kept.extend([event.step] if isinstance(event, CheckpointSaved) else [])
        os.utime(path)  # of this alone nothing comes
        if kept:
            path.write_bytes(b"\1" + whole[1:])

    with pytest.raises(ManifestError, match=r"shard_000.bin: its bytes changed"):
        list(map(spoil, train(made)))
    path.write_bytes(whole)  # other tests train on it
    assert 1 <= len(kept) <= 2, "the second one was begun before the change"


def test_the_mlflow_run_is_remembered(plan, finish):
    from mypt.training.claim import read_run
    from mypt.training.lineage import RunContext

    context = RunContext(mlflow_run_id="abc", prefect_flow_run_id="def")
    done = []
    list(train(plan(), context=context, should_stop=lambda: len(done) >= 2 or done.append(0)))
    assert read_run(models_dir() / "m").context == context
    end = finish(plan())["end"]
    found = load_checkpoint(Path(end.checkpoint.path))
    assert found.state.mlflow_run_id == "abc"


@pytest.mark.gpu
def test_a_run_on_a_gpu_stops_and_goes_on(plan, finish):
    made = plan(device="cuda", dtype="auto")
    done = []
    list(train(made, should_stop=lambda: len(done) >= 5 or done.append(0)))
    found = finish(made)
    assert found["all"][0].device == "cuda"
    assert (found["all"][0].step, found["end"].step) == (5, 12)
