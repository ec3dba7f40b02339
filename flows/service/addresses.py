"""Where the servers of ``mypt up`` listen, whom they answer, and what their children are told."""

import os
import socket
from typing import NamedTuple

from flows.service.serving import HEARTBEAT_SECONDS
from mypt.children import python
from mypt.errors import ConfigError
from mypt.home import home

LOOPBACK = "127.0.0.1"
AUTH = "PREFECT_SERVER_API_AUTH_STRING"
_HERE = (LOOPBACK, "localhost")
_ANYWHERE = ("0.0.0.0", "::", "")


class Addresses(NamedTuple):
    """Both servers' places; MLflow, which asks for no password, never leaves this machine."""

    host: str
    """Address that Prefect's server listens on."""
    prefect_port: int
    mlflow_port: int
    auth: str | None
    """``USER:PASSWORD`` without which Prefect's API answers nobody."""

    @property
    def prefect(self) -> str:
        """Prefect's server as this machine reaches it."""
        return f"http://{LOOPBACK if self.host in _ANYWHERE else self.host}:{self.prefect_port}"

    @property
    def mlflow(self) -> str:
        """MLflow's server."""
        return f"http://{LOOPBACK}:{self.mlflow_port}"

    @property
    def hosts(self) -> list[str]:
        """Names under which Prefect may be asked; any on all addresses, which wants a password."""
        return ["*"] if self.host in _ANYWHERE else [*_HERE, self.host, socket.gethostname()]

    @property
    def origins(self) -> list[str]:
        """Pages that may ask Prefect."""
        names = {*_HERE, self.host, socket.gethostname(), *self._addresses()}
        return sorted(f"http://{name}:{self.prefect_port}" for name in names - set(_ANYWHERE))

    def _addresses(self) -> set[str]:
        if self.host not in _ANYWHERE:
            return set()
        try:
            return {str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None)}
        except socket.gaierror:
            return set()

    def commands(self) -> dict[str, list[str]]:
        """Return what starts each server."""
        prefect = ["flows.service.guarded_api", self.host, str(self.prefect_port), self.mlflow]
        prefect += [",".join(self.origins), ",".join(self.hosts)]
        mlflow = [
            "tasks.tracking.client",
            "server",
            "--host",
            LOOPBACK,
            "--port",
            str(self.mlflow_port),
        ]
        # The files lie on this machine: runs write them straight, the server only shows them.
        mlflow += ["--workers", "1", "--backend-store-uri", f"sqlite:///{home() / 'mlflow.db'}"]
        artifacts = (home() / "artifacts").as_uri()
        mlflow += ["--no-serve-artifacts", "--default-artifact-root", artifacts]
        return {
            name: python("-m", *words) for name, words in (("prefect", prefect), ("mlflow", mlflow))
        }

    def environment(self) -> dict[str, str]:
        """Return what the servers and the runs must find in their environment."""
        leases = "prefect.server.concurrency.lease_storage.filesystem"
        found = {
            "PREFECT_API_URL": f"{self.prefect}/api",
            "PREFECT_UI_API_URL": "/api" if self.host in _ANYWHERE else f"{self.prefect}/api",
            # Prefect answers any web page of any origin otherwise.
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(self.origins),
            # Limits that a killed run held are free again after a restart.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": leases,
            "PREFECT_RUNNER_POLL_FREQUENCY": "2",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
            # Two processes instead of eleven.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MYPT_MLFLOW_UI": self.mlflow,
        }
        if self.auth:
            found |= {AUTH: self.auth, "PREFECT_API_AUTH_STRING": self.auth}
        return found


def resolve(host: str, prefect_port: int, mlflow_port: int, auth: str | None) -> Addresses:
    """Return the servers' places once it is sure that they may and can be taken.

    Args:
        host: Address that Prefect's server listens on.
        prefect_port: Its port.
        mlflow_port: MLflow's, on this machine alone.
        auth: ``USER:PASSWORD``; None takes Prefect's own variable, where it is set.

    Raises:
        ConfigError: If a port is taken, or a password is missing or none.
    """
    auth = auth or os.environ.get(AUTH)
    if auth and not all(auth.partition(":")):
        raise ConfigError("--auth: expected USER:PASSWORD")
    if host not in _HERE and not auth:
        raise ConfigError(
            f"--host {host or repr(host)}: whoever reaches this machine could start programs on it;"
            f" expected a password besides, as --auth USER:PASSWORD or in {AUTH}"
        )
    _check_free(host, prefect_port, "--prefect_port")
    _check_free(LOOPBACK, mlflow_port, "--mlflow_port")
    return Addresses(host, prefect_port, mlflow_port, auth)


def _check_free(host: str, port: int, flag: str) -> None:
    if not 0 < port < 65536:
        raise ConfigError(f"{flag} {port}: expected a port from 1 to 65535")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror:
            raise ConfigError(f"--host {host}: no address of this machine") from None
        except OSError as error:
            raise ConfigError(
                f"port {port} on {host} is taken ({error.strerror}); expected a free one; stop"
                f" what listens there, or choose another with {flag}"
            ) from None
