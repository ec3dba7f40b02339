"""A training wherever its config says: in this process, or in several that this one watches."""

import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from mypt import files, home
from mypt.children import python
from mypt.errors import TrainingError
from mypt.training.events import Event, Failed, Finished, from_line
from mypt.training.launch.nodes import Nodes, check_sizes, environment, torchrun_arguments
from mypt.training.launch.rank import RankJob
from mypt.training.lineage import RunContext
from mypt.training.loop import STOPPED, train
from mypt.training.plan import RunPlan

_LOOK = 0.5
"""Seconds between two looks at what is asked and who is alive."""
_ENDING = 90.0
"""Seconds in which torchrun ends once training has: it waits for the other machines."""


def train_anywhere(
    plan: RunPlan,
    *,
    context: RunContext = RunContext(),  # noqa: B008  (frozen)
    should_stop: Callable[[], bool] = lambda: False,
    nodes: Nodes = Nodes(),  # noqa: B008  (immutable)
) -> Iterator[Event]:
    """Train as :func:`mypt.training.loop.train` does, in as many processes as the config says.

    With several machines each is started with the same arguments; each gets all events. Workers
    that die are started again up to ``max_restarts`` times, machines may come and go within
    ``nodes``, and training goes on from the last checkpoint: steps made since are made again.

    Args:
        plan: What :func:`mypt.training.plan.plan_run` resolved.
        context: Ids by which services know this run, kept in the lineage.
        should_stop: Asked twice a second; True lets this machine's workers ask all others, and
            the run saves a checkpoint and ends.
        nodes: Which machines train together.

    Raises:
        MyptError: As :func:`mypt.training.loop.train`, from whichever process raised it first.
        TrainingError: If workers die more often than they may, or are cut off from the others.
    """
    if plan.preset.parallel == "none" and nodes == Nodes():
        yield from train(plan, context=context, should_stop=should_stop)
        return
    check_sizes(plan.preset, nodes)
    with _torchrun(plan, context, nodes) as agent:
        yield from agent.events(should_stop)


class _Agent:
    """torchrun on this machine, and what its workers say."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path, patience: float) -> None:
        self._process, self._log, self._patience = process, log, patience
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._busy = time.monotonic()
        self._asked = False
        self._end: Finished | None = None
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()

    def events(self, should_stop: Callable[[], bool]) -> Iterator[Event]:
        """Yield what the workers report until all is over."""
        for line in self._said(should_stop):
            said = from_line(line)
            match said:
                case Failed():
                    raise said.error()
                case Finished():
                    self._end = said  # where another machine was stopped, this one may yet go on
                case None:
                    pass
                case _:
                    self._end = None
                    yield said
        end = self._end
        if end is None or (end.reason != STOPPED and self._process.poll() not in (0, None)):
            code = self._process.poll()
            raise TrainingError(
                f"the processes that train ended (torchrun: {code}) before the training did; what"
                f" they said last is in {self._log}; run the same again to go on from the last"
                " checkpoint"
            )
        yield end

    def _said(self, should_stop: Callable[[], bool]) -> Iterator[str]:
        since = None
        while True:
            try:
                line = self._lines.get(timeout=_LOOK)
            except queue.Empty:
                line = ""
            if line is None:
                self._process.wait(_ENDING)
                return
            if line.strip():
                yield line
            if should_stop() and not self._asked:
                self._asked = True
                self._process.send_signal(signal.SIGTERM)  # it tells the workers, and ends
            since = (since or time.monotonic()) if self._end else None
            if since and time.monotonic() - since > _ENDING:
                return
            self._check_not_alone(since is not None)

    def _check_not_alone(self, ended: bool) -> None:
        """Raise where torchrun has had no worker for long: it waits for machines that are gone.

        It does so inside a call that no signal reaches, so that only this process can end it;
        nor does it bury its dead meanwhile.
        """
        now = time.monotonic()
        try:
            workers = psutil.Process(self._process.pid).children()
            if ended or any(one.status() != psutil.STATUS_ZOMBIE for one in workers):
                self._busy = now
        except psutil.NoSuchProcess:
            return
        if now - self._busy > self._patience:
            raise TrainingError(
                f"no process has trained on this machine for {self._patience:.0f} seconds: the"
                " other machines are gone or cut off, or too few came; see"
                f" {self._log}; run the same again when they can be reached"
            )

    def _read(self, speech: IO[str]) -> None:
        with speech:
            for line in speech:
                self._lines.put(line)
        self._lines.put(None)


@contextmanager
def _torchrun(plan: RunPlan, context: RunContext, nodes: Nodes) -> Iterator[_Agent]:
    log = _log_of(plan)
    config = plan.preset
    with tempfile.TemporaryDirectory(prefix="mypt-") as folder, log.open("ab") as errors:
        job = Path(folder) / "job.json"
        files.write_json(job, RankJob(plan=plan, context=context).model_dump(mode="json"))
        command = [
            *python("-m", "mypt.training.launch.agent", str(os.getpid())),
            *torchrun_arguments(plan.model_name, config, nodes),
            f"--log-dir={folder}",  # else it leaves a folder of its own behind
            *("-m", "mypt.training.launch.rank", str(job)),
        ]
        process = subprocess.Popen(
            command,
            env=environment(config, nodes) | {"MYPT_HOME": str(home.home())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which then asks them to stop
        )
        try:
            yield _Agent(process, log, max(60.0, config.step_timeout) + 60.0)
        finally:
            process.kill()  # the workers die with it
            process.wait()


def _log_of(plan: RunPlan) -> Path:
    folder = home.home() / "logs"
    files.make_folder(folder)
    return folder / f"{plan.model_name}-{os.uname().nodename}.log"
