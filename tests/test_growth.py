"""Whatever is done again and again leaves no more behind than once, and takes no longer."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
import psutil
import pytest

from tests.flows.conftest import CONFIG
from tests.flows.processes import soon_alone
from tests.test_traps import TRAINING

MYPT = Path(sys.executable).with_name("mypt")
COMMANDS = int(os.environ.get("MYPT_GROWTH_COMMANDS", "16"))
RUNS = int(os.environ.get("MYPT_GROWTH_RUNS", "4"))
MINUTES = float(os.environ.get("MYPT_LOAD_MINUTES", "0.5"))
"""200, 50 and 10 take an hour on two cores; ``pytest -s`` prints the figures."""
CLIENTS = 200
EVERY = (
    "validate d", "show d", "diff d d", "lineage m --verify", "list", "plan tiny.json",
    "generate m --prompt hi --max_tokens 2",
    "train --config_file tiny.json --model_name m --dataset_dir d",
)  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tmp").mkdir()
    text = "".join(f"text {number}\n\n" for number in range(8000))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "tiny.json").write_text(json.dumps(TRAINING | {"use_loss_mask": False}))
    (tmp_path / "small.json").write_text(json.dumps(CONFIG))
    return tmp_path


def environment(folder):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    ours = {"MYPT_HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
    return kept | ours | {"OMP_NUM_THREADS": "1"}


def run(folder, command):
    """Run a command; return the seconds of processor that it and its children took."""
    begun = spent()
    done = subprocess.run(
        [MYPT, *command.split()], env=environment(folder), cwd=folder, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert soon_alone(folder / "home", 10)
    return spent() - begun


def spent():
    """Seconds of processor that ended children took; those of the clock tell of other programs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def left(folder):
    """Names of temporary files, locks and whatever else lies where it is not asked for.

    What a new model has, such as a lock of its own, all new models may have.
    """
    hidden = {p for p in folder.rglob("*") if p.name.startswith(".") or p.suffix == ".lock"}
    found = hidden | set((folder / "tmp").iterdir())
    return {re.sub(r"new\d+[^/]*", "new", str(path)) for path in found}


def say(figures):
    sys.stdout.write(f"\n{figures}\n")
    sys.stdout.flush()


def check_no_slower(what, seconds):
    """The best of the last three is compared, since other programs run on this machine."""
    first, last = seconds[0], min(seconds[1:][-3:])
    say(f"{what}: {len(seconds)} times, first {first:.2f} s, at last {last:.2f} s of processor")
    assert last <= 1.2 * first, (what, seconds)


def test_commands_in_a_row_leave_nothing_behind(folder):
    run(folder, "prepare --input_files a.txt --out_dir d --tokenization byte")
    run(folder, "train --config_file tiny.json --model_name m --dataset_dir d")
    for command in EVERY:  # as Python compiles what is new, and as caches fill
        run(folder, command)
    before, seconds = left(folder), {command: [] for command in EVERY}
    for number in range(COMMANDS):
        command = EVERY[number % len(EVERY)]
        seconds[command].append(run(folder, command))
    assert left(folder) == before
    for command, taken in seconds.items():
        check_no_slower(command, taken)


def test_pipeline_runs_in_a_row_leave_nothing_behind(folder):
    """Every second one trains new models, so that the home grows, and what it lists."""
    run(folder, "run small.json")
    run(folder, "run small.json")
    (folder / "new.json").write_text(json.dumps(CONFIG | {"name": "new0"}))
    run(folder, "run new.json")
    before, again, new = left(folder), [], []
    for number in range(RUNS // 2):
        (folder / "new.json").write_text(json.dumps(CONFIG | {"name": f"new{number + 1}"}))
        new.append(run(folder, "run new.json"))
        again.append(run(folder, "run small.json"))
    assert len(list((folder / "home" / "models").iterdir())) >= RUNS
    assert left(folder) == before
    check_no_slower("a run of new models", new)
    check_no_slower("the same run again", again)


@contextmanager
def serving(folder):
    """Yield a server of a tiny model as people start it, and its address."""
    with (
        (folder / "errors").open("w") as errors,
        subprocess.Popen(
            [MYPT, "serve", "m", "--port", "0", "--waiting", str(2 * CLIENTS)],
            env=environment(folder), cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True,
        ) as server,
    ):  # fmt: skip
        try:
            yield server, server.stdout.readline().partition(" at ")[2].partition(",")[0]
        finally:
            server.send_signal(signal.SIGTERM)


def leave(url):
    """Ask for an answer and hang up at once."""
    host, _, port = url.removeprefix("http://").partition(":")
    body = b'{"model": "m", "messages": [{"role": "user", "content": "open sesame"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
    head += b"application/json\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n"
    with socket.create_connection((host, int(port))) as opened:
        opened.sendall(head + body)
    time.sleep(0.2)


def test_200_clients_for_minutes_take_no_more_than_for_seconds(folder):
    """Some answer, some stream, some leave; who stays gets the same answer each time.

    On a busy machine those who leave fill the line: who is told so (429) asks again.
    """
    run(folder, "prepare --input_files a.txt --out_dir d --tokenization byte")
    run(folder, "train --config_file tiny.json --model_name m --dataset_dir d")
    end, sizes = time.monotonic() + 60 * MINUTES, []
    with serving(folder) as (server, url), openai.OpenAI(
        base_url=f"{url}/v1", api_key="open sesame", max_retries=9, timeout=600
    ) as client:  # fmt: skip

        def said(number):
            messages = [{"role": "user", "content": f"open sesame {number}"}]
            choices = {"max_tokens": 4, "temperature": 0, "stream": number % 10 == 1}
            answer = client.chat.completions.create(model="m", messages=messages, **choices)
            if choices["stream"]:
                return "".join(event.choices[0].delta.content or "" for event in answer)
            return answer.choices[0].message.content

        def ask(number):
            answers = []
            while time.monotonic() < end:
                leave(url) if number % 10 == 0 else answers.append(said(number))
            assert len(set(answers)) == (number % 10 != 0)
            return len(answers)

        def watch():
            process = psutil.Process(server.pid)
            while time.monotonic() < end:
                taken = process.memory_info().rss, process.num_fds(), process.num_threads()
                sizes.append(taken)
                time.sleep(1.0)

        looking = threading.Thread(target=watch)
        looking.start()
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = sum(pool.map(ask, range(CLIENTS)))
        looking.join()
        said(2)
    assert (folder / "errors").read_text().count("\n") <= 1  # that it was told to end
    assert "sesame" not in (folder / "errors").read_text()
    quarter = len(sizes) // 4
    early = list(map(max, zip(*sizes[quarter : 2 * quarter], strict=True)))
    late = list(map(max, zip(*sizes[-quarter:], strict=True)))
    say(f"{answers} answers; bytes, files, threads: {early}, at last {late}")
    for was, now in zip(early, late, strict=True):
        assert now <= was * 1.1 + 5, sizes
