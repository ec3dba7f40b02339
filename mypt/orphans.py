"""A process that ends when the one that started it is gone (PR_SET_PDEATHSIG on Linux)."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


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
