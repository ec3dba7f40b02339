"""Forked processes that train together over gloo; torch is imported once, in pytest."""

import faulthandler
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mypt.training.distributed import Ranks, joined
from tests.faults.children import Child

TIMEOUT = 60.0


def together(size: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """Do ``work`` on ``size`` ranks at once; return what each returned, as JSON can say it."""
    with tempfile.TemporaryDirectory() as folder:
        meet_at = (Path(folder) / "store").as_uri()

        def one(rank: int) -> Any:
            faulthandler.dump_traceback_later(3 * TIMEOUT, exit=True)
            with joined("cpu", TIMEOUT, meet_at, rank, size) as ranks:
                return {"rank": rank, "said": work(ranks)}

        children = [Child(lambda rank=rank: one(rank)) for rank in range(size)]
        ended = [child.wait() for child in children]
    for rank, end in enumerate(ended):
        assert end, f"rank {rank} of {size}: exit {end.code}: {end.trace or end.message}"
    return [end.said["said"] for end in ended]
