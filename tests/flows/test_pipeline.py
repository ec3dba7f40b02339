import json
import os
import re
import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname
from uuid import UUID

import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL

from flows.pipeline import run_pipeline, sft_pipeline
from mypt.config import Architecture, load_pipeline
from mypt.errors import ConfigError, DataError
from mypt.evaluation.gate import champion
from mypt.files import digest_file
from mypt.home import find_checkpoint
from mypt.references import CheckpointRef, DatasetRef
from mypt.training.events import StepReport
from mypt.training.lineage import read_lineage
from tasks import training
from tasks.evaluation import PROMOTED, REFUSED
from tasks.tracking.destination import KIND_TAG, PIPELINE, REUSED
from tasks.validation import validate
from tests.flows.conftest import CONFIG, SECRET

STAGES = [
    "tokenize base corpus small-base",
    "validate base corpus small-base",
    "tokenize chat data small-chat",
    "mask chat data small-chat",
    "validate chat data small-chat",
    "pretrain small-base",
    "fine-tune small-chat",
    "evaluate small",
]
TITLE = "assistant: exercises_… (small)"
"""What people call the pipeline's run in MLflow."""
ANSWERS = "answers of"
"""How the runs begin that hold what a model said."""


@pytest.fixture(scope="module")
def mlflow(ran):
    return MlflowClient(f"sqlite:///{ran.home / 'mlflow.db'}")


@pytest.fixture(scope="module")
def runs(mlflow):
    """All MLflow runs of the pipeline, oldest first."""
    experiment = mlflow.get_experiment_by_name("small")
    return mlflow.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])


@pytest.fixture(scope="module")
def parents(runs):
    return [run for run in runs if run.info.run_name == TITLE]


@pytest.fixture(scope="module")
def summary(ran):
    return json.loads(ran.paths[0].read_text())


def task_runs(parent, n=8):
    """Return the task runs of a flow run in order, once Prefect has written all of them."""
    flow_run = FlowRunFilter(
        id=FlowRunFilterId(any_=[UUID(parent.data.tags["prefect.flow_run_id"])])
    )
    with get_client(sync_client=True) as client:
        for _ in range(100):
            found = client.read_task_runs(flow_run_filter=flow_run)
            if len(found) == n and all(run.state.is_final() for run in found):
                break
            time.sleep(0.1)  # task runs reach the database as events, a moment later
    return sorted(found, key=lambda run: run.start_time)


def test_the_first_run_is_eight_task_runs_named_by_what_they_work_on(parents):
    found = task_runs(parents[0])
    assert [run.name for run in found] == STAGES
    assert {run.state.name for run in found} == {"Completed"}


def test_the_second_run_reuses_every_stage_and_says_so(ran, parents):
    assert {run.state.name for run in task_runs(parents[1])} == {"Cached"}
    said = [line for line in ran.second.splitlines() if line.startswith("reused: ")]
    assert said == [f"reused: {name}" for name in STAGES]
    assert "reused" not in ran.first
    assert ran.paths[0] == ran.paths[1]


def test_prefects_log_says_what_was_reused_and_nothing_of_how_that_is_found_out(parents):
    run_id = UUID(parents[1].data.tags["prefect.flow_run_id"])
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    with get_client(sync_client=True) as client:
        for _ in range(100):
            lines = [line.message for line in client.read_logs(wanted)]
            if sum(line.startswith("reused: ") for line in lines) == len(STAGES):
                break
            time.sleep(0.1)  # lines are sent in batches, a moment later
    assert {f"reused: {name}" for name in STAGES} <= set(lines)
    assert [line for line in lines if "hook" in line] == []


