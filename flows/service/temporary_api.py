"""A Prefect API for one run, over the files of this home, where no other is named (D70).

A file of its own: it must run before Prefect is imported, which what starts servers does.
"""

import atexit
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from functools import partial

from flows.environment import answers
from flows.service.server_process import ServerProcess
from mypt.children import python
from mypt.errors import MyptError
from mypt.home import home

_START_SECONDS = 600.0
"""A first start makes a database, and a busy machine takes its time; a death is noticed at once."""
_END_SECONDS = 5.0
_ROOM = 16 << 20


def start_temporary_api() -> Callable[[], None]:
    """Let this process have a Prefect; called before it imports Prefect, which reads where it is.

    It answers whoever knows a password that is made for it, so neither a web page nor another
    user of this machine. It ends with this process, however that does, and last of all: Prefect
    sends the rest of its log when Python exits.

    Returns:
        What waits until it answers: this process has modules to load meanwhile.

    Raises:
        MyptError: If there is no room for its database; or, of what waits, if it does not start.
    """
    if os.environ.get("PREFECT_API_URL"):
        return lambda: None
    room = shutil.disk_usage(home()).free
    if room < _ROOM:
        raise MyptError(
            f"{home()}: {room >> 20} MiB are free; expected {_ROOM >> 20} for the databases of"
            " Prefect and MLflow alone; make room, or set MYPT_HOME to another disk"
        )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = f"http://127.0.0.1:{listener.getsockname()[1]}"
        password = f"mypt:{secrets.token_urlsafe()}"
        os.environ |= {
            "PREFECT_API_URL": f"{server}/api",
            "PREFECT_API_AUTH_STRING": password,
            "PREFECT_SERVER_API_AUTH_STRING": password,
            "MYPT_ASK_AT_TERMINAL": "1",  # nobody sees a page of this API
        }
        command = python("-m", "flows.service.guarded_api", str(listener.fileno()))
        handles = (listener.fileno(),)
        process = ServerProcess("temporary-prefect", command, dict(os.environ), pass_fds=handles)
    atexit.register(process.stop, _END_SECONDS)
    return partial(_wait, process, f"{server}/api/health")


def _wait(process: ServerProcess, health: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while not answers(health):
        process.check()
        if time.monotonic() > end:
            raise MyptError(f"Prefect's API did not start within {_START_SECONDS:.0f} seconds")
        time.sleep(0.1)
