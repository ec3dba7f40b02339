"""The engine of a cluster: Dask's workers, which see the same files under the same paths."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from mypt.config import Preparation
from mypt.data.engine import DEATHS, Died, Engine, cores
from mypt.data.portion_work import work
from mypt.errors import ConfigError


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
                dashboard_address=None,
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
        """
        from distributed import KilledWorker, wait

        self._waiting.discard(future)
        try:
            return future.result()
        except KilledWorker:
            wait(self._waiting)
        try:
            return self._client.submit(work, job, pure=False).result()
        except KilledWorker:
            raise Died from None


class _Job:
    """One of them."""

    def __init__(self, asked: _Asked, future: Any, job: str) -> None:
        self._asked, self._future, self._job = asked, future, job

    def result(self) -> Any:
        return self._asked.result(self._future, self._job)