def test_each_stage_follows_from_the_one_before(parents):
    found = task_runs(parents[0])
    names = {run.id: run.name for run in found}
    arrows = {
        run.name: {
            names[source.id]
            for sources in run.task_inputs.values()
            for source in sources
            if source.input_type == "task_run"
        }
        for run in found
    }
    base, chat = arrows["pretrain small-base"], arrows["fine-tune small-chat"]
    assert arrows["validate base corpus small-base"] == {"tokenize base corpus small-base"}
    assert arrows["mask chat data small-chat"] == {"tokenize chat data small-chat"}
    assert arrows["validate chat data small-chat"] == {"mask chat data small-chat"}
    assert base == {"validate base corpus small-base"}
    assert chat == {"validate chat data small-chat", "pretrain small-base"}
    assert arrows["evaluate small"] >= {"pretrain small-base", "fine-tune small-chat"}


def test_prefect_shows_statistics_findings_scores_and_the_way_to_mlflow(parents):
    run_id = UUID(parents[0].data.tags["prefect.flow_run_id"])
    shown = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    with get_client(sync_client=True) as client:
        artifacts = {found.key: found for found in client.read_artifacts(artifact_filter=shown)}
    kinds = sorted(key.rstrip("0123456789abcdef").rstrip("-") for key in artifacts)
    assert kinds == [
        "evaluation-small",
        "loss-small-base",
        "loss-small-chat",
        "mask-statistics-small-chat",
        "mlflow-run",
        "preview-small-base",
        "preview-small-chat",
        "validation-small-base",
        "validation-small-chat",
    ]
    assert parents[0].info.run_id in artifacts["mlflow-run"].data
    assert "](/mlflow/experiments/" in artifacts["mlflow-run"].data, "wherever both are by then"
    assert [key for key, found in artifacts.items() if not found.description] == []


def test_mlflow_has_a_run_a_stage_below_the_pipelines(runs, parents):
    children = [run for run in runs if not run.info.run_name.startswith((TITLE, ANSWERS))]
    assert sorted(run.info.run_name for run in children) == sorted(STAGES)
    for run in children:
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        way_back = f"/runs/flow-run/{parents[0].data.tags['prefect.flow_run_id']})"
        assert way_back in run.data.tags["mlflow.note.content"]
        assert run.info.run_id in parents[1].data.tags["mlflow.note.content"]
    assert [run.data.tags[KIND_TAG] for run in parents] == [PIPELINE, REUSED]
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_both_models_stand_question_by_question_in_mlflow(runs, parents, mlflow, summary):
    named = {run.info.run_name: run for run in runs}
    whole = json.loads(Path(summary["evaluation"]).read_text())
    (asked,) = mlflow.search_datasets()
    said = parents[0].data.tags["mlflow.note.content"]
    for model in ("base", "sft"):
        scores = whole[model]
        run = named[f"{ANSWERS} {scores['model']} step {scores['checkpoint']['step']}"]
        assert run.data.tags["mlflow.parentRunId"] == named["evaluate small"].info.run_id
        assert f"Uuid={run.info.run_id}" in said
        assert [one.dataset.name for one in run.inputs.dataset_inputs] == [asked.name]
        found = mlflow.search_traces(
            [run.info.experiment_id], f"attributes.run_id = '{run.info.run_id}'"
        )
        answers = {trace.data.spans[0].inputs["question"]: trace for trace in found}
        assert len(answers) == len(scores["answers"]) == CONFIG["evaluate"]["exercises"]
        for one in scores["answers"]:
            trace = answers[one["question"]]
            assert trace.data.spans[0].outputs == one["said"]
            assert {a.name: a.value for a in trace.info.assessments} == {
                "exact_match": one["right"], "stopped": one["stopped"], "leaked": one["leaked"],
                "expected_response": one["expected"],
            }  # fmt: skip


def test_mlflow_has_the_resolved_config_as_params(parents, mlflow):
    params = parents[0].data.params
    assert params["sft.learning_rate"] == "0.01"
    assert params["mask.roles.0"] == "assistant"
    assert (params["sft.use_loss_mask"], params["pretrain.use_loss_mask"]) == ("True", "False")
    shown = [key for key in Architecture.model_fields if f"pretrain.{key}" in params]
    assert {"n_embd", "n_layer", "vocab_size"} <= set(shown)
    for key in shown:  # the base model's: its own config names none
        assert params[f"sft.{key}"] == params[f"pretrain.{key}"], key
    assert params["sft.n_embd"] == "16"
    path = Path(mlflow.download_artifacts(parents[0].info.run_id, "config.json"))
    assert json.loads(path.read_text())["pretrain"]["n_embd"] == 16


