"""Machines for a test: network namespaces of this one, joined by a cable that can be cut."""

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def why_not() -> str:
    """Say why no namespace can be made here; empty if one can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the command 'ip' (iproute2)"
    name = f"mypt-try-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"'ip netns add' fails here: {done.stderr.strip()}"
    _ip("netns", "del", name)
    return ""


@dataclass(frozen=True)
class Host:
    """A namespace with an address of its own; its processes share this machine's files."""

    name: str
    interface: str
    address: str

    def start(self, words: list[str], log: Path, **environment: str) -> "subprocess.Popen[bytes]":
        """Start a program here; what it says goes to the end of ``log``."""
        with log.open("ab") as said:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *words],  # becomes the program
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def cut(self) -> None:
        """Cut the cable: whoever speaks hears nothing, not even that it was cut."""
        _ip("-n", self.name, "link", "set", self.interface, "down")

    def mend(self) -> None:
        """Join the cable again."""
        _ip("-n", self.name, "link", "set", self.interface, "up")

    def die(self) -> None:
        """Lose power: the cable first, so that no connection is closed in an orderly way."""
        self.cut()
        self.kill()

    def kill(self) -> None:
        """End every process here."""
        while pids := self.processes():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)

    def processes(self, program: str = "") -> list[int]:
        """Return the ids of the processes that run here; of those of a program, if one is named.

        Those that have ended and wait to be buried are none.
        """
        found = []
        for pid in map(int, _ip("netns", "pids", self.name).split()):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if any(words) and (not program or program in words[1:4]):
                found.append(pid)
        return found


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Yield two machines that reach each other and nothing else; nothing is left of them."""
    tag = secrets.token_hex(3)
    hosts = [Host(f"mypt-{tag}-{n}", f"mypt-{tag}-{n}", f"10.66.0.{n}") for n in (1, 2)]
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
        first, second = (host.interface for host in hosts)
        _ip("link", "add", first, "type", "veth", "peer", "name", second)
        for host in hosts:
            _ip("link", "set", host.interface, "netns", host.name)
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.interface)
            _ip("-n", host.name, "link", "set", "lo", "up")
            host.mend()
        yield hosts[0], hosts[1]
    finally:
        there = _ip("netns", "list").split()
        for host in hosts:
            if host.name in there:
                host.kill()
                _ip("netns", "del", host.name)  # and the cable with it


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr.strip()}"
    return done.stdout
