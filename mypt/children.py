"""Child processes: what they may import, and that none outlives whoever started it."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

SAFE = {"PYTHONSAFEPATH": "1"}
"""Environment of every child: what a library starts imports nothing from the working folder."""
COLLECTED = 50_000
"""New objects after which a process of ours seeks unreachable ones: imports and rows make many, and
no rings (D138)."""
GRACE_SECONDS = 45.0
"""How long a training may take to reach its next step and to write its last checkpoint."""
_PR_SET_PDEATHSIG = 1


def python(*words: str) -> list[str]:
    """Return the command of a Python of ours, which finds modules where they are installed.

    A ``tasks.py`` or ``psutil.py`` in the folder where somebody stands would be run otherwise.

    Args:
        words: What Python is told, such as ``-m`` and a module.
    """
    return [sys.executable, "-P", *words]


def end_with(parent: int) -> None:
    """Let the system kill this process as soon as ``parent`` is gone, however that ended.

    A killed torchrun cannot clean up, and its workers would go on and write checkpoints beside
    those of the next start. Only Linux has this; elsewhere they end at their next word to others.

    Args:
        parent: Process id of whoever started this one; where it is gone already, this ends now.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def watch(group: int) -> "subprocess.Popen[bytes]":
    """Start a process that ends a group of processes once this process is gone.

    A server needs time to stop what it has started, so nobody kills it at once.

    Args:
        group: The group, whose leader this process has started.

    Returns:
        The watcher, to be kept: its pipe closes with the object that holds its end. Kill it
        where the group has ended by itself.
    """
    command = python("-m", "mypt.children", str(group))
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def main() -> None:
    """Read until the other end of the pipe is gone, then stop the group that is named."""
    group = int(sys.argv[1])
    sys.stdin.read()
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        end = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < end:
            os.kill(group, 0)
            time.sleep(0.2)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
