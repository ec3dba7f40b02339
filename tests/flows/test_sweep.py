"""Sweeps: what is shared, what the parent says, and that figures are those of single runs."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mlflow import MlflowClient

from flows.forms import changed_config
from flows.pipeline import run_pipeline
from flows.sweep import run_sweep
from mypt.config import load_pipeline
from tasks.tracking.destination import KIND_TAG, PIPELINE
from tests.flows.conftest import CONFIG
from tests.pages import ROOT

MASKS = ("assistant", "assistant,user=0.1")
RATES = ("1e-2", "3e-3", "1e-3")
OVER = ("mask.policy=assistant,assistant+user=0.1", "sft.learning_rate=1e-2,3e-3,1e-3")
MADE_ONCE = [
    "tokenize base corpus small-base",
    "validate base corpus small-base",
    "tokenize chat data small-chat",
    "pretrain small-base",
]
A_MASK = ["mask chat data small-chat", "validate chat data small-chat"]
A_RUN = ["fine-tune small-chat", "evaluate small"]


def of_six(test):
    """Mark a test that needs the sweep of six, which takes minutes."""
    return pytest.mark.slow(pytest.mark.timeout(1800)(test))


def report_of(out):
    return json.loads(Path(out.splitlines()[-1].removeprefix("sweep: ")).read_text())


@pytest.fixture(scope="module")
def swept(prefect, tmp_path_factory):  # noqa: ARG001
    """A sweep of six, twice: where it lies, and what both printed."""
    folder = tmp_path_factory.mktemp("sweep")
    config = folder / "small.json"
    config.write_text(json.dumps(CONFIG))
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPT_HOME", str(folder))
        for _ in range(2):
            with redirect_stdout(StringIO()) as out:
                run_sweep(load_pipeline(config), OVER, 1)
            printed.append(out.getvalue())
    return SimpleNamespace(home=folder, config=config, first=printed[0], second=printed[1])


def counted(out):
    """How often each stage was made, and how often it was found."""
    made, reused = {}, {}
    for line in out.splitlines():
        name = line.removeprefix("reused: ")
        if name in (*MADE_ONCE, *A_MASK, *A_RUN, "rank small"):
            which = made if name == line else reused
            which[name] = which.get(name, 0) + 1
    return made, reused


@of_six
def test_six_combinations_make_what_they_have_in_common_once(swept):
    made, reused = counted(swept.first)
    assert made == dict.fromkeys(MADE_ONCE, 1) | dict.fromkeys(A_MASK, 2) | dict.fromkeys(
        A_RUN, 6
    ) | {"rank small": 1}
    assert reused == dict.fromkeys(MADE_ONCE, 5) | dict.fromkeys(A_MASK, 4)
    folders = [path for path in (swept.home / "datasets").iterdir() if path.is_dir()]
    assert len(folders) == 1 + 1 + 2, "base corpus, chat data, a mask each"
    assert len(list((swept.home / "models").iterdir())) == 1 + 6


@of_six
def test_the_same_sweep_again_makes_nothing_and_says_the_same(swept):
    made, reused = counted(swept.second)
    assert made == {}
    assert reused == dict.fromkeys((*MADE_ONCE, *A_MASK, *A_RUN), 6) | {"rank small": 1}
    assert swept.second.splitlines()[-9:] == swept.first.splitlines()[-9:]


@of_six
def test_the_table_holds_every_combination_and_an_interval_against_the_first(swept):
    report = report_of(swept.first)
    wanted = [{"mask.policy": m, "sft.learning_rate": r} for m in MASKS for r in RATES]
    assert [run["settings"] for run in report["runs"]] == wanted
    assert [one["settings"] for one in report["ranked"] if one["settings"] not in wanted] == []
    assert len(report["ranked"]) == 6
    front, *others = report["ranked"]
    assert front["loss"]["low"] == front["loss"]["change"] == front["loss"]["high"] == 0
    for one in others:
        assert one["loss"]["low"] <= one["loss"]["change"] <= one["loss"]["high"]
        assert one["loss"]["mean"] >= front["loss"]["mean"] or report["figure"] == "exact match"
    firsts = [one for one in report["ranked"] if one["settings"]["mask.policy"] == MASKS[0]]
    for one in firsts:  # scored on the tokens that they learn themselves
        assert one["loss"]["mean"] == one["val_loss"]
    assert swept.first.splitlines()[-3] == report["why"]
    page = Path(swept.first.splitlines()[-2].removeprefix("page: ")).read_text()
    assert page.count("<svg ") == 6
    assert "<script" not in page


@of_six
def test_mlflow_has_a_parent_and_a_child_a_combination(swept):
    mlflow = MlflowClient(f"sqlite:///{swept.home / 'mlflow.db'}")
    experiment = mlflow.get_experiment_by_name("small").experiment_id
    found = mlflow.search_runs([experiment], order_by=["attributes.start_time ASC"])
    parent = next(run for run in found if run.data.tags.get(KIND_TAG) == "sweep")
    report = report_of(swept.first)
    assert parent.data.tags["best"] == (report["best"] or "none")
    assert parent.data.params["over.mask.policy"] == "assistant,assistant+user=0.1"
    assert "sweep" in parent.data.tags["mlflow.note.content"]
    pages = {file.path for file in mlflow.list_artifacts(parent.info.run_id)}
    assert {"sweep.html", "ranking.json", "config.json"} <= pages
    below = [
        run
        for run in found
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
        and run.data.tags.get(KIND_TAG) == PIPELINE
    ]
    assert len(below) == 6
    assert {run.info.status for run in (parent, *below)} == {"FINISHED"}
    assert below[0].info.run_name == "1/6 assistant, 1e-2 (small)"
    for run, of in zip(below, report["runs"], strict=True):
        assert run.data.metrics["val_loss"] == of["scores"]["val_loss"]
        assert run.data.params["policy"] == of["settings"]["mask.policy"]


def figures(run):
    """A run of a report without where it lies."""
    scores = run["scores"]
    return {k: v for k, v in scores.items() if k != "checkpoint"} | {
        "step": scores["checkpoint"]["step"]
    }


@of_six
def test_figures_are_those_of_six_single_runs_to_the_bit(swept, tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))
    runs = report_of(swept.first)["runs"]
    for run in runs:
        rate, mask = run["settings"]["sft.learning_rate"], run["settings"]["mask.policy"]
        roles, weights = ["assistant"], {}
        if mask != "assistant":
            roles, weights = ["assistant", "user"], {"user": 0.1}
        config = changed_config(
            swept.config,
            [
                f"sft.learning_rate={rate}",
                f"mask.roles={json.dumps(roles)}",
                f"mask.weights={json.dumps(weights)}",
            ],
        )
        alone = json.loads(run_pipeline(config).path.read_text())
        assert figures({"scores": alone["sft"]}) == figures(run)
        assert (alone["policy"], alone["mask_density"]) == (run["policy"], run["mask_density"])
        weights = Path("model.safetensors")
        one, other = (Path(of["checkpoint"]["path"]) for of in (alone["sft"], run["scores"]))
        assert (one / weights).read_bytes() == (other / weights).read_bytes()


@of_six
def test_a_sweep_that_was_killed_goes_on_by_the_same_command(swept, tmp_path):
    command = [sys.executable, "-m", "flows.cli", "sweep", str(swept.config)]
    command += [word for text in OVER for word in ("--over", text)]
    # As many threads as the sweep of this process had: they decide the order of sums.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment = os.environ | {"MYPT_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)} | threads
    environment = {k: v for k, v in environment.items() if not k.startswith("PREFECT_")}
    out = tmp_path / "out"
    with out.open("w") as file:
        child = subprocess.Popen(command, stdout=file, env=environment, start_new_session=True)
    end = time.monotonic() + 200
    while out.read_text().count("evaluate small") < 2 and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    made, reused = counted(done.stdout)
    assert made.keys().isdisjoint(MADE_ONCE)
    assert reused["fine-tune small-chat"] >= 1
    again, whole = report_of(done.stdout), report_of(swept.first)
    assert [figures(run) for run in again["runs"]] == [figures(run) for run in whole["runs"]]
    assert again["ranked"] == whole["ranked"]


def test_seeds_alone_share_all_but_a_training_and_its_evaluation(ran, monkeypatch, capsys):
    monkeypatch.setenv("MYPT_HOME", str(ran.home))
    run_sweep(load_pipeline(ran.home / "small.json"), (), 2)
    out = capsys.readouterr().out
    made, reused = counted(out)
    assert made == dict.fromkeys((*A_RUN, "rank small"), 1)
    assert reused == dict.fromkeys((*MADE_ONCE, *A_MASK), 2) | dict.fromkeys(A_RUN, 1)
    report = report_of(out)
    assert [run["seed"] for run in report["runs"]] == [1337, 1338]
    (only,) = report["ranked"]
    assert (only["settings"], only["seeds"], report["best"]) == ({}, 2, "")
    first = json.loads(ran.paths[0].read_text())
    assert report["runs"][0]["scores"] == first["sft"]
