"""Modules of transformers are killed, shared by processes and kept narrow as our own models are."""

import os
import signal
from functools import partial

import pytest

from mypt import files
from mypt.home import models_dir
from mypt.training.distributed import ALONE
from mypt.training.events import CheckpointSaved, StepReport
from mypt.training.loop import train
from mypt.training.plan import plan_run
from tests.mypt.conftest import prepare_chat
from tests.mypt.inference.huggingface.families import make
from tests.mypt.training.gloo import together
from tests.mypt.training.test_base_import import make_tokenizer

KEPT = ("model.safetensors", "optimizer.safetensors", "history.safetensors", "trainer_state.json")
WORDS = {
    "base": "transformers", "dropout": 0.0, "batching": "packed", "max_iters": 4, "batch_size": 2,
    "checkpoint_interval": 2, "eval_interval": 4, "learning_rate": 1e-3,
}  # fmt: skip


@pytest.fixture(params=["lfm2", "mixtral", "gemma 4"])
def planned(request, tmp_path, tiny):
    """A plan under a name, over a base of each kind: reading across, of experts, packed."""
    folder = tmp_path / "base"
    make(request.param, folder, dtype="bfloat16")
    make_tokenizer(size=270).save(str(folder / "tokenizer.json"))
    data = prepare_chat(tmp_path, n=24, tokenization=f"hf:{folder}")
    return lambda name, **words: plan_run(
        tiny(**WORDS | words), name, data, init_from=f"hf:{folder}"
    )


def trained(plan, ranks):
    """What a run reports: losses and norms as they are, to the last bit."""
    steps = [e for e in train(plan, ranks=ranks) if isinstance(e, StepReport)]
    return [[step.loss, step.grad_norm] for step in steps]


def digests(name):
    step = models_dir() / name / (models_dir() / name / "latest").read_text().strip()
    return {file: files.digest_file(step / file) for file in KEPT}


def test_a_training_that_was_killed_goes_on_to_the_same_bits(planned):
    trained(planned("straight"), ALONE)
    pid = os.fork()
    if pid == 0:
        for event in train(planned("killed")):
            if isinstance(event, CheckpointSaved):
                os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert (models_dir() / "killed" / "latest").read_text() == "step_000002\n"
    trained(planned("killed"), ALONE)
    assert digests("killed") == digests("straight")


def test_two_processes_learn_what_one_learns(planned):
    told = trained(planned("alone"), ALONE)
    for theirs in together(2, partial(trained, planned("m", parallel="ddp"))):
        for (loss, norm), (expected, length) in zip(theirs, told, strict=True):
            assert loss == pytest.approx(expected, rel=1e-5)
            assert norm == pytest.approx(length, rel=1e-4)


def test_as_a_tree_two_processes_learn_the_same_bits_as_one(planned):
    told = trained(planned("alone", reduction="tree"), ALONE)
    said = together(2, partial(trained, planned("m", parallel="ddp", reduction="tree")))
    assert said == [told, told]
    assert digests("m") == digests("alone")
