"""What works on several portions at once: processes of this machine, or Dask's workers."""

import os
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

DEATHS: Final = 3
"""How many workers a portion may end before it is set aside."""


class Died(Exception):  # noqa: N818 - no error: the portion is set aside
    """A portion has ended as many workers as it may."""


class Answer(Protocol):
    """What comes of one job, later."""

    def result(self) -> Any:
        """Wait for it; raises :class:`Died`."""


class Engine(NamedTuple):
    """Something that works on several jobs at once."""

    submit: Callable[[str], Answer]
    width: int
    """How many."""


def cores() -> int:
    """Return how many cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
