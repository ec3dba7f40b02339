"""Training in processes that torchrun starts: killed, hung or stopped, it comes to the same end."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from mypt.errors import CheckpointError, TrainingError
from mypt.home import models_dir
from mypt.training.claim import claim
from mypt.training.events import Finished, Started, StepReport
from mypt.training.launch.launch import _Agent, train_anywhere
from mypt.training.lineage import RunContext, read_lineage
from tests.faults.children import Child

RUN = {
    "reduction": "tree", "grad_accumulation": 4, "max_iters": 120, "eval_interval": 60,
    "checkpoint_interval": 10, "step_timeout": 40.0,
}  # fmt: skip
PAIR = RUN | {"parallel": "ddp", "processes": 2}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def known():
    return {}


@pytest.fixture
def weights(plan, finish, known):
    """The digest that a run of one process, which nothing disturbs, ends with; made once."""
    if not known:
        known["weights"] = weights_of(finish(plan("alone", **RUN))["end"])
    return known["weights"]


def weights_of(end):
    """The digest of the last weights; a run's end names the best."""
    last = Path(end.checkpoint.path).with_name(f"step_{RUN['max_iters']:06d}")
    return read_lineage(last).weights


def below(pid, program):
    """The processes below ``pid`` that run one of mypt's programs: python -m PROGRAM."""
    found = []
    for one in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # or a zombie, which is one of these
            found += [one] if f"mypt.training.launch.{program}" in one.cmdline()[1:4] else []
    return found


def steps_until(events, step):
    """Take events until ``step`` is made; return them."""
    taken = []
    for event in events:
        taken.append(event)
        if isinstance(event, StepReport) and event.step >= step:
            break
    return taken


def alive(processes, seconds):
    """Those that are still there some seconds later."""
    _, left = psutil.wait_procs(processes, timeout=seconds)
    return [one for one in left if one.status() != psutil.STATUS_ZOMBIE]


def started(events):
    return [event.step for event in events if isinstance(event, Started)]


def test_killed_workers_and_a_killed_agent_change_no_bit_and_leave_no_orphan(
    plan, finish, weights, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with closing(train_anywhere(plan(**PAIR))) as events:
        taken = steps_until(events, 15)
        below(os.getpid(), "rank")[1].kill()
        taken += steps_until(events, 60)
        while started(taken)[-1] == 0:  # steps that were under way when it died
            taken += steps_until(events, 60)
        assert started(taken)[0] == 0
        assert 10 <= started(taken)[1] < 120
        assert started(taken)[1] % 10 == 0
        (agent,) = below(os.getpid(), "agent")
        workers = below(os.getpid(), "rank")
        assert len(workers) == 2
        agent.kill()
        assert not alive(workers, 3.0)
        with pytest.raises(TrainingError, match=r"torchrun: -9.* run the same again"):
            list(events)
    assert list(tmp_path.glob("torchelastic_*")) == []
    end = finish(plan(**RUN))  # one process takes over from two
    assert end["all"][0].step >= 50
    assert weights_of(end["end"]) == weights


@pytest.mark.slow
def test_whoever_started_it_may_be_killed_too(plan, tmp_path):
    made = plan(**PAIR)

    def work():
        for event in train_anywhere(made):
            if isinstance(event, StepReport):
                (tmp_path / "began").touch()

    child = Child(work)
    while not (tmp_path / "began").exists():
        time.sleep(0.1)
    rest = below(child.pid, "rank") + below(child.pid, "agent")
    assert len(rest) == 3
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not alive(rest, 3.0)


@pytest.mark.slow
def test_a_stop_saves_and_the_same_again_goes_on(plan, weights):
    steps = []
    with closing(train_anywhere(plan(**PAIR), should_stop=lambda: bool(steps))) as events:
        for event in events:
            steps += [event.step] if isinstance(event, StepReport) else []
    assert isinstance(event, Finished)
    assert (event.reason, event.step) == ("stopped", steps[-1])
    *more, end = train_anywhere(plan(**PAIR))
    assert started(more) == [steps[-1]]
    assert (end.reason, end.step) == ("max_iters", 120)
    assert weights_of(end) == weights


@pytest.mark.slow
def test_a_process_that_hangs_is_ended_and_training_goes_on(plan, weights):
    made = plan(**PAIR | {"step_timeout": 8.0})
    with closing(train_anywhere(made)) as events:
        steps_until(events, 15)
        below(os.getpid(), "rank")[0].suspend()
        *more, end = events
    assert started(more)[0] >= 10
    assert (end.reason, end.step) == ("max_iters", 120)
    assert weights_of(end) == weights


@pytest.mark.slow
def test_processes_that_die_too_often_end_the_run_with_one_line(plan):
    with closing(train_anywhere(plan(**PAIR | {"max_restarts": 0}))) as events:
        steps_until(events, 15)
        below(os.getpid(), "rank")[0].kill()
        with pytest.raises(TrainingError, match=r"torchrun: 1.* before the training did"):
            list(events)
    assert (models_dir() / "m" / "step_000010").is_dir()


@pytest.mark.slow
def test_an_error_of_a_worker_arrives_as_it_was(plan):
    made = plan(**PAIR | {"step_timeout": 2.0})
    with (
        claim(made, RunContext()),
        pytest.raises(CheckpointError, match="held by another run that is training now"),
    ):
        list(train_anywhere(made))


@pytest.mark.slow
def test_parts_of_a_model_survive_a_killed_worker(plan, finish):
    words = RUN | {"reduction": "allreduce", "dropout": 0.0}
    with closing(train_anywhere(plan(**words, parallel="fsdp", processes=2))) as events:
        steps_until(events, 15)
        below(os.getpid(), "rank")[0].kill()
        *more, end = events
    assert started(more)[0] >= 10
    whole = finish(plan("alone", **words))
    losses = {event.step: event.loss for event in more if isinstance(event, StepReport)}
    assert losses[120] == pytest.approx(whole["steps"][-1].loss, rel=1e-3)
    assert end.reason == "max_iters"


def test_a_machine_whose_workers_are_dead_is_given_up(tmp_path):
    """As torchrun is when it waits for machines that are gone: it does not bury its worker."""
    text = "import os, time; os.fork() or os._exit(1); print('', flush=True); time.sleep(60)"
    words = [sys.executable, "-c", text]
    torchrun = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        torchrun.stdout.readline()
        began, agent = time.monotonic(), _Agent(torchrun, tmp_path / "log", 2.0)
        with pytest.raises(TrainingError, match="the other machines are gone or cut off"):
            list(agent.events(lambda: False))
        assert 2.0 <= time.monotonic() - began < 20.0
        assert psutil.Process(torchrun.pid).children()  # dead, and still there
    finally:
        torchrun.kill()
        torchrun.wait()