def test_mlflow_has_every_step_and_evaluation(runs, mlflow):
    (tuned,) = [run for run in runs if run.info.run_name == "fine-tune small-chat"]
    for key in ("loss", "learning_rate", "tokens_per_second", "supervised_tokens_per_second"):
        history = mlflow.get_metric_history(tuned.info.run_id, key)
        assert [metric.step for metric in history] == list(range(1, 9)), key
    validation = mlflow.get_metric_history(tuned.info.run_id, "val_loss")
    assert [metric.step for metric in validation] == [0, 5, 8]
    assert tuned.data.params["use_loss_mask"] == "True"


def test_mlflow_has_datasets_with_digests_and_what_the_stages_left(runs, mlflow, summary):
    by_name = {run.info.run_name: run for run in runs}
    tuned = by_name["fine-tune small-chat"]
    splits = set()
    for read in tuned.inputs.dataset_inputs:
        tags = {tag.key: tag.value for tag in read.tags}
        assert tags["digest"] == summary["digests"]["chat_dataset"]
        assert read.dataset.digest == summary["digests"]["chat_dataset"][:36]
        splits.add(tags["mlflow.data.context"])
    assert splits == {"train", "validation"}

    def shown(name, folder=None):
        listed = mlflow.list_artifacts(by_name[name].info.run_id, folder)
        return {file.path.rpartition("/")[2] for file in listed}

    kept = shown("fine-tune small-chat", "checkpoint")
    assert {"config.json", "lineage.json"} <= kept
    assert not {name for name in kept if name.endswith(".safetensors")}
    assert shown("mask chat data small-chat") == {"mask_statistics.json"}
    assert shown("validate chat data small-chat") == {
        "validation.json",
        "preview.html",
        "proof.json",
    }
    assert shown("tokenize base corpus small-base") == {"dataset_metadata.json"}
    tables = {"figures.json", "dialogues.json", "sets.json", "tokens.json"}
    written = {"evaluation.html", "evaluation.json", "summary.json"}
    assert shown("evaluate small") == written | tables
    assert shown("fine-tune small-chat") == {"checkpoint", "lineage.html", "training.svg"}
    pages = {"lineage.html", "pretrain.svg", "sft.svg", "config.json"}
    assert shown(TITLE) == pages | tables


def test_mlflows_tables_hold_the_figures_of_both_models_and_what_they_answered(
    parents, mlflow, summary
):
    tables = {}
    for listed in json.loads(parents[0].data.tags["mlflow.loggedArtifacts"]):
        path = mlflow.download_artifacts(parents[0].info.run_id, listed["path"])
        table = json.loads(Path(path).read_text())
        tables[listed["path"]] = [
            dict(zip(table["columns"], row, strict=True)) for row in table["data"]
        ]
    figures = {row["figure"]: row for row in tables["figures.json"]}
    for column, model in (("base (chat form)", "base"), ("sft", "sft")):
        assert figures["val_loss"][column] == summary[model]["val_loss"]
        overall = figures["exact_match_overall"][column]
        assert overall == summary[model]["exact_match"]["overall"]
    whole = json.loads(Path(summary["evaluation"]).read_text())
    assert [row["set"] for row in tables["sets.json"]] == ["chat", "base corpus"]
    for row in tables["sets.json"]:
        assert row.items() <= (whole["sets"][row["set"]] | {"set": row["set"]}).items()
    groups = [whole[model]["tokens"]["groups"] for model in ("base", "sft")]
    assert len(tables["tokens.json"]) == sum(map(len, groups[1].values()))
    for row in tables["tokens.json"]:
        old, new = (of[row["group"]][row["of"]] for of in groups)
        assert (row["tokens"], row["base loss"], row["loss"]) == (
            new["tokens"], old["loss"], new["loss"],
        )  # fmt: skip
    assert [tuple(row.values()) for row in tables["dialogues.json"]] == [
        (said["prompt"], said["base"], said["sft"]) for said in whole["dialogues"]
    ]


