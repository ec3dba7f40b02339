"""The run of a pipeline in MLflow: its name, its place in the ranking, and the way there."""

import pytest
from mlflow import MlflowClient

from mypt.config import PipelineConfig
from tasks.reporting.pipelines import _title, pipeline_run, report_gate
from tasks.tracking.destination import KIND_TAG, PIPELINE
from tasks.tracking.recording import note_work, recorded, reuse
from tests.flows.conftest import CONFIG

WANTED = f"tags.`{KIND_TAG}` = '{PIPELINE}'"


@pytest.fixture
def ranked(own_home):
    """Return the names of the runs that the ranking view lists, and of all."""
    client = MlflowClient(f"sqlite:///{own_home / 'mlflow.db'}")

    def runs():
        experiment = client.get_experiment_by_name("small").experiment_id
        return client.search_runs([experiment], WANTED), client.search_runs([experiment])

    return runs


def test_what_differs_comes_first_in_a_runs_name_and_it_says_where_runs_are_ranked(ranked, capsys):
    with pipeline_run(PipelineConfig.model_validate(CONFIG)):
        pass
    (run,), (same,) = ranked()
    assert run.info.run_name == "assistant: exercises_… (small)"
    assert run.info.run_id == same.info.run_id
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "best first" in line]
    route = f"/#/experiments/{run.info.experiment_id}/runs?workflowType=machine_learning"
    assert said == (
        f"runs of small, the best first: http://127.0.0.1:5000{route}&viewStateShareKey=pipelines"
        " (with 'mypt up')"
    )


@pytest.mark.parametrize(
    ("policy", "sources", "name"),
    [
        ("assistant", ["chitchat", "questions"], "assistant: chitchat +1 (p)"),
        ("every token", ["exercises_chat"], "every token: exercises_… (p)"),
        ("user,assistant,last,no_stop", ["talk"], "user,assistant,la…: talk (p)"),
        ("user=0.1,assistant", ["a" * 30, "b", "c"], "user=0.1,a…: aaaaaaa… +2 (p)"),
    ],
)
def test_policy_and_data_are_read_in_the_room_that_a_list_has(policy, sources, name):
    assert _title(policy, sources, "p") == name
    assert name.index(" (p)") <= 24


@pytest.mark.usefixtures("own_home")
def test_a_server_of_mlflow_needs_no_mypt_up(monkeypatch, capsys):
    monkeypatch.setenv("MYPT_MLFLOW_UI", "http://here:5001")
    with pipeline_run(PipelineConfig.model_validate(CONFIG)):
        pass
    said = capsys.readouterr().out
    assert "the best first: http://here:5001/#/experiments/" in said
    assert "mypt up" not in said


def test_a_run_that_reused_everything_is_marked_and_not_ranked(ranked):
    for number in range(2):
        with pipeline_run(PipelineConfig.model_validate(CONFIG)) as run:
            report_gate(run, "not asked")
            if number:
                reuse("tokenize-a", "tokenize a")
            else:
                with recorded("tokenize-a", "tokenize a"):
                    pass
    listed, runs = ranked()
    assert len(listed) == 1
    marked = [found for found in runs if "reused" in found.data.tags]
    assert [(found.data.tags["reused"], found.data.tags[KIND_TAG]) for found in marked] == [
        ("everything", "reused")
    ]
    assert "tokenize a" in marked[0].data.tags["mlflow.note.content"]


def test_a_run_whose_model_the_gate_measured_is_ranked_though_all_else_was_there(ranked):
    with pipeline_run(PipelineConfig.model_validate(CONFIG)) as run:
        reuse("tokenize-a", "tokenize a")
        note_work("gate")
        report_gate(run, "refused: nothing is better")
    assert [found.data.tags["gate"] for found in ranked()[0]] == ["refused: nothing is better"]
