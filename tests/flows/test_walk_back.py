"""From a chat model that a pipeline made to the bytes of the raw files, with no server up."""

import hashlib
import json
from pathlib import Path

import pytest

from flows.cli import main
from mypt.home import find_checkpoint
from mypt.inference.chat import ask
from mypt.training.checkpoint import load_model


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
