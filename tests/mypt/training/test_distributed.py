"""Whole runs in several processes: the same weights, one folder, one writer."""

import os
import time
from functools import partial

import pytest
from filelock import FileLock

from mypt import files
from mypt.errors import CheckpointError, ConfigError, DataError
from mypt.home import models_dir
from mypt.training.distributed import ALONE
from mypt.training.events import CheckpointSaved, EvalReport, StepReport
from mypt.training.loop import train
from tests.mypt.training.gloo import together

TREE = {"reduction": "tree", "grad_accumulation": 8, "max_iters": 4, "checkpoint_interval": 2}
"""With the tiny preset's dropout: random numbers belong to a micro-batch, not to a rank."""
KEPT = ("model.safetensors", "optimizer.safetensors", "history.safetensors", "trainer_state.json")


def trained(plan, stop_after, ranks):
    """What a run reports, to a step if asked for; losses as they are, to the last bit."""
    steps = []
    told = {"losses": [], "evals": [], "saved": []}
    for event in train(plan, ranks=ranks, should_stop=lambda: len(steps) == stop_after):
        match event:
            case StepReport():
                steps.append(event.step)
                told["losses"].append(event.loss)
            case EvalReport():
                told["evals"].append([event.train_loss, event.val_loss])
            case CheckpointSaved():
                told["saved"].append(event.step)
    return told


def digests(name="m"):
    step = models_dir() / name / (models_dir() / name / "latest").read_text().strip()
    return {file: files.digest_file(step / file) for file in KEPT}


@pytest.fixture
def alone(plan):
    """What one process reports and leaves in tree mode."""
    return trained(plan("alone", **TREE), None, ALONE), digests("alone")


@pytest.mark.parametrize("size", [2, 4, pytest.param(8, marks=pytest.mark.slow)])
def test_a_tree_trains_to_the_same_bits_in_any_number_of_processes(plan, alone, size):
    told, left = alone
    said = together(size, partial(trained, plan(parallel="ddp", **TREE), None))
    assert digests() == left
    for rank, theirs in enumerate(said):
        assert theirs["losses"] == told["losses"]
        assert theirs["evals"] == told["evals"]
        assert theirs["saved"] == (told["saved"] if rank == 0 else [])


@pytest.mark.parametrize("sizes", [(2, 1), (1, 3), pytest.param((4, 2), marks=pytest.mark.slow)])
def test_a_tree_goes_on_in_another_number_of_processes_to_the_same_bits(plan, alone, sizes):
    made = plan(parallel="ddp", **TREE)
    together(sizes[0], partial(trained, made, 1))
    assert (models_dir() / "m" / "latest").read_text() == "step_000001\n"
    together(sizes[1], partial(trained, made, None))
    assert digests() == alone[1]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_each_word_learns_what_one_process_learns(plan, parallel):
    words = {"max_iters": 4, "dropout": 0.0}
    told = trained(plan("alone", **words), None, ALONE)
    for theirs in together(2, partial(trained, plan(parallel=parallel, **words), None)):
        assert theirs["losses"] == pytest.approx(told["losses"], rel=1e-5)
        assert theirs["evals"][-1] == pytest.approx(told["evals"][-1], rel=1e-5)


def held(folder, seconds):
    """Hold a model's folder from a process of its own, as ranks of an earlier start may."""
    ready, says = os.pipe()
    pid = os.fork()
    if pid == 0:
        with FileLock(folder / ".lock"):
            os.write(says, b"!")
            time.sleep(seconds)
        os._exit(0)
    os.read(ready, 1)
    return pid


def test_a_new_start_waits_until_the_old_one_has_let_go_of_the_folder(plan):
    made = plan(parallel="ddp", max_iters=2, step_timeout=30.0)
    files.make_folder(models_dir() / "m")
    pid, began = held(models_dir() / "m", 1.0), time.monotonic()
    said = together(2, partial(trained, made, None))
    assert time.monotonic() - began >= 1.0
    assert [len(theirs["losses"]) for theirs in said] == [2, 2]
    os.waitpid(pid, 0)


def test_two_starts_never_write_in_one_folder(plan):
    """An old start that does not let go keeps the folder, and every rank of the new one ends."""
    made = plan(parallel="ddp", step_timeout=1.0)
    files.make_folder(models_dir() / "m")
    pid = held(models_dir() / "m", 5.0)

    def refused(ranks):
        with pytest.raises(CheckpointError, match="held by another run") as caught:
            list(train(made, ranks=ranks))
        return str(caught.value)

    first, second = together(2, refused)
    assert first == second
    assert [path.name for path in (models_dir() / "m").iterdir()] == [".lock"]
    os.kill(pid, 9)
    os.waitpid(pid, 0)


def test_an_error_of_rank_0_is_every_ranks_error():
    def work(ranks):
        def fail():
            raise DataError("a file is missing")

        with pytest.raises(DataError, match="a file is missing"):
            ranks.first(fail)
        return ranks.first(lambda: "on we go")

    assert together(2, work) == ["on we go", "on we go"]


def test_ranks_that_were_given_different_things_end_with_one_line():
    def work(ranks):
        ranks.same("a", "plan of the run")
        with pytest.raises(ConfigError, match="plan of the run: a0, a1 found on 2 ranks"):
            ranks.same(f"a{ranks.rank}", "plan of the run")

    together(2, work)


def test_sums_over_ranks_hold_large_counts_and_every_bit():
    def work(ranks):
        large = ranks.total(2**53 + ranks.rank, 1)
        return large, ranks.merge({ranks.rank: 0.1 * (ranks.rank + 1)}, 3), ranks.agree(ranks.leads)

    assert together(2, work) == [[[2**54 + 1, 2], [0.1, 0.2, 0.0], True]] * 2


def test_every_rank_gets_as_many_turns_and_each_batch_counts_once():
    def work(ranks):
        return list(ranks.turns(5))

    first, second = together(2, work)
    assert first == [[0, True], [2, True], [4, True]]
    assert second == [[1, True], [3, True], [4, False]]
