"""Answers of models as MLflow keeps them: traces of a run, and the questions as its dataset."""

from importlib.metadata import version

import pytest
from mlflow import MlflowClient

from mypt.evaluation.scores import AskedQuestion, EvaluationReport, ModelScores
from mypt.references import CheckpointRef, DatasetRef
from tasks.reporting.evaluations import _spread, answer_journals, report_answers
from tasks.tracking.destination import read_sent, write_sent
from tasks.tracking.journal import Journal
from tasks.tracking.mirror import Mirror, sync
from tasks.tracking.records import CheckpointRecord, Described, Opened, Told, Traces
from tasks.tracking.traces import TRIED

DIGESTS = {"base": "b" * 64, "tuned": "c" * 64}
N = 30


@pytest.fixture
def client(own_home, monkeypatch):
    uri = f"sqlite:///{own_home / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # which a dataset asks for its rows
    return MlflowClient(uri)


def scores(who, said):
    asked = tuple(
        AskedQuestion(
            task="spell", question=f"Spell {n}.", expected=str(n), said=said(n),
            right=said(n) == str(n), stopped=True, leaked=who == "base",
        )
        for n in range(N)
    )  # fmt: skip
    ref = CheckpointRef(path=f"models/{who}", digest=DIGESTS[who], step=3)
    return ModelScores(
        model=who, checkpoint=ref, form="chat", val_loss=1.0, perplexity=2.7, supervised=1,
        available=1, answers=asked, exact_match={"overall": 0.5}, asked=N,
    )  # fmt: skip


def report(folder, base="same"):
    """Write the report of a model that is right, and of a base model that says ``base``."""
    data = DatasetRef(path="data", digest="d" * 64)
    found = EvaluationReport(
        dataset=data, base=scores("base", lambda _: base), sft=scores("tuned", str)
    )
    path = folder / "evaluation.json"
    path.write_text(found.model_dump_json())
    return path


def begun(name, experiment="demo"):
    journal = Journal(name)
    journal.write(Opened(experiment=experiment, title=name))
    return journal


def evaluated(folder, name="evaluate", experiment="demo"):
    """Record what both models answered below the evaluation's run, and send it."""
    from tasks.tracking.recording import recorded

    with recorded(name, name, experiment=experiment) as run:
        report_answers(run.name, report(folder))
    sync()


def runs(client, experiment="demo"):
    """Return MLflow's runs by the model whose answers they hold, with these, the first first."""
    place = client.get_experiment_by_name(experiment).experiment_id
    found = {}
    for run in client.search_runs([place], "tags.`mlflow.runType` = 'evaluation'"):
        wanted = f"attributes.run_id = '{run.info.run_id}'"
        traces = client.search_traces([place], wanted, 500)
        found[run.info.run_name] = (run, sorted(traces, key=number))
    return found


def number(trace):
    return int(trace.info.request_preview.removeprefix("Spell ").removesuffix("."))


def assessed(trace):
    return {found.name: found.value for found in trace.info.assessments}


def test_mlflow_is_of_a_minor_version_whose_inner_calls_were_tried():
    minor = version("mlflow").rpartition(".")[0]
    assert minor in TRIED, f"MLflow {minor}: look at what tasks/tracking/traces.py calls, add it"


def test_every_answer_is_a_trace_with_what_is_known_of_it(client, own_home):
    evaluated(own_home)
    (run, traces) = runs(client)["answers of tuned step 3"]
    assert run.data.tags["mlflow.parentRunId"]
    assert run.data.metrics["exact_match_overall"] == 0.5
    assert len(traces) == N
    known = {"exact_match": True, "stopped": True, "leaked": False, "expected_response": "7"}
    assert assessed(traces[7]) == known
    (span,) = traces[7].data.spans
    assert (span.inputs, span.outputs) == ({"question": "Spell 7."}, "7")
    assert traces[7].info.tags["task"] == "spell"
    assert traces[7].info.request_preview == "Spell 7."


def test_the_same_question_stands_in_the_runs_of_both_models(client, own_home):
    evaluated(own_home)
    asked = {
        name: sorted(trace.data.spans[0].inputs["question"] for trace in traces)
        for name, (_, traces) in runs(client).items()
    }
    assert set(asked) == {"answers of base step 3", "answers of tuned step 3"}
    base, tuned = asked.values()
    assert base == tuned
    assert len(set(base)) == N


