"""One training at a time on a GPU, over all flow runs that share a Prefect server."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import torch
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.context import TaskRunContext
from prefect.exceptions import ObjectNotFound

from tasks.stages import log

LIMIT = "gpu"
"""Prefect's global concurrency limit; ``mypt up`` makes it, with one slot."""
_LEASE_SECONDS = 60.0
"""How long the slot of a killed training stays taken."""


@contextmanager
def gpu_slot(device: str) -> Iterator[None]:
    """Hold a slot of the limit ``gpu`` while the block trains on one, and wait for it before.

    Where Prefect has no such limit, or is away, the block is entered at once: a limit is
    whoever runs the server's choice, and a training must not hang on a server.

    Args:
        device: What the config says, ``auto`` included.
    """
    if device not in ("auto", "cuda") or not torch.cuda.is_available() or not _has_limit():
        yield
        return
    log(f"waiting for a slot of the limit {LIMIT!r}")
    held = concurrency(
        LIMIT, lease_duration=_LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False
    )
    held.__enter__()
    try:
        yield
    finally:
        try:
            held.__exit__(None, None, None)
        except httpx.HTTPError as error:  # the lease runs out by itself
            sys.stderr.write(f"mypt: the slot of {LIMIT!r} was not given back ({error})\n")


def _has_limit() -> bool:
    if TaskRunContext.get() is None:
        return False
    try:
        with get_client(sync_client=True) as client:
            client.read_global_concurrency_limit_by_name(LIMIT)
    except (ObjectNotFound, httpx.HTTPError):
        return False
    return True
