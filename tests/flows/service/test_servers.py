import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from flows.service import servers
from flows.service.addresses import Addresses, resolve
from flows.service.server_process import ServerProcess
from flows.service.servers import up
from mypt.errors import ConfigError, MyptError
from tests.flows.processes import free_ports, soon_alone


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "home"))


def test_a_taken_port_is_one_clear_error():
    (free,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} .* is taken .* --mlflow_port"):
            resolve("127.0.0.1", free, port, None)
        with pytest.raises(ConfigError, match=rf"port {port} .* is taken .* --prefect_port"):
            resolve("127.0.0.1", port, free, None)


def test_elsewhere_than_on_this_machine_a_password_is_wanted(monkeypatch):
    ports = free_ports(2)
    with pytest.raises(ConfigError, match=r"--host 0\.0\.0\.0: whoever reaches .* USER:PASSWORD"):
        resolve("0.0.0.0", *ports, None)
    with pytest.raises(ConfigError, match=r"expected USER:PASSWORD"):
        resolve("0.0.0.0", *ports, "word")
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "ann:secret")
    at = resolve("0.0.0.0", *ports, None)
    assert at.environment()["PREFECT_API_AUTH_STRING"] == "ann:secret"
    assert "secret" not in str(at.commands())
    assert at.prefect.startswith("http://127.0.0.1:")


def test_a_server_that_does_not_start_is_named_and_the_other_stopped(monkeypatch, tmp_path):
    program = "import time; time.sleep(600)"
    commands = {
        "prefect": [sys.executable, "-c", program],
        "mlflow": [sys.executable, "-c", "raise SystemExit('no database')"],
    }
    monkeypatch.setattr(Addresses, "commands", lambda _: commands)
    with pytest.raises(MyptError, match=r"mlflow ended by itself with code 1: no database; see"):
        up(Addresses("127.0.0.1", *free_ports(2), None))
    assert soon_alone(tmp_path / "home")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_while_starting_stops_all(monkeypatch, tmp_path, capsys, number, code):
    program = "import os, signal, time; os.kill(os.getppid(), {}); time.sleep(600)"
    commands = {"prefect": [sys.executable, "-c", program.format(int(number))]}
    monkeypatch.setattr(Addresses, "commands", lambda _: commands)
    assert up(Addresses("127.0.0.1", *free_ports(2), None)) == code
    assert capsys.readouterr().out.splitlines()[-1].startswith("stopped: everything is kept in ")
    assert soon_alone(tmp_path / "home")


def test_servers_that_end_slowly_end_together():
    slow = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(6), sys.exit()))\n"
        "print(flush=True)\n"
        "time.sleep(600)"
    )
    quick = "import time; time.sleep(600)"
    processes = [
        ServerProcess(name, [sys.executable, "-c", program], dict(os.environ))
        for name, program in (("a", slow), ("b", slow), ("c", quick))
    ]
    while not all(process.log.read_bytes() for process in processes[:2]):
        time.sleep(0.1)
    began = time.monotonic()
    servers._stop(processes)
    assert time.monotonic() - began < 11


def test_what_a_server_started_ends_with_it(monkeypatch, tmp_path):
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    program = (
        "import os, signal, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "time.sleep(1)\n"
        f"os.kill(os.getppid(), {int(signal.SIGTERM)})\n"
        "time.sleep(600)\n"
    )
    commands = {"prefect": [sys.executable, "-c", program]}
    monkeypatch.setattr(Addresses, "commands", lambda _: commands)
    assert up(Addresses("127.0.0.1", *free_ports(2), None)) == 143
    assert soon_alone(tmp_path / "home")


def test_the_servers_are_safe_and_small():
    at = Addresses("127.0.0.1", 4200, 5000, None)
    environment = at.environment()
    assert {"http://127.0.0.1:4200", "http://localhost:4200"} <= set(
        environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    )
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert "PREFECT_API_AUTH_STRING" not in environment
    commands = at.commands()
    assert commands["prefect"][4:6] == ["127.0.0.1", "4200"]
    assert commands["mlflow"][commands["mlflow"].index("--host") + 1] == "127.0.0.1"


def test_a_server_that_dies_is_started_again_and_the_flows_go_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(servers, "_LIVES_SECONDS", 0.0)
    died = tmp_path / "died"
    once = (
        f"import pathlib, sys, time; died = pathlib.Path({str(died)!r})\n"
        "if not died.exists():\n    died.touch()\n    sys.exit(3)\n"
        "time.sleep(600)"
    )
    commands = {"mlflow": once, "serving": "import time; time.sleep(600)"}
    running = [
        ServerProcess(name, [sys.executable, "-c", program], dict(os.environ))
        for name, program in commands.items()
    ]
    asked = []
    threading.Timer(3.0, asked.append, [signal.SIGTERM]).start()
    try:
        servers.keep(running, asked)
        for process in running:
            process.check()
        assert "mlflow ended by itself with code 3" in capsys.readouterr().err
    finally:
        for process in running:
            process.stop()
    assert soon_alone(tmp_path / "home")


UP = """
import sys
from flows.service.addresses import Addresses
from flows.service.servers import up
Addresses.commands = lambda _: {"prefect": [sys.executable, "-c", "import time; time.sleep(600)"]}
up(Addresses("127.0.0.1", int(sys.argv[1]), int(sys.argv[2]), None))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_nothing_outlives_it_when_it_is_killed_or_its_terminal_closed(tmp_path, number):
    words = [sys.executable, "-c", UP, *map(str, free_ports(2))]
    with subprocess.Popen(words, env=os.environ | {"MYPT_HOME": str(tmp_path / "home")}) as running:
        while not (tmp_path / "home" / "logs" / "prefect.log").exists():
            time.sleep(0.05)
        time.sleep(1)
        running.send_signal(number)
        running.wait(60)
    assert soon_alone(tmp_path / "home", 10)


def test_who_serves_the_flows_is_not_started_again():
    process = ServerProcess("serving", [sys.executable, "-c", "raise SystemExit(5)"], {})
    with pytest.raises(MyptError, match="serving ended by itself with code 5"):
        servers.keep([process], [])
    process.stop()
