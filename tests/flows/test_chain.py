"""Pipelines of any number of stages: one run, one parent, one lineage down to the files."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest
import torch
from mlflow import MlflowClient
from prefect.client.orchestration import get_client

from flows.cli import main
from flows.combinations import combine
from flows.kept import find_run, keep_run
from flows.pipeline import run_pipeline
from mypt.config import load_pipeline
from mypt.errors import ConfigError, DataError
from mypt.home import checkpoint_to_use
from mypt.planning.configs import read_presets
from mypt.provenance.reproduction import reproduce
from mypt.provenance.trace import trace
from mypt.training.lineage import read_lineage
from tasks.tracking.destination import GATE_TAG, KIND_TAG, PIPELINE
from tests.flows.conftest import ARCHITECTURE, CONFIG, TRAINING
from tests.mypt.training.test_base_import import MODELS, make_tokenizer
from tests.pages import ROOT

BASE = CONFIG["pretrain"] | {"name": "base", "data": CONFIG["base"]}
CHAT = CONFIG["sft"] | {"name": "chat", "data": CONFIG["chat"], "mask": {}}
MORE = {"sources": [{"exercises": "text", "count": 150, "seed": 7}]}
MID = TRAINING | {"name": "mid", "data": MORE, "replay": {"base": 0.3}, "max_iters": 6}
ASIDE = {"sources": [{"exercises": "chat", "count": 60, "seed": 9}], "val_fraction": 0.5}
STAGED = {
    "name": "small", "stages": [BASE, MID, CHAT], "held_out": {"aside": ASIDE},
    "evaluate": CONFIG["evaluate"],
}  # fmt: skip
NAMES = [
    "tokenize base corpus small-base",
    "validate base corpus small-base",
    "tokenize text small-mid",
    "replay text small-mid",
    "validate text small-mid",
    "tokenize chat data small-chat",
    "mask chat data small-chat",
    "validate chat data small-chat",
    "tokenize held-out data small-aside",
    "mask held-out data small-aside",
    "pretrain small-base",
    "fine-tune small-mid",
    "evaluate small-mid",
    "fine-tune small-chat",
    "evaluate small-chat",
]


def written(folder, values):
    path = folder / "stages.json"
    path.write_text(json.dumps(values))
    return path


def weights(home, name):
    (model,) = (home / "models").glob(f"{name}-*")
    return (checkpoint_to_use(model) / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def staged(prefect, tmp_path_factory):  # noqa: ARG001
    """A pipeline of three stages: where it lies, its summary, and what it printed."""
    home = tmp_path_factory.mktemp("staged")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.setenv("MYPT_HOME", str(home))
        made = run_pipeline(written(home, STAGED))
    return SimpleNamespace(home=home, summary=made, out=out.getvalue())


@pytest.fixture(scope="module")
def runs(staged):
    """Its runs in MLflow, oldest first."""
    client = MlflowClient(f"sqlite:///{staged.home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small").experiment_id
    return client.search_runs([experiment], order_by=["attributes.start_time ASC"])


def test_one_parent_has_every_stage_below_it_in_order(runs):
    (parent,) = [run for run in runs if run.data.tags.get(KIND_TAG) == PIPELINE]
    children = [run for run in runs if run is not parent]
    children = [run for run in children if not run.info.run_name.startswith("answers of ")]
    assert [run.info.run_name for run in children] == NAMES
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}


def test_figures_go_by_the_name_of_the_stage_and_say_what_was_forgotten(runs, staged):
    (parent,) = [run for run in runs if run.data.tags.get(KIND_TAG) == PIPELINE]
    metrics, params = parent.data.metrics, parent.data.params
    assert metrics["chat/val_loss"] == pytest.approx(staged.summary.sft.val_loss)
    assert metrics["val_loss"] == metrics["chat/val_loss"], "the last is what runs compare by"
    assert {"mid/val_loss", "mid/change_base_corpus", "chat/change_base_corpus"} <= metrics.keys()
    assert metrics["chat/change_aside"] == staged.summary.sets["aside"].change
    assert staged.summary.sets["aside"].rows > 20
    assert {"base_tokens_read", "mid_best_val_loss", "chat_tokens_learned"} <= metrics.keys()
    assert params["stages.mid.replay.base"] == "0.3"
    assert params["stages.mid.use_loss_mask"] == "False"
    assert params["stages.chat.n_embd"] == str(ARCHITECTURE["n_embd"])
    assert {"base_dataset", "mid_dataset", "chat_dataset"} <= params.keys()
    assert not [key for key in params if key.startswith("mask")]
    assert "is 3" in staged.out, "the share that is read again"


def test_each_stage_leads_to_its_own_pages_and_not_to_the_last_ones(runs):
    (parent,) = [run for run in runs if run.data.tags.get(KIND_TAG) == PIPELINE]
    by_name = {run.info.run_name: run.info.run_id for run in runs}
    for stage in ("mid", "chat"):
        for name, file in (("fine-tune", "lineage.html"), ("evaluate", "dialogues.json")):
            place = f"/runs/{by_name[f'{name} small-{stage}']}/artifacts/{file}?"
            assert place in parent.data.tags["mlflow.note.content"]


def test_lineage_leads_from_the_last_checkpoint_to_the_data_of_every_stage(staged):
    last = Path(staged.summary.sft.checkpoint.path)
    lineage, names = read_lineage(last), []
    while lineage is not None:
        names.append(lineage.model_name.rpartition("-")[0])
        parent = lineage.parent
        sources = [source.name for source in lineage.dataset.sources]
        if names[-1] == "small-mid":
            assert sources[1:] == [f"base/{CONFIG_SOURCE}"]
        lineage = parent.lineage if parent else None
    assert names == ["small-chat", "small-mid", "small-base"]
    assert trace(last, verify=True)


CONFIG_SOURCE = "exercises_text"
"""What the text of the small pipeline is called."""


def test_a_checkpoint_behind_a_replay_is_made_again_to_the_bit(staged, monkeypatch, tmp_path):
    monkeypatch.setenv("MYPT_HOME", str(staged.home))
    last = Path(staged.summary.sft.checkpoint.path)
    found = reproduce(last, tmp_path / "again")
    assert found.ok, found.stages
    assert len(found.stages) == 6


def test_a_run_of_stages_of_which_all_is_whole_is_found_with_its_summary(staged, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(staged.home))
    config = load_pipeline(written(staged.home, STAGED))
    keep_run(config, staged.summary)
    found, summary = find_run(config)
    assert summary == staged.summary
    assert (len(found.datasets), len(found.checkpoints), len(found.evaluations)) == (5, 3, 2)
    mixed = next(Path(one.path) for one in found.datasets if "-mid-" in one.path)
    (mixed / "train" / "shard_001.bin").rename(mixed / "away")
    assert find_run(config) is None
    (mixed / "away").rename(mixed / "train" / "shard_001.bin")
    assert find_run(config) is not None


def test_two_trainings_by_name_and_the_same_as_stages_make_the_same_bits(
    prefect,  # noqa: ARG001
    tmp_path,
    monkeypatch,
):
    both = {"stages": [BASE, CHAT], "name": "small", "evaluate": CONFIG["evaluate"]}
    for name, values in (("two", CONFIG), ("staged", both)):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("MYPT_HOME", str(tmp_path / name))
        run_pipeline(written(tmp_path / name, values))
    for model in ("small-base", "small-chat"):
        assert weights(tmp_path / "two", model) == weights(tmp_path / "staged", model)
    names = [{p.name for p in (tmp_path / n / "models").iterdir()} for n in ("two", "staged")]
    assert names[0] == names[1], "so either finds what the other made"


def test_a_gate_between_stages_ends_the_run_by_name_and_not_as_a_failure(
    staged, monkeypatch, capsys
):
    monkeypatch.setenv("MYPT_HOME", str(staged.home))
    gated = MID | {"gate": {"forgets": 0.5}, "learning_rate": 1.0}
    path = written(staged.home, STAGED | {"stages": [BASE, gated, CHAT]})
    made = run_pipeline(path)
    keep_run(load_pipeline(path), made)
    assert find_run(load_pipeline(path)) is None, "the gate says again why"
    assert Path(made.sft.checkpoint.path).parent.name.startswith("small-mid-")
    said = capsys.readouterr().out
    assert "gate small-mid: " in said
    assert "fine-tune small-chat" not in said
    client = MlflowClient(f"sqlite:///{staged.home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small").experiment_id
    wanted = f"tags.`{KIND_TAG}` = '{PIPELINE}'"
    order = ["attributes.start_time DESC"]
    newest = client.search_runs([experiment], wanted, order_by=order)[0]
    assert newest.info.status == "FINISHED"
    assert newest.data.tags[GATE_TAG].startswith("ended by the gate of mid: ")
    with get_client(sync_client=True) as api:
        run = api.read_flow_run(UUID(newest.data.tags["prefect.flow_run_id"]))
    assert run.state.is_completed()
    assert run.state.name == "Ended by the gate of mid"


def test_an_imported_base_is_tuned_twice(prefect, tmp_path, monkeypatch):  # noqa: ARG001
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "home"))
    tokenizer = make_tokenizer()
    torch.manual_seed(1)
    MODELS["gpt2"](tokenizer.get_vocab_size()).save_pretrained(tmp_path / "hf")
    tokenizer.save(str(tmp_path / "hf" / "tokenizer.json"))
    talk = TRAINING | {"data": {"sources": CONFIG["chat"]["sources"]}, "mask": {}, "max_iters": 3}
    stages = [talk | {"name": "one", "block_size": 32}, talk | {"name": "two", "seed": 2}]
    values = {"name": "tuned", "init_from_model": f"hf:{tmp_path / 'hf'}", "stages": stages}
    made = run_pipeline(written(tmp_path, values | {"evaluate": CONFIG["evaluate"]}))
    lineage = read_lineage(Path(made.sft.checkpoint.path))
    assert lineage.model_name.startswith("tuned-two-")
    assert lineage.parent.model_name.startswith("tuned-one-")
    assert lineage.parent.lineage.parent.model_name.startswith("hf-")


def test_conversations_without_a_mask_are_refused_before_any_training(staged, monkeypatch, capsys):
    monkeypatch.setenv("MYPT_HOME", str(staged.home))
    bare = CHAT | {"mask": None, "name": "bare"}
    with pytest.raises(ConfigError, match=r"stages\.bare: its rows are conversations"):
        run_pipeline(written(staged.home, STAGED | {"stages": [BASE, bare]}))
    much = MID | {"replay": {"base": 0.95}}
    with pytest.raises(DataError, match="lower the share"):
        run_pipeline(written(staged.home, STAGED | {"stages": [BASE, much]}))
    assert "fine-tune" not in capsys.readouterr().out


def test_knobs_of_a_stage_go_by_its_name(tmp_path, capsys):
    path = written(tmp_path, STAGED)
    over = ["stages.chat.mask.policy=assistant,assistant+user=0.1", "stages.mid.learning_rate=1,2"]
    found = combine(load_pipeline(path), over, 2)
    assert len(found) == 8
    assert [one.config.stages[1].learning_rate for one in found[:4:2]] == [1, 2]
    assert [one.config.tuned.train.seed for one in found[:2]] == [1337, 1338]
    assert found[-1].config.stages[2].mask.weights == {"user": 0.1}
    gated = written(tmp_path, STAGED | {"stages": [BASE, MID | {"gate": {}}, CHAT]})
    with pytest.raises(ConfigError, match=r"stages\.mid\.gate: .*leave it out"):
        combine(load_pipeline(gated), over, 1)
    assert main(["run", str(gated), "--param", "stages.nobody.seed=1"]) == 2
    assert "there is no 'nobody'" in capsys.readouterr().err


def test_a_plan_is_of_every_stage(tmp_path):
    presets = read_presets(written(tmp_path, STAGED))
    assert [(one.name, one.n_embd) for one in presets] == [
        (name, ARCHITECTURE["n_embd"]) for name in ("base", "mid", "chat")
    ]
    stages = [CHAT | {"block_size": 32}]
    path = written(tmp_path, STAGED | {"stages": stages, "init_from_model": "hf:x"})
    with pytest.raises(ConfigError, match="begins with hf:x, whose sizes are known once"):
        read_presets(path)


def _of_processes(test):
    return pytest.mark.slow(pytest.mark.timeout(1800)(test))


@_of_processes
def test_the_example_runs_from_text_to_pairs(tmp_path):
    command = [sys.executable, "-m", "flows.cli", "run", "configs/small_stages.json"]
    done = subprocess.run(
        command, env=_environment(tmp_path), cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "base/statements is 2" in done.stdout
    assert "pairs" in done.stdout
    assert len(list((tmp_path / "models").glob("small-stages-*"))) == 4


@_of_processes
def test_killed_at_any_moment_of_the_third_stage_it_ends_with_the_same_bits(staged, tmp_path):
    stages = [BASE, MID, CHAT | {"checkpoint_interval": 2}]
    path = written(tmp_path, STAGED | {"stages": stages})
    command = [sys.executable, "-m", "flows.cli", "run", str(path)]
    home = tmp_path / "home"
    environment = _environment(home)
    with (tmp_path / "out").open("w") as out:
        child = subprocess.Popen(command, stdout=out, env=environment, start_new_session=True)
    end = time.monotonic() + 900
    while "fine-tune small-chat" not in (tmp_path / "out").read_text() and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(random.random())
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "reused: fine-tune small-mid" in again.stdout
    assert weights(home, "small-chat") == weights(staged.home, "small-chat")


def _environment(home):
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    found = os.environ | {"MYPT_HOME": str(home), "PYTHONPATH": str(ROOT)} | threads
    return {key: value for key, value in found.items() if not key.startswith("PREFECT_")}
