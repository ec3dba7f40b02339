"""A scheduler's warning, kept back until the training has saved."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held_back_sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM has come, and let it act when the block ends.

    Prefect's own handler raises wherever the program stands, in the middle of a step too. In
    a thread other than the main one no signal arrives, and nothing is held back.
    """
    asked = False

    def ask(_: int, __: FrameType | None) -> None:
        nonlocal asked
        asked = True

    try:
        before = signal.signal(signal.SIGTERM, ask)
    except ValueError:
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGTERM, before)
        if asked:
            signal.raise_signal(signal.SIGTERM)
