"""A server that this process has started, and its clean end."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

from mypt.children import GRACE_SECONDS, SAFE, watch
from mypt.errors import MyptError
from mypt.home import home


class ServerProcess:
    """A child in a process group of its own, so that Ctrl-C reaches it only through us.

    Args:
        name: What people call it.
        command: What starts it.
        environment: What it finds in its environment.
        quiet: Whether a log takes what it says, not the terminal.
        pass_fds: Open files that it inherits.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: dict[str, str],
        *,
        quiet: bool = True,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.log = home() / "logs" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b"")
        self._command = command
        self._environment = environment | SAFE | {"MYPT_HOME": str(home())}
        self._quiet, self._pass_fds = quiet, pass_fds
        self.start()

    def start(self) -> None:
        """Start it, for the first time or once it has ended."""
        with self.log.open("ab") as file:
            self._child = subprocess.Popen(
                self._command,
                env=self._environment,
                # A library may look for its modules where it stands, whatever Python was told.
                cwd=self.log.parent if self._quiet else None,
                stdin=subprocess.DEVNULL,
                stdout=file if self._quiet else None,
                stderr=file if self._quiet else None,
                start_new_session=True,
                pass_fds=self._pass_fds,
            )
        self._watcher, self._started = watch(self._child.pid), time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self._started

    def check(self) -> None:
        """Raise if the process has ended."""
        code = self._child.poll()
        if code is not None:
            tail = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            why = f"{tail[0].strip()}; see {self.log}" if tail else "see its output above"
            raise MyptError(f"{self.name} ended by itself with code {code}: {why}")

    def ask_to_end(self) -> None:
        """Ask the process to end, and do not wait for it."""
        if self._child.poll() is None:
            self._child.terminate()

    def stop(self, seconds: float = GRACE_SECONDS) -> None:
        """Ask the process to end, then make it and all its children end."""
        self.ask_to_end()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self._watcher.kill()
        self._watcher.communicate()
