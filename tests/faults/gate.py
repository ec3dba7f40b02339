"""A door before a server that can be shut in the ways in which servers fail."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.faults.children import Child

UP, AWAY, FAILING, SILENT = "up", "away", "500", "silent"
_FAILURE = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Gate:
    """Listens on a port of its own and passes on to a server, while it is up.

    It lives in a process of its own, as the server does: nothing in here is a thread of the
    tests, which fork. What it does is decided anew whenever a client sends something.
    """

    def __init__(self, folder: Path, server: int) -> None:
        self._state = folder / "gate"
        self.set(UP)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self._child = Child(lambda: self._live(listener, server))
        listener.close()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.port}"

    def set(self, state: str) -> None:
        """Be up, away, failing or silent from now on; any process may say so."""
        new = self._state.with_suffix(f".{os.getpid()}")
        new.write_text(state)
        new.rename(self._state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.kill(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def _live(self, listener: socket.socket, server: int) -> None:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: int) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", server)) as behind:
            threading.Thread(target=_pump, args=(behind, client), daemon=True).start()
            while data := client.recv(1 << 16):
                match self._state.read_text():
                    case "away":
                        return
                    case "500":
                        client.sendall(_FAILURE)
                        return
                    case "silent":
                        time.sleep(600)
                    case _:
                        behind.sendall(data)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def served(start: Callable[[socket.socket], object]) -> Iterator[int]:
    """Serve in a child while the block lasts; yield the port.

    Args:
        start: Serves the socket for ever.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    child = Child(lambda: start(listener))
    port = listener.getsockname()[1]
    listener.close()
    try:
        yield port
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
