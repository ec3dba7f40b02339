"""The engine of a cluster: Dask's workers, which see the same files under the same paths."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

from mypt.config import Preparation
from mypt.data.preparation.processes import DEATHS, Died, Engine, cores
from mypt.data.preparation.worker import work
from mypt.errors import ConfigError, DataError

_LOOK: Final = 0.2
_PATIENCE: Final = 120.0
"""Seconds without any worker, after which nobody waits for one any longer."""


@contextmanager
def dask_workers(preparation: Preparation) -> Iterator[Engine]:
    """Yield the workers of the scheduler at ``address``, or some that are started here.

    Raises:
        ConfigError: If Dask is not installed, or no scheduler answers.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError:
        raise ConfigError(
            "engine dask found, and Dask is not installed; install it with"
            " \"pip install 'mypt[cluster]'\", or set engine to process"
        ) from None
    with ExitStack() as stack:
        # A scheduler elsewhere has settings of its own.
        stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": DEATHS - 1}))
        address: Any = preparation.address
        if not address:
            cluster = LocalCluster(
                n_workers=preparation.workers or cores(),
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
            )
            address = stack.enter_context(cluster)
        try:
            client = stack.enter_context(Client(address))
        except OSError as error:
            raise ConfigError(
                f"address {address}: no scheduler of Dask's answers ({error}); start one with"
                " 'dask scheduler', or leave the address out"
            ) from None
        asked = _Asked(client)
        yield Engine(asked.submit, max(1, sum(client.nthreads().values())))


class _Asked:
    """Jobs that were given to Dask and not answered yet."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._waiting: set[Any] = set()

    def submit(self, job: str) -> "_Job":
        future = self._client.submit(work, job, pure=False)
        self._waiting.add(future)
        return _Job(self, future, job)

    def result(self, future: Any, job: str) -> Any:
        """Wait for an answer.

        Dask blames a worker's death on all jobs that it had been given, so that a job which
        ended three is asked again when no other is on its way.

        Raises:
            Died: If it ended three more.
            DataError: If there is no worker for two minutes.
        """
        from distributed import KilledWorker

        self._waiting.discard(future)
        try:
            return self._wait(future).result()
        except KilledWorker:
            for other in self._waiting:
                self._wait(other)
        try:
            return self._wait(self._client.submit(work, job, pure=False)).result()
        except KilledWorker:
            raise Died from None

    def _wait(self, future: Any) -> Any:
        """Return ``future`` when it is done; Dask itself would wait for ever for a worker."""
        from distributed import wait

        since = time.monotonic()
        while not future.done():
            with suppress(TimeoutError):
                wait(future, timeout=_LOOK)
            if self._client.scheduler_info()["workers"]:
                since = time.monotonic()
            elif time.monotonic() - since > _PATIENCE:
                raise DataError(
                    f"Dask has had no worker for {_PATIENCE:.0f} seconds, and expected one; start"
                    " workers, see why they ended, and run the same again"
                )
        return future


class _Job:
    """One of them."""

    def __init__(self, asked: _Asked, future: Any, job: str) -> None:
        self._asked, self._future, self._job = asked, future, job

    def result(self) -> Any:
        return self._asked.result(self._future, self._job)
