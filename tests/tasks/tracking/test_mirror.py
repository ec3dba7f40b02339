import json
from itertools import islice

import pytest
from mlflow import MlflowClient

from mypt.errors import ConfigError, MyptError
from tasks.tracking import mirror
from tasks.tracking.client import JOURNAL_TAG, make_database
from tasks.tracking.destination import (
    PREFECT_TAG,
    read_sent,
    shown_uri,
    without_password,
    write_sent,
)
from tasks.tracking.journal import Journal
from tasks.tracking.mirror import Mirror, follow_prefect, sync
from tasks.tracking.records import (
    Artifact,
    DatasetInput,
    Metrics,
    Opened,
    Params,
    Reused,
    Tags,
    Text,
    journal_path,
)


@pytest.fixture(autouse=True)
def _home(own_home):
    return own_home


@pytest.fixture
def client(own_home):
    return MlflowClient(f"sqlite:///{own_home / 'mlflow.db'}")


def begun(name="run", **opened):
    journal = Journal(name)
    journal.write(Opened(**({"experiment": "demo", "title": "a run"} | opened)))
    return journal


def goes_on(name, step):
    journal = Journal(name)
    journal.write(Metrics(step=step, values={"loss": 2.0}))
    journal.end("FINISHED")


def send(name="run"):
    return sum(Mirror().send(name))


def run_of(client, name="run"):
    (experiment,) = client.search_experiments(filter_string="name = 'demo'")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`{JOURNAL_TAG}` = '{name}'")
    return run


def watched_requests(monkeypatch):
    """Return the numbers of params and of metrics of all requests to come."""
    params, metrics = [], []
    real = MlflowClient.log_batch

    def watched(self, run_id, **items):
        params.extend([len(items["params"])] if "params" in items else [])
        metrics.extend([len(items["metrics"])] if "metrics" in items else [])
        return real(self, run_id, **items)

    monkeypatch.setattr(MlflowClient, "log_batch", watched)
    return params, metrics


def test_a_journal_becomes_one_run(client, tmp_path):
    report = tmp_path / "report.json"
    report.write_text("{}")
    journal = begun(tags={"model": "x"})
    journal.write(Params(values={"lr": "0.1"}))
    journal.write(Metrics(step=1, values={"loss": 2.0}))
    journal.write(Metrics(step=2, values={"loss": 1.0}))
    journal.write(Tags(values={"checkpoint": "here"}))
    journal.write(Artifact(path=str(report), folder="reports"))
    journal.write(Text(name="mask.json", text="[]"))
    journal.end("FINISHED")
    assert send() == 8
    run = run_of(client)
    assert (run.info.run_name, run.info.status) == ("a run", "FINISHED")
    assert run.data.params == {"lr": "0.1"}
    assert run.data.tags["model"] == "x"
    assert run.data.tags["checkpoint"] == "here"
    assert run.data.tags["mlflow.source.name"] == "mypt"
    assert run.data.tags["mlflow.user"]
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.0), (2, 1.0)]
    shown = [a.path for a in client.list_artifacts(run.info.run_id)]
    assert shown == ["mask.json", "reports"]


def test_a_dataset_keeps_its_whole_digest(client):
    digest = "0123456789abcdef" * 4
    journal = begun()
    journal.write(
        DatasetInput(
            name="chat", digest=digest, path="/d", context="train", tags={"mask_density": "0.3"}
        )
    )
    journal.end("FINISHED")
    send()
    (found,) = run_of(client).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("chat", digest[:36])
    tags = {tag.key: tag.value for tag in found.tags}
    assert tags == {"mlflow.data.context": "train", "digest": digest, "mask_density": "0.3"}
    assert json.loads(found.dataset.source) == {"uri": "/d"}