def test_the_parent_repeats_what_runs_are_compared_by(parents, summary):
    for parent in parents:
        metrics = parent.data.metrics
        assert metrics["val_loss"] == pytest.approx(summary["sft"]["val_loss"])
        assert metrics["mask_density"] == pytest.approx(summary["mask_density"])
        assert "exact_match_overall" in metrics
        assert metrics["supervised_tokens"] == metrics["sft_tokens_learned"] > 0
        assert {"sft_best_val_loss", "pretrain_best_val_loss"} <= metrics.keys()
        params, digests = parent.data.params, summary["digests"]
        assert (params["policy"], params["template"]) == ("assistant", "mypt")
        assert params["chat_dataset"] == digests["chat_dataset"][:12]
        inputs = {found.dataset.name.rpartition("-")[0] for found in parent.inputs.dataset_inputs}
        assert inputs == {"small-base", "small-chat"}
        flow_run = parent.data.tags["prefect.flow_run_id"]
        assert parent.data.tags["prefect.flow_run_url"].endswith(f"/runs/flow-run/{flow_run}")
        assert f"/runs/flow-run/{flow_run})" in parent.data.tags["mlflow.note.content"]


def test_a_runs_description_says_what_a_person_wants_to_know(runs, parents, summary):
    by_name = {run.info.run_name: run for run in runs}
    digests = {name: digest[:12] for name, digest in summary["digests"].items()}
    pages = {
        "validate chat data small-chat": "preview.html",
        "fine-tune small-chat": "lineage.html",
        "evaluate small": "dialogues.json",
    }
    for parent in parents:
        said = parent.data.tags["mlflow.note.content"]
        assert re.search(r"^- \*\*mask\*\*: assistant, [\d.]+% of the tokens read", said, re.M)
        for name in ("chat_dataset", "base_dataset", "base_checkpoint"):
            assert digests[name] in said
        assert said.startswith("- **gate**: not asked\n\n- **mask**")
        for name, file in pages.items():
            place = f"runs/{by_name[name].info.run_id}/artifacts/{file}"
            assert f"{place}?workflowType=machine_learning)" in said
    said = by_name["fine-tune small-chat"].data.tags["mlflow.note.content"]
    assert "- **learned**: assistant" in said
    assert digests["chat_dataset"] in said
    assert digests["base_checkpoint"] in said
    assert (
        "- **parent**: random weights"
        in (by_name["pretrain small-base"].data.tags["mlflow.note.content"])
    )


def test_datasets_have_a_schema_and_figures_by_role(runs):
    by_name = {run.info.run_name: run for run in runs}
    for read in by_name["fine-tune small-chat"].inputs.dataset_inputs:
        columns = json.loads(read.dataset.schema)["mlflow_colspec"]
        kinds = {column["name"]: column["type"] for column in columns}
        assert kinds == {"token": "integer", "mask": "integer", "role": "string"}
        profile = json.loads(read.dataset.profile)
        density = profile["supervised by its masks"] / profile["tokens"]
        assert profile["density"] == pytest.approx(density, abs=1e-4)
        assert profile["user, both splits: density"] == 0
        assert profile["assistant, both splits: tokens"] > 0


