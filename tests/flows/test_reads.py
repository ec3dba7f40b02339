"""How often the bytes of an input are hashed: once before they are used, whoever asks for it."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from prefect.runtime import task_run

from flows.cli import main
from flows.pipeline import run_pipeline
from mypt import files
from mypt.data.reading.raw import RawFile
from mypt.home import find_checkpoint
from mypt.training.checkpoints.checkpoint import OPTIMIZER
from mypt.training.lineage import WEIGHTS, read_lineage
from tests.flows.conftest import CONFIG
from tests.mypt.conftest import TINY, write_chat

TOKENIZE = ("tokenize base corpus small-base", "tokenize chat data small-chat")
TUNE = "fine-tune small-chat"


class Reads(Counter):
    """Passes over all bytes of a file, by stage, by what they were for, and by path."""

    def note(self, what, path):
        self[task_run.name, what, str(path)] += 1

    def of(self, stage, path):
        """Return what a stage did with a file, and how often."""
        found = (
            (what, n)
            for (where, what, name), n in self.items()
            if (where, name) == (stage, str(path))
        )
        return dict(found)


@pytest.fixture
def reads(monkeypatch):
    """The passes of this process from now on."""
    found = Reads()

    def counted(hash_file):
        def count(path):
            found.note("hashed", path)
            return hash_file(path)

        return count

    def read_through(raw):
        yield from chunks(raw)
        found.note("read and compared", raw.path)

    chunks = RawFile.chunks
    monkeypatch.setattr(RawFile, "chunks", read_through)
    for name in ("sha256_file", "digest_file"):
        monkeypatch.setattr(files, name, counted(getattr(files, name)))
    return found


@pytest.fixture
def raw(own_home):
    """A corpus of texts and one of conversations."""
    texts = own_home / "texts.jsonl"
    texts.write_text(
        "".join(f'{{"text": "The number {i} follows {i - 1}."}}\n' for i in range(200))
    )
    return texts, write_chat(own_home / "chats.jsonl", 200)


@pytest.mark.usefixtures("prefect")
def test_a_pipeline_hashes_each_raw_file_and_the_base_model_once(raw, reads, own_home):
    sources = [
        [{"path": str(path), "format": format}]
        for path, format in zip(raw, ("text", "messages"), strict=True)
    ]
    parts = {
        kind: CONFIG[kind] | {"sources": found}
        for kind, found in zip(("base", "chat"), sources, strict=True)
    }
    config = own_home / "small.json"
    config.write_text(json.dumps(CONFIG | parts | {"evaluate": {"exercises": 0, "eval_iters": 1}}))

    summary = json.loads(run_pipeline(config).path.read_text())
    parent = read_lineage(Path(summary["checkpoint"])).parent
    base = [Path(parent.path) / file.name for file in parent.lineage.files]
    assert {WEIGHTS, OPTIMIZER} <= {path.name for path in base}
    for stage, path in zip(TOKENIZE, raw, strict=True):
        assert reads.of(stage, path) == {"hashed": 1, "read and compared": 1}
    for path in base:
        assert reads.of(TUNE, path) == {"hashed": 1}, path

    reads.clear()
    run_pipeline(config)  # all of it reused
    for stage, path in zip(TOKENIZE, raw, strict=True):
        assert reads.of(stage, path) == {"hashed": 1}
    for path in base:
        assert reads.of(TUNE, path) == {}, path
        assert reads.of("pretrain small-base", path) == {"hashed": 1}


def test_the_commands_hash_each_raw_file_and_the_base_model_once(raw, reads, own_home):
    torch.set_num_threads(1)
    data, preset = own_home / "data", own_home / "preset.json"
    preset.write_text(json.dumps(TINY | {"max_iters": 2}))
    prepare = ["--input_files", raw[1], "--format", "messages", "--tokenization", "byte"]
    assert main(list(map(str, ["prepare", *prepare, "--out_dir", data]))) == 0
    assert reads.of(None, raw[1]) == {"hashed": 1, "read and compared": 1}

    train = ["train", "--config_file", preset, "--dataset_dir", data, "--model_name"]
    assert main(list(map(str, [*train, "base"]))) == 0
    base = find_checkpoint("base")
    reads.clear()
    assert main(list(map(str, [*train, "chat", "--init_from_model", "base"]))) == 0
    for file in read_lineage(base).files:
        assert reads.of(None, base / file.name) == {"hashed": 1}, file.name