def test_questions_are_one_dataset_however_many_models_and_pipelines_are_asked(client, own_home):
    evaluated(own_home)
    evaluated(own_home, "again", "other")
    (dataset,) = client.search_datasets()
    assert len(dataset.experiment_ids) == 2
    assert dataset.tags["digest"].startswith(dataset.name.rpartition(" ")[2])
    rows = {row.inputs["question"]: row.expectations for row in dataset.records}
    assert len(rows) == N
    assert rows["Spell 7."] == {"expected_response": "7"}
    place = client.get_experiment_by_name("demo").experiment_id
    for run in client.search_runs([place], "tags.`mlflow.runType` = 'evaluation'"):
        assert [one.dataset.name for one in run.inputs.dataset_inputs] == [dataset.name]


def test_answers_sent_twice_are_there_once(client, own_home):
    evaluated(own_home)
    for name in answer_journals("evaluate"):
        write_sent(name, read_sent(name).model_copy(update={"offset": 0}))
    assert sync() > 0
    place = client.get_experiment_by_name("demo").experiment_id
    traces = client.search_traces([place], max_results=500)
    assert len(traces) == 2 * N
    assert {len(trace.info.assessments) for trace in traces} == {4}
    assert {len(trace.data.spans) for trace in traces} == {1}
    (dataset,) = client.search_datasets()
    assert len(dataset.records) == N


def test_few_answers_are_sent_at_a_time_so_that_a_server_that_answers_is_seen_to(own_home):
    evaluated(own_home)
    write_sent("evaluate-base", read_sent("evaluate-base").model_copy(update={"offset": 0}))
    sizes = list(Mirror().send("evaluate-base"))
    assert sizes == [3, 1, 1, 1], "opened, figures, 10; 10; 10; end"


def test_traces_belong_to_the_logged_model_that_gave_the_answers(client, own_home):
    journal = begun("train", "elsewhere")
    journal.write(
        CheckpointRecord(
            name="tuned step 3", step=3, path=str(own_home / "gone"), digest=DIGESTS["tuned"],
            weights="w" * 64, parent=None, params={},
        )
    )  # fmt: skip
    journal.end("FINISHED")
    sync()
    evaluated(own_home)
    place = client.get_experiment_by_name("elsewhere").experiment_id
    (model,) = client.search_logged_models([place])
    _, traces = runs(client)["answers of tuned step 3"]
    assert {trace.info.trace_metadata["mlflow.modelId"] for trace in traces} == {model.model_id}


def test_an_answer_that_failed_and_one_of_many_turns_are_told_as_they_were(client):
    journal = begun("serve")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    asked = {"messages": [*turns, {"role": "user", "content": "Go on"}], "temperature": 0.0}
    told = Told(asked=asked, said="We", failed="the client left", milliseconds=40, tokens=(9, 2))
    journal.write(Traces(model="m step 1", checkpoint="e" * 64, first=0, told=(told,)))
    journal.end("FINISHED")
    sync()
    place = client.get_experiment_by_name("demo").experiment_id
    (trace,) = client.search_traces([place])
    assert (trace.info.state, trace.info.request_preview) == ("ERROR", "Go on")
    assert trace.info.execution_duration == 40
    assert trace.info.token_usage["total_tokens"] == 11
    assert trace.data.spans[0].status.description == "the client left"
    assert client.search_datasets() == [], "what people ask is nobody's list of questions"


def test_a_server_that_knows_no_traces_holds_up_nothing_else(client, monkeypatch):
    def old(*_):
        raise NotImplementedError("too old")

    monkeypatch.setattr("mlflow.tracing.client.TracingClient.log_spans", old)
    journal = begun("serve")
    told = Told(asked={"question": "Hi"}, said="Yes?")
    journal.write(Traces(model="m step 1", checkpoint="e" * 64, first=0, told=(told,)))
    journal.write(Described(lines=("- after that",)))
    journal.end("FINISHED")
    sync()
    place = client.get_experiment_by_name("demo").experiment_id
    (run,) = client.search_runs([place])
    assert "too old" in run.data.tags["mypt.refused"]
    assert "after that" in run.data.tags["mlflow.note.content"]


def test_a_pipelines_description_leads_to_both_models_answers_side_by_side(client, own_home):
    evaluated(own_home)
    journal = begun("pipeline")
    journal.write(Described(lines=("- facts",), beside=answer_journals("evaluate")))
    journal.end("FINISHED")
    sync()
    place = client.get_experiment_by_name("demo").experiment_id
    (run,) = client.search_runs([place], "attributes.run_name = 'pipeline'")
    note = run.data.tags["mlflow.note.content"]
    ids = {name: run.info.run_id for name, (run, _) in runs(client).items()}
    assert f"selectedRunUuid={ids['answers of base step 3']}" in note
    assert f"compareToRunUuid={ids['answers of tuned step 3']}" in note


def test_of_many_answers_a_hundred_evenly_spread_are_shown():
    assert _spread(range(100)) == range(100)
    assert list(_spread(range(400))) == list(range(0, 400, 4))
    assert len(_spread(range(101))) == 51