def test_mlflow_has_the_checkpoints_with_figures_under_the_pipelines_name(runs, mlflow, summary):
    (experiment,) = {run.info.experiment_id for run in runs}
    found = {m.tags["digest"]: m for m in mlflow.search_logged_models([experiment])}
    chat = found[summary["digests"]["checkpoint"]]
    measured = {metric.key: metric.value for metric in chat.metrics}
    assert measured["exact_match_overall"] == summary["sft"]["exact_match"]["overall"]
    for model in found.values():
        at = int(model.tags["step"])
        history = mlflow.get_metric_history(model.source_run_id, "val_loss")
        measured = {metric.value for metric in model.metrics if metric.key == "val_loss"}
        assert {metric.value for metric in history if metric.step == at} <= measured
        assert measured
    assert chat.params["policy"] == "assistant"
    base = found[summary["digests"]["base_checkpoint"]]
    read = mlflow.get_run(chat.source_run_id).inputs.model_inputs
    assert [model.model_id for model in read] == [base.model_id]
    aliases = mlflow.get_registered_model("small").aliases
    assert aliases.keys() == {"newest", "best", "base-newest", "base-best"}
    for version in aliases.values():
        source = Path(
            url2pathname(urlsplit(mlflow.get_model_version("small", version).source).path)
        )
        assert (source / "MLmodel").is_file()
    best = mlflow.get_model_version("small", str(aliases["best"]))
    assert best.tags["path"] == summary["checkpoint"]


def test_mlflow_has_how_busy_the_machine_was(runs):
    (tuned,) = [run for run in runs if run.info.run_name == "fine-tune small-chat"]
    assert tuned.data.metrics["system/process_memory_megabytes"] > 1


def test_lineage_and_services_name_each_other(parents, runs, summary):
    lineage = read_lineage(find_checkpoint(summary["checkpoint"]))
    (tuned,) = [run for run in runs if run.info.run_name == "fine-tune small-chat"]
    assert lineage.context.prefect_flow_run_id == parents[0].data.tags["prefect.flow_run_id"]
    assert lineage.context.mlflow_run_id == tuned.info.run_id


def test_the_summary_has_the_figures_and_is_the_last_line(ran, summary):
    for model in ("base", "sft"):
        scores = summary[model]
        assert {"spell", "reverse", "sort", "overall"} <= scores["exact_match"].keys()
        assert scores["val_loss"] > 0
        assert scores["perplexity"] > 1
        assert 0 <= scores["stop_recall"] <= 1
    assert 0 < summary["mask_density"] < 1
    digests = summary["digests"]
    assert {"base_dataset", "chat_dataset", "checkpoint"} <= digests.keys()
    assert digests["checkpoint"] == read_lineage(find_checkpoint(summary["checkpoint"])).digest
    assert ran.first.splitlines()[-1] == f"summary: {ran.paths[0]}"
    assert ", the best first: http" in ran.first


def test_every_output_is_named_by_its_content(ran):
    names = [path.name for path in (ran.home / "datasets").iterdir() if path.is_dir()]
    names += [path.name for path in (ran.home / "models").iterdir()]
    assert len(names) == 5
    for name in names:
        assert len(name.rpartition("-")[2]) == 12, name


