"""One small map over portions, whichever engine works on them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Final

from mypt.config import Preparation
from mypt.data.dask_workers import dask_workers
from mypt.data.engine import Answer, Died, Engine
from mypt.data.portion_work import Done
from mypt.data.portions import Portion
from mypt.data.processes import processes

_AHEAD: Final = 2
"""Portions for each worker that are given out before the first of them is taken."""


_ENGINES: Final[dict[str, Callable[[Preparation], AbstractContextManager[Engine]]]] = {
    "process": processes,
    "dask": dask_workers,
}


def map_portions(
    portions: Iterable[Portion], job: Callable[[Portion], str], preparation: Preparation
) -> Iterator[tuple[Portion, Done | None]]:
    """Yield what came of each portion, in order, whoever worked on it and whenever.

    A bounded number is given out at a time, so that neither memory nor disk fill with results.
    A portion of several pieces that ends its workers is given out again piece by piece, so
    that the one at fault can be named.

    Args:
        portions: What to work on.
        job: What :func:`mypt.data.portion_work.work` is given for one.
        preparation: Which engine; any but "serial".

    Yields:
        A portion, and what came of it; None where its one piece ended three workers.

    Raises:
        ConfigError: If the engine is not installed, or its scheduler cannot be reached.
    """
    with _ENGINES[preparation.engine](preparation) as engine:
        waiting: deque[tuple[Portion, Answer]] = deque()
        for portion in portions:
            waiting.append((portion, engine.submit(job(portion))))
            if len(waiting) > _AHEAD * engine.width:
                yield from _outcome(*waiting.popleft(), job, engine)
        while waiting:
            yield from _outcome(*waiting.popleft(), job, engine)


def _outcome(
    portion: Portion, answer: Answer, job: Callable[[Portion], str], engine: Engine
) -> Iterator[tuple[Portion, Done | None]]:
    try:
        yield portion, Done.model_validate_json(answer.result())
    except Died:
        if len(portion.pieces) == 1:
            yield portion, None
            return
        for part in portion.alone():
            yield from _outcome(part, engine.submit(job(part)), job, engine)
