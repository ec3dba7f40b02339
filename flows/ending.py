"""How the process of a flow ends: with its temporary API, and where Prefect went away.

The work counts, not the telling of it.
"""

import atexit
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from prefect.context import FlowRunContext
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL

from flows.environment import answers
from mypt.errors import MyptError

_WATCH = """
import sys, psutil
try:
    api = psutil.Process(int(sys.argv[1]))
    sys.stdin.read()
    if api.is_running():
        api.terminate()
except psutil.NoSuchProcess:
    pass
"""
"""Reads until the other end of its pipe is gone, which the operating system sees to."""
_watchers: dict[int, subprocess.Popen[bytes]] = {}
"""By the API they watch; kept, since a pipe closes with the object that holds its end."""


def leave_if_prefect_is_away(show: Callable[[], object]) -> None:
    """Call ``show`` and end the process here if the API of this flow run is gone.

    Prefect would go on for minutes to tell a server that is not there how the run ended, and
    then raise. Everything is on disk by now, and the same run again finds it.
    """
    context = FlowRunContext.get()
    if context is None:
        return
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


def start_temporary_api() -> None:
    """Start Prefect's temporary API where this process is to have one; Ctrl-C is not for it.

    A terminal sends Ctrl-C to all that a command has started. An API that ends before the flow
    cannot be told how that ended; so it is started by a thread that blocks the signal, which it
    inherits.
    """
    if PREFECT_API_URL.value():
        return
    api, blocked = SubprocessASGIServer(), (signal.SIG_BLOCK, {signal.SIGINT})
    with ThreadPoolExecutor(1, initializer=signal.pthread_sigmask, initargs=blocked) as thread:
        started = thread.submit(api.start)
        try:
            started.result()
        except BaseException:
            api.stop()  # which ends the wait for its answer
            raise


def end_with_this_process() -> None:
    """Let the temporary API of this process, if it has one, outlive it by nothing.

    Prefect stops it when Python exits; a process that is killed does not come to that, and
    each would leave 200 MB behind.
    """
    api = SubprocessASGIServer().server_process
    if api is not None and api.pid not in _watchers:
        command = [sys.executable, "-c", _WATCH, str(api.pid)]
        watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        _watchers[api.pid] = watcher
        atexit.register(watcher.communicate)  # an ordinary end waits for it, as for any child