def test_no_secret_of_the_environment_is_kept_or_told(ran):
    database = PREFECT_SERVER_DATABASE_CONNECTION_URL.value().partition(":///")[2]
    kept = [path for path in ran.home.rglob("*") if path.is_file()]
    kept += Path(database).parent.glob(f"{Path(database).name}*")
    assert {"mlflow.db", Path(database).name} <= {path.name for path in kept}
    assert [path for path in kept if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in ran.first + ran.second


def gated(folder, learning_rate=CONFIG["sft"]["learning_rate"]):
    """The small pipeline with the gate at its end, in a file of its own."""
    asked = {
        "sft": CONFIG["sft"] | {"learning_rate": learning_rate},
        "evaluate": CONFIG["evaluate"] | {"gate": True},
    }
    path = folder / "gated.json"
    path.write_text(json.dumps(CONFIG | asked))
    return path


def newest(mlflow, kind=PIPELINE):
    """The pipeline run that MLflow got last."""
    experiment = mlflow.get_experiment_by_name("small").experiment_id
    wanted = f"tags.`{KIND_TAG}` = '{kind}'"
    return mlflow.search_runs([experiment], wanted, order_by=["attributes.start_time DESC"])[0]


def events(name, n):
    """The last n events of a name, the newest first, once Prefect has as many."""
    wanted = {"filter": {"event": {"name": [name]}}}
    with get_client(sync_client=True) as client:
        for _ in range(100):
            found = client._client.post("/events/filter", json=wanted).json()["events"]
            if len(found) >= n:
                return found[:n]
            time.sleep(0.1)
    raise AssertionError(f"{len(found)} events of {name} arrived")


def test_what_a_run_makes_is_an_event_with_its_digest_and_what_it_finds_is_none(summary):
    made = events("mypt.dataset.made", 3)
    by_digest = {event["payload"]["digest"]: event for event in made}
    chat = by_digest[summary["digests"]["chat_dataset"]]
    assert chat["payload"]["parent"] in by_digest
    assert chat["payload"]["policy"] == "assistant"
    assert chat["resource"]["prefect.resource.id"].startswith("mypt.dataset.small-chat-")
    tuned, base = events("mypt.model.made", 2)
    assert tuned["payload"]["dataset"] == summary["digests"]["chat_dataset"]
    assert tuned["payload"]["parent"] == base["payload"]["digest"]
    assert base["payload"]["parent"] is None
    assert tuned["resource"]["prefect.resource.name"].startswith("small-chat-")


def test_what_a_run_makes_is_an_asset_with_its_digest_and_what_it_was_made_of(summary):
    made = events("prefect.asset.materialization.succeeded", 6)
    digests = summary["digests"]
    found = {event["resource"]["prefect.resource.id"]: event for event in made}
    upstream = {
        key: {
            one["prefect.resource.id"]
            for one in event["related"]
            if one["prefect.resource.role"] == "asset"
        }
        for key, event in found.items()
    }
    assert upstream == {
        "mypt://datasets/small-base": set(),
        "mypt://datasets/small-chat": {"mypt://datasets/small-base"},
        "mypt://masks/small-chat": {"mypt://datasets/small-chat"},
        "mypt://models/small-base": {"mypt://datasets/small-base"},
        "mypt://models/small-chat": {"mypt://masks/small-chat", "mypt://models/small-base"},
        "mypt://evaluations/small": {
            "mypt://masks/small-chat",
            "mypt://models/small-base",
            "mypt://models/small-chat",
        },
    }
    for key, name in (
        ("datasets/small-base", "base_dataset"),
        ("masks/small-chat", "chat_dataset"),
        ("models/small-base", "base_checkpoint"),
        ("models/small-chat", "checkpoint"),
        ("evaluations/small", "evaluation"),
    ):
        assert found[f"mypt://{key}"]["payload"]["digest"] == digests[name], key
    referenced = {
        event["resource"]["prefect.resource.id"] for event in events("prefect.asset.referenced", 8)
    }
    assert referenced <= upstream.keys()


def test_where_a_config_asks_the_gate_its_answer_is_a_column_and_a_refusal_an_event(
    ran, mlflow, parents, monkeypatch, capsys
):
    monkeypatch.setenv("MYPT_HOME", str(ran.home))
    assert {run.data.tags["gate"] for run in parents} == {"not asked"}
    made = json.loads(run_pipeline(gated(ran.home)).path.read_text())
    assert newest(mlflow).data.tags["gate"] == "promoted: there was no champion"
    assert len(task_runs(newest(mlflow), len(STAGES) + 1)) == len(STAGES) + 1
    tuned = CheckpointRef.model_validate(made["sft"]["checkpoint"])
    assert champion(tuned).digest == made["digests"]["checkpoint"]
    crowned = mlflow.get_model_version_by_alias("small", "champion")
    assert crowned.tags["path"] == made["checkpoint"]
    run_pipeline(gated(ran.home))
    assert newest(mlflow, REUSED).data.tags["gate"] == "promoted: it is the champion already"
    capsys.readouterr()
    run_pipeline(gated(ran.home, learning_rate=1e-6))
    decided = newest(mlflow).data.tags["gate"]
    assert decided.startswith("refused: loss ")
    assert f"gate small: {decided}" in capsys.readouterr().out.splitlines()
    assert champion(tuned).digest == made["digests"]["checkpoint"]
    (refused,), (promoted,) = events(REFUSED, 1), events(PROMOTED, 1)
    assert refused["payload"]["reasons"] == decided.removeprefix("refused: ")
    assert refused["payload"]["champion"] == promoted["payload"]["digest"] == tuned.digest
    assert refused["payload"]["digest"] not in (tuned.digest, None)
    assert promoted["payload"]["champion"] is None
    crown = events("prefect.asset.materialization.succeeded", 1)
    crown = [e for e in crown if e["resource"]["prefect.resource.id"] == "mypt://champions/small"]
    assert [event["payload"]["digest"] for event in crown] in ([], [tuned.digest])
    for event in (refused, promoted):
        assert event["resource"]["prefect.resource.id"].startswith("mypt.model.small-chat-")


def test_a_changed_source_is_noticed_and_all_after_it_runs_again(ran, monkeypatch, capsys):
    monkeypatch.setenv("MYPT_HOME", str(ran.home))
    chat = ran.home / "chat.jsonl"
    lines = [
        json.dumps({"messages": [{"role": "user", "content": f"q{i}"},
                                 {"role": "assistant", "content": f"answer {i}"}]})
        for i in range(300)
    ]  # fmt: skip
    config = json.loads((ran.home / "small.json").read_text())
    config["chat"]["sources"] = [{"path": str(chat)}]
    path = ran.home / "changed.json"
    path.write_text(json.dumps(config))

    chat.write_text("\n".join(lines))
    when = chat.stat()
    first = run_pipeline(path).path
    chat.write_text("\n".join(lines).replace("answer 7", "Answer 7"))  # same size
    os.utime(chat, ns=(when.st_atime_ns, when.st_mtime_ns))  # and same time
    capsys.readouterr()
    second = run_pipeline(path).path
    reused = [line for line in capsys.readouterr().out.splitlines() if line.startswith("reused")]
    assert first != second
    assert reused == [f"reused: {name}" for name in (*STAGES[:2], STAGES[5])]


def test_a_home_that_was_moved_makes_nothing_again_and_mlflow_follows_it(
    ran, mlflow, monkeypatch, capsys, tmp_path
):
    moved, away = tmp_path / "elsewhere of mine", ran.home.with_name("away")
    shutil.copytree(ran.home, moved)
    monkeypatch.setenv("MYPT_HOME", str(moved))
    ran.home.rename(away)
    try:
        path = run_pipeline(moved / "small.json").path
        assert not ran.home.exists()
    finally:
        away.rename(ran.home)
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("reused: ")] == [
        f"reused: {name}" for name in STAGES
    ]
    assert path == moved / ran.paths[0].relative_to(ran.home)
    assert f"checkpoint: {moved}/models/" in out
    found = MlflowClient(f"sqlite:///{moved / 'mlflow.db'}")
    experiment = found.get_experiment_by_name("small").experiment_id
    runs = found.search_runs([experiment])
    assert len(runs) == len(mlflow.search_runs([experiment])) + 1
    for run in runs:
        assert run.info.artifact_uri.startswith(f"{moved.as_uri()}/artifacts/")
        run_id = run.info.run_id
        traces = found.search_traces(locations=[experiment], run_id=run_id)
        assert found.list_artifacts(run_id) or all(trace.data.spans for trace in traces)
        assert traces or not run.info.run_name.startswith("answers of ")
    for model in found.search_logged_models([experiment]):
        assert model.tags["path"].startswith(f"{moved}/models/")
        assert found.list_logged_model_artifacts(model.model_id)


