"""From a chat model that a pipeline made to the bytes of the raw files, with no server up."""

import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import main
from mypt.home import find_checkpoint
from mypt.inference.chat import ask
from mypt.training.checkpoints.checkpoint import load_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def walked(ran, monkeypatch, capsys):
    """Return the exit code and the chain of the run's chat model as ``mypt lineage`` tells it."""
    monkeypatch.setenv("MYPT_HOME", str(ran.home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # nobody is asked
    checkpoint = json.loads(ran.paths[0].read_text())["checkpoint"]

    def walk(*flags):
        capsys.readouterr()
        code = main(["lineage", checkpoint, "--json", *flags])
        return code, json.loads(capsys.readouterr().out)

    return walk


def leaves(link):
    if link["kind"] == "file":
        yield link
    for below in link["links"]:
        yield from leaves(below)


def test_an_answer_leads_to_the_raw_bytes_and_a_changed_byte_is_named(ran, walked):
    summary = json.loads(ran.paths[0].read_text())
    model, tokenizer, _ = load_model(find_checkpoint(summary["checkpoint"]))
    reply = ask(model, tokenizer, "Spell tanok.", form="chat", max_tokens=4)
    assert isinstance(reply.text, str)

    code, chain = walked("--verify")
    assert code == 0
    assert chain["digest"] == summary["digests"]["checkpoint"]
    raw = {Path(leaf["path"]): leaf["digest"] for leaf in leaves(chain)}
    assert len(raw) == 2, "the base corpus and the chat data"
    for path, digest in raw.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest

    for path in raw:
        before = path.read_bytes()
        path.write_bytes(before[:-2] + bytes([before[-2] ^ 1]) + before[-1:])
        try:
            code, chain = walked("--verify")
        finally:
            path.write_bytes(before)
        assert code == 1
        named = [problem for leaf in leaves(chain) for problem in leaf["problems"]]
        assert named == [f"{path}: its bytes changed"]


def test_what_a_pipeline_made_is_made_again_bit_for_bit(ran, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("MYPT_HOME", str(ran.home))
    checkpoint = json.loads(ran.paths[0].read_text())["checkpoint"]
    assert main(["reproduce", checkpoint, "--out_dir", str(tmp_path / "again"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [stage["outcome"] for stage in found["stages"]] == ["same"] * 4


def of_the_demo(test):
    """Mark a test that needs the demo, which takes five minutes, or ten on a busy machine."""
    return pytest.mark.slow(pytest.mark.timeout(3600)(test))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Return what runs ``mypt`` in a home where the demo was made, and what that printed."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    environment = kept | {"MYPT_HOME": str(tmp_path_factory.mktemp("demo"))}

    def mypt(*words):
        command = [Path(sys.executable).parent / "mypt", *words]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return mypt, mypt("run", "configs/demo.json")


@of_the_demo
def test_a_second_demo_finds_all_of_it_in_a_few_seconds(demo):
    mypt, first = demo
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    again = mypt("run", "configs/demo.json")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "reused: all of it, made on " in again
    assert again.splitlines()[-1] == first.splitlines()[-1]
    # Of a processor, since others may keep the machine busy.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 8


@of_the_demo
def test_the_demo_is_made_again_bit_for_bit(demo):
    mypt, first = demo
    summary = Path(first.splitlines()[-1].removeprefix("summary: "))
    said = mypt("reproduce", json.loads(summary.read_text())["checkpoint"])
    assert said.splitlines()[-1].startswith("the same bits; made in ")
