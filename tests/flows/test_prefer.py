"""A pipeline whose chat model learns from preference pairs last, and what it says of that."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from flows.pipeline import run_pipeline
from flows.sweep import run_sweep
from mypt.config import load_pipeline
from mypt.errors import ConfigError
from mypt.training.lineage import read_lineage
from tests.pages import ROOT


def test_pairs_are_learned_after_fine_tuning_and_reported(
    prefect,  # noqa: ARG001
    preferring,
    tmp_path,
    monkeypatch,
    capsys,
):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "home"))
    run_pipeline(preferring)
    said = capsys.readouterr().out
    assert "held out moved towards the chosen side" in said
    assert "data of the base: loss" in said
    model = next((tmp_path / "home" / "models").glob("small-prefer-*"))
    lineage = read_lineage(model / "step_000004")
    assert lineage.config.objective == "dpo"
    assert lineage.config.beta == 0.2
    assert lineage.parent.model_name.startswith("small-chat-")
    assert lineage.parent.lineage.parent.model_name.startswith("small-base-")
    found = [
        json.loads(path.read_text())
        for path in (tmp_path / "home" / "evaluations").glob("small-prefer-*/evaluation.json")
    ]
    assert found[0]["pairs"]["pairs"] > 3
    client = MlflowClient(f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    parent = next(run for run in runs if "pretrain_tokens_read" in run.data.metrics)
    metrics = parent.data.metrics
    assert metrics["pairs/accuracy"] == found[0]["pairs"]["accuracy"]
    assert metrics["pairs/margin"] == pytest.approx(found[0]["pairs"]["margin"])
    assert {"pairs/change_chosen", "pairs/change_data_of_the_base"} <= metrics.keys()
    assert Path(parent.data.tags["preferred"]).name == "step_000004"


def preferred(home, step):
    """The bytes of what the last step of the preferring left, but for what names paths."""
    (model,) = (home / "models").glob("small-prefer-*")
    names = ("model.safetensors", "optimizer.safetensors", "history.safetensors")
    return [(model / f"step_{step:06d}" / name).read_bytes() for name in names]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_pipeline_killed_while_it_learns_from_pairs_goes_on_bit_for_bit(preferring, tmp_path):
    values = json.loads(preferring.read_text())
    values["prefer"]["train"] |= {"max_iters": 200, "checkpoint_interval": 2, "keep_checkpoints": 1}
    preferring.write_text(json.dumps(values))
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | threads
    command = [sys.executable, "-m", "flows.cli", "run", str(preferring)]
    for name in ("whole", "killed"):
        environment["MYPT_HOME"] = str(tmp_path / name)
        with (tmp_path / "out").open("w") as out:
            child = subprocess.Popen(command, env=environment, stdout=out, start_new_session=True)
        end = time.monotonic() + 300
        while name == "killed" and child.poll() is None and time.monotonic() < end:
            if any((tmp_path / "killed/models").glob("small-prefer-*/latest")):
                os.killpg(child.pid, signal.SIGKILL)
            time.sleep(0.01)
        assert child.wait() == (0 if name == "whole" else -signal.SIGKILL)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "reused: fine-tune small-chat" in done.stdout
    assert preferred(tmp_path / "killed", 200) == preferred(tmp_path / "whole", 200)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_over_preferring_makes_all_before_it_once_and_ranks_on_the_same_questions(
    prefect,  # noqa: ARG001
    preferring,
    tmp_path,
    monkeypatch,
    capsys,
):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "home"))
    run_sweep(load_pipeline(preferring), ("prefer.train.beta=0.1,0.3",), 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("fine-tune small-chat") == 1
    assert lines.count("reused: fine-tune small-chat") == 1
    report = json.loads(Path(lines[-1].removeprefix("sweep: ")).read_text())
    betas = [read_lineage(Path(r["scores"]["checkpoint"]["path"])).config.beta
             for r in report["runs"]]  # fmt: skip
    assert betas == [0.1, 0.3]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"train": {"objective": "nll"}}, "set dpo, ipo or simpo"),
        ({"pairs": {"sources": [{"path": "p.jsonl"}]}}, "set pairs: true"),
        ({"pairs": {"sources": [{"path": "p", "pairs": True}], "val_fraction": 0}}, "val_fraction"),
    ],
)
def test_a_section_that_means_nothing_is_refused(preferring, section, said):
    values = json.loads(preferring.read_text())
    values["prefer"] |= section
    preferring.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=said):
        load_pipeline(preferring)