def test_a_damaged_dataset_is_made_again_and_the_rest_reused(ran, monkeypatch, capsys):
    monkeypatch.setenv("MYPT_HOME", str(ran.home))
    summary = json.loads(ran.paths[0].read_text())
    (folder,) = [
        path
        for path in (ran.home / "datasets").iterdir()
        if (path / "train" / "shard_000_mask.bin").exists()
        and json.loads((path / "dataset_metadata.json").read_text())["digest"]
        == summary["digests"]["chat_dataset"]
    ]
    shard = folder / "train" / "shard_000_mask.bin"
    before = digest_file(shard)
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.unlink()
    shard.write_bytes(data)
    run_pipeline(ran.home / "small.json")
    printed = capsys.readouterr().out
    assert digest_file(shard) == before
    assert f"{folder.name} was changed since it was made" in printed
    reused = [line for line in printed.splitlines() if line.startswith("reused")]
    made_again = {"mask chat data small-chat", "validate chat data small-chat"}
    assert reused == [f"reused: {name}" for name in STAGES if name not in made_again]


def test_data_that_breaks_its_contract_ends_the_run_and_no_run_stays_open(ran, mlflow, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(ran.home))
    config = json.loads((ran.home / "small.json").read_text()) | {"name": "broken"}
    config["mask"] = {"roles": ["assistant", "user"], "end_of_turn": True}
    config["chat"]["sources"] = [{"path": str(ran.home / "missing.jsonl")}]
    path = ran.home / "broken.json"
    path.write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        run_pipeline(path)
    experiment = mlflow.get_experiment_by_name("broken").experiment_id
    statuses = {run.info.run_name: run.info.status for run in mlflow.search_runs([experiment])}
    assert statuses["assistant,…: missing.js… (broken)"] == "FAILED"
    assert "RUNNING" not in statuses.values()


