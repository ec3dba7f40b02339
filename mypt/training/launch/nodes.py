"""Which machines train together, and what torch must be told so that they can."""

import os
import socket
from typing import NamedTuple

import psutil

from mypt.children import SAFE
from mypt.config import TrainConfig
from mypt.errors import ConfigError

_KEEP_ALIVE = "keep_alive_interval=3,keep_alive_max_attempt=3"
"""A machine that says nothing for nine seconds is gone."""


class Nodes(NamedTuple):
    """How many machines train, and where they meet; by default this one alone."""

    least: int = 1
    most: int = 1
    meet_at: str = ""
    """``HOST:PORT`` of the machine that the others find first; empty for one machine."""

    @classmethod
    def parse(cls, text: str | None, meet_at: str | None) -> "Nodes":
        """Return what ``2`` or ``1:4`` and an address mean.

        Raises:
            ConfigError: If they are no such thing, or one comes without the other.
        """
        if text is None and meet_at is None:
            return cls()
        least, _, most = (text or "").partition(":")
        numbers = least.isdecimal() and (most or least).isdecimal()
        if not numbers or not 1 <= int(least) <= int(most or least):
            raise ConfigError(f"nodes {text!r} found; expected a number such as 2, or MIN:MAX")
        _, _, port = (meet_at or "").rpartition(":")
        if not port.isdecimal():
            raise ConfigError(
                f"rendezvous {meet_at!r} found; expected HOST:PORT of the first machine, and the"
                " same on every other, such as node0:29400"
            )
        return cls(int(least), int(most or least), meet_at or "")


def check_sizes(config: TrainConfig, nodes: Nodes) -> None:
    """Refuse numbers of processes that a step's micro-batches cannot be shared among.

    Raises:
        ConfigError: If there would be a process without work, or one that others wait for.
    """
    if config.parallel == "none":
        raise ConfigError(
            f"nodes {nodes.least}:{nodes.most} with parallel none; set parallel to ddp or fsdp"
        )
    n = config.grad_accumulation
    for count in range(nodes.least, nodes.most + 1):
        size = count * config.processes
        found = f"{size} processes ({count} nodes x {config.processes})"
        if size > n:
            raise ConfigError(
                f"{found} found for grad_accumulation {n}, the micro-batches that a step is shared"
                f" by; set it to {size} or more, and batch_size so much smaller"
            )
        if config.parallel == "fsdp" and n % size:
            raise ConfigError(
                f"{found} do not divide grad_accumulation {n}, and with fsdp every process needs as"
                f" many micro-batches; set it to a multiple of {size}"
            )


def torchrun_arguments(name: str, config: TrainConfig, nodes: Nodes) -> list[str]:
    """Return how torchrun is started on this machine, but for the program that it runs.

    Args:
        name: The model's name, by which trainings that meet at one address are kept apart.
        config: Says how many processes a machine has.
        nodes: Which machines.
    """
    host, _, port = (nodes.meet_at or "127.0.0.1:0").rpartition(":")
    address = _own_address(host, int(port))
    is_host = int(address == socket.gethostbyname(host))
    wait = max(60, int(config.step_timeout))
    return [
        f"--nnodes={nodes.least}:{nodes.most}",
        f"--nproc-per-node={config.processes}",
        f"--max-restarts={config.max_restarts}",
        "--monitor-interval=0.5",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={host}:{port}",
        f"--rdzv-id={name}",
        f"--rdzv-conf=is_host={is_host},join_timeout={wait},last_call_timeout=5,timeout=60,"
        + _KEEP_ALIVE,
        f"--local-addr={address}",
    ]


def environment(config: TrainConfig, nodes: Nodes) -> dict[str, str]:
    """Return the environment of torchrun and its workers.

    Without the first of these words a restart often hangs or fails in torch 2.13: workers of the
    new start find the addresses of the old ones in a store that is shared (DESIGN.md D92).
    """
    host, _, port = (nodes.meet_at or "127.0.0.1:0").rpartition(":")
    interface = _interface(_own_address(host, int(port)))
    ours = {
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "OMP_NUM_THREADS": str(config.threads or 1),
    }
    usual = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    return usual | dict(os.environ) | ours | SAFE


def _own_address(host: str, port: int) -> str:
    """Return the address by which this machine talks to ``host``; nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port or 9))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(
            f"rendezvous {host}:{port}: no way there from this machine: {error}; give an address"
            " or a name that every machine can reach"
        ) from None


def _interface(address: str) -> str:
    for name, found in psutil.net_if_addrs().items():
        if any(one.address == address for one in found):
            return str(name)
    raise ConfigError(f"no network interface of this machine has the address {address}")
