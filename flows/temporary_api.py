"""Prefect's temporary API, made to end with the process that started it, however that ends."""

import atexit
import subprocess
import sys

from prefect.server.api.server import SubprocessASGIServer

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