def test_a_dataset_that_breaks_its_contract_is_not_trained_on(ran, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(ran.home))
    summary = json.loads(ran.paths[0].read_text())
    dataset = read_lineage(find_checkpoint(summary["checkpoint"])).dataset
    copy = ran.home / "copy"
    shutil.copytree(dataset.path, copy)
    with (copy / "train" / "shard_000_mask.bin").open("r+b") as file:
        file.write(b"\x07")
    preset = load_pipeline(ran.home / "small.json").sft
    with pytest.raises(DataError, match=r"changed since they were written; .* 1 such findings"):
        validate.fn(DatasetRef(path=str(copy), digest=dataset.digest), preset, "copy", "copy")


def test_an_interrupted_training_goes_on_in_the_same_mlflow_run(ran, mlflow, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(ran.home))
    summary = json.loads(ran.paths[0].read_text())
    base = read_lineage(find_checkpoint(summary["base"]["checkpoint"]["path"]))
    dataset = DatasetRef(path=base.dataset.path, digest=base.dataset.digest)
    preset = load_pipeline(ran.home / "small.json").pretrain
    real = training.train_anywhere

    def interrupted(*args, **kwargs):
        for event in real(*args, **kwargs):
            yield event
            if isinstance(event, StepReport) and event.step == 7:
                raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_anywhere", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.train(preset, "again", dataset).make()
    monkeypatch.setattr(training, "train_anywhere", real)
    training.train(preset, "again", dataset).make()  # from the checkpoint of step 5

    experiment = mlflow.get_experiment_by_name("mypt").experiment_id
    (run,) = mlflow.search_runs([experiment], "attributes.run_name = 'pretrain again'")
    assert run.info.status == "FINISHED"
    assert run.data.tags["resumed.step_000005"] == "nothing changed"
    history = mlflow.get_metric_history(run.info.run_id, "loss")
    assert [metric.step for metric in history] == list(range(1, 11))


def test_a_config_may_be_named_by_its_path(ran, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(ran.home))
    assert str(sft_pipeline(str(ran.home / "small.json")).evaluation).startswith(str(ran.home))
    with pytest.raises(ConfigError, match=r"nothing\.json: no such file"):
        sft_pipeline(str(ran.home / "nothing.json"))


def test_what_shall_be_otherwise_stands_beside_the_path(ran, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(ran.home))
    whole = load_pipeline(ran.home / "small.json")
    for config in (str(ran.home / "small.json"), whole, whole.model_dump(mode="json")):
        with pytest.raises(ConfigError, match=r"overrides: sft\.learning_rate: expected greater"):
            sft_pipeline(config, {"sft": {"learning_rate": -1.0}})
