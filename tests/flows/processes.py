"""Ports nobody listens on, and which processes work over a home."""

import os
import socket
import time
from pathlib import Path


def free_ports(n):
    """Return ``n`` ports of this machine where nobody listens."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def processes_of(home, program=""):
    """Return the ids of all processes that work over ``home``, or of those that run a program."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if f"MYPT_HOME={home}".encode() in environment and program.encode() in words:
            found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]


def soon_alone(home, seconds=3.0):
    """Return whether nothing works over ``home`` any more; what was killed takes a moment to go."""
    end = time.monotonic() + seconds
    while processes_of(home) and time.monotonic() < end:
        time.sleep(0.02)
    return not processes_of(home)
