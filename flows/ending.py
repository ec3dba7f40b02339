"""How the process of a flow ends where Prefect went away.

The work counts, not the telling of it.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

import httpx
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun
from prefect.states import Completed

from flows.environment import answers
from mypt.errors import MyptError
from tasks.stopping import Stopped, heard

Result = TypeVar("Result")


def run_here(flow: Callable[[], Result]) -> Result:
    """Run a flow in this process, and return what it returns.

    Raises:
        MyptError: If it cannot go on or was stopped, or Prefect cannot be reached at all.
    """
    try:
        with heard() as asked:
            return flow()
    except httpx.HTTPError as error:
        raise cause_behind(error) from None
    except (CancelledRun, Stopped) as error:
        for number in asked:  # Prefect knows of it by now; the command may end as any other
            signal.raise_signal(number)
        raise MyptError(str(error)) from None


def leave_if_prefect_is_away(show: Callable[[], object]) -> None:
    """Call ``show`` and end the process here if the API of this flow run, a whole one, is gone.

    Prefect would go on for minutes to tell a server that is not there how the run ended, and
    then raise. Everything is on disk by now, and the same run again finds it.
    """
    context = FlowRunContext.get()
    if context is None or (context.flow_run and context.flow_run.parent_task_run_id):
        return  # a part of another flow, which has more to do
    url = str(context.client.api_url).rstrip("/")
    if answers(f"{url}/health"):
        return
    sys.stderr.write(
        f"mypt: Prefect at {url} does not answer any more and will show this run as running;"
        " everything is done and kept\n"
    )
    show()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def finished(result: Result, show: Callable[[], object], ended: str = "") -> Result:
    """Return what a flow returns, as a state with a name of its own where it ended early.

    Args:
        result: What the flow came to.
        show: As for :func:`leave_if_prefect_is_away`.
        ended: By what it ended before its end.
    """
    leave_if_prefect_is_away(show)
    if not ended:
        return result
    name = ended[:1].upper() + ended[1:]
    return Completed(name=name, message=f"{name}; what follows was not made.", data=result)  # type: ignore[return-value]


def cause_behind(error: BaseException) -> MyptError:
    """Return the error of ours during whose handling Prefect failed too, else Prefect's own."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, MyptError):
            return behind
        behind = behind.__context__
    return MyptError(
        f"Prefect's API went away ({error}); what is complete is kept, run the same again"
    )