def test_many_params_and_long_ones_all_arrive(client, monkeypatch):
    journal = begun()
    sizes = watched_requests(monkeypatch)
    values = {f"key.{i}": str(i) for i in range(300)} | {"long": "x" * 10_000}
    journal.write(Params(values=values))
    journal.end("FINISHED")
    send()
    assert sizes[0] == [100, 100, 100, 1]
    params = run_of(client).data.params
    assert len(params) == 301
    assert params["key.299"] == "299"
    assert len(params["long"]) == 6000
    assert params["long"].endswith("[cut: 10000 characters in all]")


def test_more_metrics_than_a_request_holds_all_arrive(client, monkeypatch):
    journal = begun()
    for step in range(1, 1201):
        journal.write(Metrics(step=step, values={f"m{i}": float(step) for i in range(6)}))
    journal.end("FINISHED")
    sizes = watched_requests(monkeypatch)
    send()
    assert max(sizes[1]) == 1000
    assert sum(sizes[1]) == 7200
    run_id = run_of(client).info.run_id
    assert len(client.get_metric_history(run_id, "m0")) == 1200
    assert len(client.get_metric_history(run_id, "m5")) == 1200


def test_sending_twice_changes_nothing(client):
    journal = begun()
    journal.write(Metrics(step=1, values={"loss": 2.0}))
    journal.end("FINISHED")
    assert send() == 3
    assert send() == 0
    state = read_sent("run")
    write_sent("run", state.model_copy(update={"offset": 0, "run_id": None}))
    assert send() == 3, "a process that died before it noted what it had sent sends it again"
    run = run_of(client)
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 1


def test_the_same_training_of_two_homes_is_two_runs(client, own_home, monkeypatch):
    uri = f"sqlite:///{own_home / 'mlflow.db'}"
    for time, place in enumerate(("mine", "yours"), 1):
        monkeypatch.setenv("MYPT_HOME", str(own_home / place))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        journal = begun(time=time)
        journal.write(Metrics(step=1, values={"loss": 2.0}))
        journal.end("FINISHED")
        send()
    (experiment,) = client.search_experiments(filter_string="name = 'demo'")
    runs = client.search_runs([experiment.experiment_id])
    assert [len(client.get_metric_history(run.info.run_id, "loss")) for run in runs] == [1, 1]


def test_an_interrupted_sending_goes_on_where_it_stopped(client, monkeypatch):
    monkeypatch.setattr(mirror, "_RECORDS", 2)
    journal = begun()
    for step in range(1, 6):
        journal.write(Metrics(step=step, values={"loss": float(step)}))
    journal.end("FINISHED")
    assert list(islice(Mirror().send("run"), 2)) == [2, 2]
    assert send() == 3
    run_id = run_of(client).info.run_id
    assert [m.step for m in client.get_metric_history(run_id, "loss")] == [1, 2, 3, 4, 5]


def test_a_child_belongs_to_its_parent_even_if_sent_first(client):
    begun("parent").end("FINISHED")
    begun("child", parent="parent").end("FINISHED")
    send("child")
    parent, child = run_of(client, "parent"), run_of(client, "child")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert send("parent") == 2


def test_a_run_that_goes_on_is_the_same_run(client):
    begun("parent").end("KILLED")
    begun("child", parent="parent").end("KILLED")
    send("child")
    begun("second").end("FINISHED")
    journal = begun("child", parent="second", tags={"prefect.flow_run_id": "second"})
    send("child")
    assert run_of(client, "child").info.status == "RUNNING"
    journal.end("FINISHED")
    send("child")
    child = run_of(client, "child")
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == run_of(client, "parent").info.run_id
    assert "prefect.flow_run_id" not in child.data.tags


