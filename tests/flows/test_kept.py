"""A run of which all is kept: found before anything heavy is loaded, and never where it is not."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows import kept
from flows.commands.services import run
from flows.forms import changed_config
from flows.kept import find_run, keep_run
from mypt.config import load_pipeline
from mypt.errors import MyptError
from mypt.evaluation.scores import read_summary
from mypt.files import write_bytes
from tests.flows.conftest import CONFIG
from tests.pages import ROOT

HEAVY = {"torch", "prefect", "mlflow", "pandas", "transformers"}
ROWS = [{"text": f"row {i} of the corpus, which says nothing new. " * 3} for i in range(200)]


@pytest.fixture
def home(ran, monkeypatch):
    """A home in which the command ran; a test gives back what it breaks."""
    monkeypatch.setenv("MYPT_HOME", str(ran.home))
    keep_run(asked(ran.home), first_summary(ran))
    return ran.home


def first_summary(ran):
    return read_summary(ran.paths[0].parent)


@contextmanager
def other_bytes(path):
    """Turn a bit of a file for the length of a block."""
    before = path.read_bytes()
    data = bytearray(before)
    data[len(data) // 2] ^= 1
    write_bytes(path, bytes(data))
    yield
    write_bytes(path, before)


def asked(home):
    return load_pipeline(home / "small.json")


def test_a_run_of_which_all_is_whole_is_found_with_its_summary(home, ran):
    found, summary = find_run(asked(home))
    assert summary == first_summary(ran)
    assert len(found.datasets) == 3, "base corpus, chat data, and these with masks"
    assert len(found.checkpoints) == 2


BROKEN = {
    "a weight of the chat model": lambda run: Path(run.checkpoints[0].path) / "model.safetensors",
    "a weight of the base model": lambda run: Path(run.checkpoints[1].path) / "model.safetensors",
    "a token": lambda run: Path(run.datasets[-1].path) / "train" / "shard_000.bin",
    "a mask": lambda run: Path(run.datasets[0].path) / "train" / "shard_000_mask.bin",
    "metadata": lambda run: Path(run.datasets[0].path) / "dataset_metadata.json",
    "the report": lambda run: Path(run.evaluations[0]) / "evaluation.json",
    "the summary": lambda run: Path(run.evaluations[0]) / "summary.json",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_bit_that_differs_sends_the_run_the_long_way(home, what):
    run, _ = find_run(asked(home))
    with other_bytes(BROKEN[what](run)):
        assert find_run(asked(home)) is None
    assert find_run(asked(home)) is not None


def test_a_record_that_was_changed_is_none(home):
    with other_bytes(kept._place(asked(home))):
        assert find_run(asked(home)) is None


@pytest.mark.parametrize("kind", ["models", "datasets", "evaluations"])
def test_what_is_gone_sends_the_run_the_long_way(home, kind):
    away = (home / kind).rename(home / "away")
    found = find_run(asked(home))
    away.rename(home / kind)
    assert found is None


def test_another_knob_other_code_and_another_champion_are_other_runs(home, monkeypatch, tmp_path):
    assert find_run(changed_config(home / "small.json", ["sft.learning_rate=0.02"])) is None
    champion = home / "models" / "champion.json"
    held = champion.read_bytes() if champion.exists() else None
    champion.write_text("{}")
    assert find_run(asked(home)) is None
    champion.write_bytes(held) if held else champion.unlink()
    assert find_run(asked(home)) is not None
    room = tmp_path / "room"
    room.mkdir()
    (room / "new.py").write_text("")
    monkeypatch.setattr(kept, "_ROOMS", [*kept._ROOMS, room])
    assert find_run(asked(home)) is None


def test_a_home_that_was_moved_goes_the_long_way_since_mlflow_must_follow(home, monkeypatch):
    moved = home.rename(home.with_name("moved"))
    monkeypatch.setenv("MYPT_HOME", str(moved))
    found = find_run(asked(moved))
    moved.rename(home)
    assert found is None


@pytest.mark.parametrize(
    "change",
    [
        {"evaluate": {"sets": {"other": "folder"}}},
        {"evaluate": {"questions": "asked.jsonl"}},
        {"evaluate": {"harness": ["piqa"]}},
        {"evaluate": {"gate": "ask"}},
        {"base": {"tokenization": "hf:folder"}},
        {"chat": {"tokenizer_from": "folder"}},
    ],
)
def test_what_reads_more_than_raw_files_is_never_found(home, change):
    values = {key: CONFIG[key] | change.get(key, {}) for key in CONFIG if key != "name"}
    (home / "other.json").write_text(json.dumps({"name": "small"} | values))
    assert not kept._is_covered(load_pipeline(home / "other.json"))


def test_a_run_of_stages_that_begins_with_a_model_is_never_found(home):
    stage = CONFIG["sft"] | {"name": "chat", "data": CONFIG["chat"], "mask": {}, "block_size": 32}
    path = home / "begun.json"
    path.write_text(json.dumps({"name": "begun", "init_from_model": "base", "stages": [stage]}))
    assert not kept._is_covered(load_pipeline(path))


def test_the_command_says_it_before_anything_heavy_is_loaded(home):
    program = (
        "import sys; from flows.commands.services import run;"
        f" run({str(home / 'small.json')!r}); print(sorted({HEAVY!r} & sys.modules.keys()))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[1].startswith("reused: all of it, made on ")
    assert lines[1].endswith("; nothing runs, so none is recorded")
    assert lines[-2].startswith(f"summary: {home}/evaluations/small-")
    assert lines[-1] == "[]"


def test_where_a_server_shows_runs_the_run_is_begun(home, monkeypatch):
    def begun():
        raise MyptError("begun")

    monkeypatch.setattr("flows.environment.prepare_environment", begun)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(MyptError, match="begun"):
        run(str(home / "small.json"))


def by_name(data):
    return CONFIG | {"base": data}


def in_stages(data):
    """The same, and between the two a stage that reads some of the corpus again."""
    text = {"sources": [{"exercises": "text", "count": 150, "seed": 7}]}
    stages = [
        CONFIG["pretrain"] | {"name": "base", "data": data},
        CONFIG["sft"] | {"name": "mid", "data": text, "replay": {"base": 0.3}, "max_iters": 2},
        CONFIG["sft"] | {"name": "chat", "data": CONFIG["chat"], "mask": {}, "max_iters": 2},
    ]
    return {"stages": stages, "evaluate": CONFIG["evaluate"]}


@pytest.mark.parametrize("form", [by_name, in_stages])
def test_a_raw_file_of_other_bytes_is_another_run(home, form):
    from flows.pipeline import run_pipeline

    corpus = home / "corpus.jsonl"
    corpus.write_text("\n".join(map(json.dumps, ROWS)))
    values = form({"sources": [{"path": str(corpus)}], "tokenization": "byte"})
    config = home / f"{form.__name__}.json"
    config.write_text(json.dumps(values | {"name": form.__name__}))
    made = run_pipeline(load_pipeline(config))
    keep_run(load_pipeline(config), made)
    assert find_run(load_pipeline(config))[1] == made
    corpus.write_text(corpus.read_text().replace("row 7 ", "Row 7 "))
    assert find_run(load_pipeline(config)) is None
    assert made.path.exists()
