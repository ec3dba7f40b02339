"""One of the processes that train together; torchrun starts it with a job's file."""

import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TextIO

from mypt.children import end_with
from mypt.errors import ConfigError, MyptError
from mypt.parsing import Frozen
from mypt.training.events import Event, Failed, Finished, to_line
from mypt.training.launch.agent import AGENT
from mypt.training.lineage import RunContext
from mypt.training.plan import RunPlan

STOPPED_CODE = 128 + signal.SIGTERM


class RankJob(Frozen):
    """What every rank of a training is started with."""

    plan: RunPlan
    context: RunContext


def main() -> NoReturn:
    """Train with the others and exit with 0, or 143 if a stop was asked for; print events.

    Standard output carries events and nothing else: whatever a library prints goes to standard
    error, into the log.
    """
    end_with(int(os.environ[AGENT]))
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this decides what Ctrl-C means
    speech = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    code = 1
    try:
        job = RankJob.model_validate_json(Path(sys.argv[1]).read_bytes())
        for event in _watched(job, lambda: asked):
            if os.environ["LOCAL_RANK"] == "0":
                _say(speech, event)
            if isinstance(event, Finished):
                code = STOPPED_CODE if event.reason == "stopped" else 0
    except MyptError as error:
        _say(speech, Failed(type(error).__name__, str(error)))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread of torch that waits for a dead rank must not keep this one


def _watched(job: RankJob, should_stop: Callable[[], bool]) -> Iterator[Event]:
    """Train; a process that brings no event for ``step_timeout`` seconds shows where, and ends."""
    from mypt.training.compute import resolve
    from mypt.training.distributed import joined
    from mypt.training.loop import train

    config = job.plan.preset
    device = resolve(config, config.gpt()).device.type
    faulthandler.dump_traceback_later(config.step_timeout, exit=True)
    if device == "cuda":
        _take_gpu(int(os.environ["LOCAL_RANK"]), config.processes)
    with joined(device, config.step_timeout) as ranks:
        ranks.same(job.plan.digest, "plan of the run")
        for event in train(job.plan, context=job.context, should_stop=should_stop, ranks=ranks):
            faulthandler.dump_traceback_later(config.step_timeout, exit=True)
            yield event


def _take_gpu(number: int, wanted: int) -> None:
    import torch

    found = torch.cuda.device_count()
    if found < wanted:
        raise ConfigError(
            f"processes {wanted} with device cuda, and this machine has {found} GPUs; set"
            " processes to that, or device to cpu"
        )
    torch.cuda.set_device(number)


def _say(speech: TextIO, said: Event | Failed) -> None:
    speech.write(f"\n{to_line(said)}\n")  # the first ends what a killed process began
    speech.flush()


if __name__ == "__main__":
    main()