def test_a_run_links_to_those_that_another_began_and_sending_again_adds_nothing(client):
    begun("child", time=1_700_000_000_000).end("FINISHED")
    journal = begun("second", tags={"mlflow.note.content": "Prefect flow run [x](y)"})
    journal.write(Reused(journal="child", title="fine-tune small"))
    journal.write(Reused(journal="lost", title="pretrain small"))
    journal.end("FINISHED")
    send("second")
    child = run_of(client, "child").info
    page = f"/experiments/{child.experiment_id}/runs/{child.run_id}"
    link = f"[fine-tune small](/#{page}?workflowType=machine_learning)"
    described = f"Prefect flow run [x](y)\n\n- {link}, begun 2023-11-14 22:13 UTC by another run"
    assert run_of(client, "second").data.tags["mlflow.note.content"] == described
    write_sent("second", read_sent("second").model_copy(update={"offset": 0}))
    send("second")
    assert run_of(client, "second").data.tags["mlflow.note.content"] == described


def test_a_run_that_was_removed_is_sent_again(client):
    journal = begun()
    journal.write(Metrics(step=1, values={"loss": 2.0}))
    send()
    first = run_of(client).info.run_id
    state = read_sent("run")
    write_sent("run", state.model_copy(update={"run_id": "f" * 32}))  # as if removed
    journal.end("FINISHED")
    send()
    run = run_of(client)
    assert (run.info.run_id, run.info.status) == (first, "FINISHED")
    assert len(client.get_metric_history(first, "loss")) == 1


def test_what_mlflow_refuses_holds_up_nothing_and_is_counted(client):
    journal = begun()
    journal.write(Params(values={"lr": "0.1"}))
    journal.write(Params(values={"lr": "0.2"}))  # MLflow lets no param change
    journal.write(Metrics(step=1, values={"loss": 2.0}))
    journal.end("FINISHED")
    send()
    run = run_of(client)
    assert run.data.params == {"lr": "0.1"}
    assert run.data.metrics == {"loss": 2.0}
    assert run.data.tags["mypt.refused"].startswith("1 records; first: ")


def test_a_file_that_is_gone_is_noted(client, tmp_path):
    journal = begun()
    journal.write(Artifact(path=str(tmp_path / "gone.json")))
    journal.end("FINISHED")
    send()
    assert run_of(client).data.tags["mypt.gone.gone.json"] == str(tmp_path / "gone.json")


def test_a_journal_that_is_sent_after_a_move_names_places_of_now(client, own_home):
    (own_home / "models" / "chat").mkdir(parents=True)
    journal = begun()
    journal.write(Tags(values={"checkpoint": "/old/runs/models/chat", "other": "/old/runs"}))
    journal.write(Params(values={"init_from": "/old/runs/models/chat"}))
    journal.end("FINISHED")
    send()
    tags = run_of(client).data.tags
    assert tags["checkpoint"] == str(own_home / "models" / "chat")
    assert run_of(client).data.params == {"init_from": tags["checkpoint"]}
    assert tags["other"] == "/old/runs"


def test_sync_sends_all_and_ends_the_runs_of_dead_processes(client):
    begun("whole").end("FINISHED")
    dead = begun("dead")
    dead._file.close()
    dead._lock.release()
    live = begun("live")
    assert sync() == 2 + 2 + 1
    assert sync() == 0
    found = {name: run_of(client, name).info.status for name in ("whole", "dead", "live")}
    assert found == {"whole": "FINISHED", "dead": "KILLED", "live": "RUNNING"}
    live.end("FINISHED")
    assert sync() == 1


def test_a_run_that_was_deleted_holds_up_no_other_until_it_is_let_go_or_restored(client):
    for time, name in enumerate(("deleted", "kept"), 1):
        begun(name, title=f"run {name}", time=time).end("FINISHED")
    sync()
    begun("late", time=3).end("FINISHED")
    gone = run_of(client, "deleted").info.run_id
    goes_on("deleted", 1)
    goes_on("kept", 1)
    client.delete_run(gone)
    said = rf"the run run deleted \({gone[:12]}\) of demo: .*; all others were sent, 4 records$"
    with pytest.raises(MyptError, match=said):
        sync()
    assert run_of(client, "kept").data.metrics == {"loss": 2.0}
    assert run_of(client, "late").info.status == "FINISHED"
    with pytest.raises(ConfigError, match="--forget run kept: MLflow refuses no run of that"):
        sync(forget="run kept")
    client.restore_run(gone)
    assert sync() == 2
    assert run_of(client, "deleted").data.metrics == {"loss": 2.0}
    client.delete_run(gone)
    goes_on("deleted", 2)
    assert sync(forget=gone[:8]) == 0
    goes_on("deleted", 3)
    assert sync() == 0


