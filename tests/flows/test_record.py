"""Wherever the policy or the density of a training is shown, it is what its loader counted."""

import io
import json
import re
from contextlib import redirect_stdout
from types import SimpleNamespace
from uuid import UUID

import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from rich.console import Console

from flows.commands.transfer import model_card
from flows.pipeline import run_pipeline
from mypt.config import PipelineConfig
from mypt.data.dataset import open_dataset
from mypt.home import find_checkpoint
from mypt.provenance.comparison import compare_checkpoints
from mypt.provenance.inventory import models
from mypt.provenance.lineage_page import render_page
from mypt.provenance.trace import render, trace
from mypt.training.lineage import read_lineage
from mypt.training.loader import GPTDataLoader
from tasks.tracking.destination import KIND_TAG, PIPELINE
from tests.flows.conftest import CONFIG

EVERY = "every token"


@pytest.fixture(scope="module", params=["assistant", EVERY])
def world(request, tmp_path_factory, _mlflow_database):
    """A pipeline that does not say whether masks are used, and one that says that they are not."""
    if request.param == EVERY:
        home = tmp_path_factory.mktemp("record")
        by_steps = {key: value for key, value in CONFIG["sft"].items() if key != "max_iters"}
        config = CONFIG | {"sft": by_steps | {"use_loss_mask": False, "epochs": 0.1}}
        request.getfixturevalue("prefect")
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
            patch.setenv("MYPT_HOME", str(home))
            path = run_pipeline(PipelineConfig.model_validate(config)).path
        printed = out.getvalue()
    else:
        ran = request.getfixturevalue("ran")
        home, path, printed = ran.home, ran.paths[0], ran.first
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPT_HOME", str(home))
        summary = json.loads(path.read_text())
        step = find_checkpoint(summary["checkpoint"])
        client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("small").experiment_id
        runs = client.search_runs([experiment], order_by=["attributes.start_time ASC"])
        yield SimpleNamespace(
            policy=request.param, printed=printed, summary=summary, step=step,
            lineage=read_lineage(step), client=client, experiment=experiment,
            runs={run.info.run_name: run for run in reversed(runs)},
            parent=next(run for run in runs if run.data.tags.get(KIND_TAG) == PIPELINE),
        )  # fmt: skip


def counted(lineage):
    """Return how many tokens the loader gave to read and to learn, batch by batch."""
    loader = GPTDataLoader.of(lineage.config, open_dataset(lineage.dataset.path))
    read = learned = 0
    for step in range(lineage.step):
        batch = loader.batch_at("train", step)
        read += batch.targets.numel()
        learned += batch.targets.numel() if batch.loss_mask is None else int(batch.loss_mask.sum())
    return read, learned


def words(text, pattern):
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in {text!r}"
    return found.groups()


def read_aloud(world):
    """Yield places of text, and the policy, the learned tokens and the density that each shows."""
    drawn, chain = Console(file=io.StringIO(), width=300), trace(world.step)
    drawn.print(render(chain))
    fact = r"(\d+) supervised \(([\d.]+)%: (.+?)\)"
    for place, text in (
        ("mypt lineage", drawn.file.getvalue()),
        ("mypt lineage --json", chain.model_dump_json()),
        ("mypt lineage --html", render_page(chain)),
        ("model card", model_card(world.lineage, form="chat", end="</s>")),
    ):
        learned, share, policy = words(text, fact)
        yield place, policy, int(learned), float(share) / 100
    density, learned, policy = words(
        world.printed, r"mask density: ([\d.]+) of the tokens read, ([\d,]+), were learned \((.+)\)"
    )
    yield "summary on the terminal", policy, int(learned.replace(",", "")), float(density)
    (policy,) = words(world.printed, r"\nsmall-chat\S*: .* learns (.+?), ")
    yield "first line of the training", policy, None, None
    (listed,) = [found.mask for found in models() if found.path == str(world.step.parent)]
    yield "mypt list", listed.partition(", ")[0], None, None
    yield "MLflow run name", world.parent.info.run_name.partition(": ")[0], None, None
    flow_run = UUID(world.parent.data.tags["prefect.flow_run_id"])
    shown = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]))
    with get_client(sync_client=True) as client:
        link = {a.key: a.data for a in client.read_artifacts(artifact_filter=shown)}["mlflow-run"]
    (policy,) = words(link, r"\[(.+?): .*in MLflow\]")
    yield "Prefect's link", policy, None, None


def read_as_figures(world):
    """Yield places of figures likewise."""
    lineage, summary = world.lineage, world.summary
    yield "lineage", lineage.policy, lineage.supervised, lineage.density
    yield (
        "summary.json", summary["policy"], summary["supervised_tokens"], summary["mask_density"],
    )  # fmt: skip
    base = find_checkpoint(lineage.parent.path)
    found = compare_checkpoints(base, world.step)
    yield (
        "mypt diff", found.settings.get("policy", (EVERY, EVERY))[1],
        int(found.metrics["tokens learned"][1]), found.metrics["mask density"][1],
    )  # fmt: skip
    assert found.metrics["mask density"][0] == 1.0
    params, metrics = world.parent.data.params, world.parent.data.metrics
    for key in ("supervised_tokens", "sft_tokens_learned"):
        yield f"MLflow {key}", params["policy"], metrics[key], metrics["mask_density"]
    tuned = world.runs["fine-tune small-chat"]
    steps = world.client.get_metric_history(tuned.info.run_id, "supervised_tokens")
    learned = sum(metric.value for metric in steps if metric.step <= lineage.step)
    yield "MLflow steps of the training", tuned.data.params["policy"], learned, None
    yield "MLflow end of the training", None, tuned.data.metrics["tokens_learned"], None
    evaluated = world.runs["evaluate small"].data.metrics["mask_density"]
    yield "MLflow evaluation", None, None, evaluated
    models = {m.tags["digest"]: m for m in world.client.search_logged_models([world.experiment])}
    yield "MLflow model", models[lineage.digest].params["policy"], None, None


def test_every_place_shows_what_the_loader_counted(world):
    read, learned = counted(world.lineage)
    assert world.lineage.tokens == read
    assert (learned == read) == (world.policy == EVERY)
    for place, policy, supervised, density in (*read_aloud(world), *read_as_figures(world)):
        assert policy in (None, world.policy), place
        assert supervised in (None, learned), place
        assert density is None or density == pytest.approx(learned / read, abs=6e-4), place


def test_a_pipelines_run_says_how_many_steps_its_trainings_had(world):
    assert world.lineage.config.epochs is None, "by then they are steps"
    assert world.parent.data.params["sft.max_iters"] == str(world.lineage.config.max_iters)
    assert world.parent.data.params["pretrain.max_iters"] == "10"


def test_a_dataset_whose_masks_were_not_used_does_not_lend_them_to_the_training(world):
    (data,) = [link for link in trace(world.step).links if link.kind == "dataset"]
    told = [fact for fact in data.facts if "mask" in fact]
    used = world.policy != EVERY
    assert told == ["mask: assistant" if used else "its masks were not used"]
    for read in world.runs["fine-tune small-chat"].inputs.dataset_inputs:
        assert "mask_density" not in {tag.key for tag in read.tags}