def test_a_deleted_experiment_holds_up_no_other_and_is_let_go_as_one(client):
    for name in ("a", "b"):
        begun(name, experiment="old").end("FINISHED")
    sync()
    client.delete_experiment(client.get_experiment_by_name("old").experiment_id)
    begun("a", experiment="old").end("FINISHED")
    begun("c", experiment="old").end("FINISHED")
    begun("new").end("FINISHED")
    with pytest.raises(MyptError, match=r" of old: .*\(and 1 more\); all others were sent, 2 rec"):
        sync()
    assert run_of(client, "new").info.status == "FINISHED"
    assert sync(forget="old") == 0
    assert sync() == 0


def test_sync_says_when_mlflow_is_away(monkeypatch, unused_port):
    begun().end("FINISHED")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{unused_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MyptError, match=r"took 0 records .* run 'mypt sync' when it answers"):
        sync()


def test_another_mlflow_gets_everything_from_the_start(own_home, monkeypatch):
    begun().end("FINISHED")
    assert send() == 2
    other = own_home / "other.db"
    other.write_bytes((own_home / "mlflow.db").read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    assert send() == 2


def test_a_password_in_the_uri_is_neither_shown_nor_written(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000/x")
    assert shown_uri() == "http://host:5000/x"
    assert without_password("to http://me:secret@host:5000/x") == "to http://host:5000/x"
    begun().end("FINISHED")
    write_sent("run", read_sent("run"))
    assert b"secret" not in journal_path("run").with_name("run.sent.json").read_bytes()


def test_links_to_prefect_follow_it_to_another_port(client):
    was = "http://127.0.0.1:4200"
    note = f"Prefect flow run [x]({was}/runs/flow-run/1), and what I think of it"
    tags = {PREFECT_TAG: was, "mlflow.note.content": note, "other": "http://127.0.0.1:42000/"}
    for name, at in (("here", was), ("elsewhere", "https://prefect.example")):
        begun(name, tags=tags | {PREFECT_TAG: at}).end("FINISHED")
        send(name)
    for server in ("http://127.0.0.1:4377", "http://127.0.0.1:4377", was):
        follow_prefect(server)
        moved = run_of(client, "here").data.tags
        assert moved["mlflow.note.content"] == note.replace(was, server)
        assert (moved[PREFECT_TAG], moved["other"]) == (server, tags["other"])
        assert run_of(client, "elsewhere").data.tags["mlflow.note.content"] == note


def test_a_broken_database_is_set_aside_and_filled_again_from_the_journals(own_home, capsys):
    for name in ("one", "two"):
        journal = begun(name)
        journal.write(Metrics(step=1, values={"loss": 2.0}))
        journal.end("FINISHED")
        sent = {
            "run_id": "f" * 32,
            "experiment_id": "1",
            "offset": journal_path(name).stat().st_size,
        }
        write_sent(name, read_sent(name).model_copy(update=sent))
    path = own_home / "mlflow.db"
    path.write_bytes(b"half" * 1000)
    assert sync() == 6
    assert "it is damaged-mlflow.db now" in capsys.readouterr().err
    client = MlflowClient(f"sqlite:///{path}")
    assert run_of(client, "one").data.metrics == run_of(client, "two").data.metrics == {"loss": 2.0}


def test_a_database_that_somebody_else_named_is_left_as_it_is(own_home, monkeypatch):
    path = own_home / "theirs.db"
    path.write_bytes(b"no database" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    make_database()
    assert path.read_bytes() == b"no database" * 100
