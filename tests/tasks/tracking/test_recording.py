import socket
import subprocess
import sys
from contextlib import nullcontext

import pytest
from mlflow import MlflowClient

from tasks.tracking import recording
from tasks.tracking.destination import read_sent
from tasks.tracking.mirror import sync
from tasks.tracking.recording import mlflow_run_id, recorded, reuse, reused_everything
from tasks.tracking.records import Ended, Metrics, Reused, Tags, journal_path, names, read


@pytest.fixture(autouse=True)
def _home(own_home):
    return own_home


@pytest.fixture
def client(own_home):
    return MlflowClient(f"sqlite:///{own_home / 'mlflow.db'}")


@pytest.fixture
def away(monkeypatch, unused_port):
    """Nobody listens where MLflow should be."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{unused_port}")
    monkeypatch.setattr(recording, "_PATIENCE", 0.3)


@pytest.fixture
def silent(monkeypatch):
    """Somebody listens there, and never answers."""
    monkeypatch.setattr(recording, "_PATIENCE", 0.3)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield


def runs(client):
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {run.info.run_name: run for run in found}


def statuses(name):
    return [line.record.status for line in read(name) if isinstance(line.record, Ended)]


def test_blocks_become_runs_below_each_other(client):
    with recorded("pipe", "pipeline", experiment="demo"):
        with recorded("stage", "a stage") as run:
            run.write(Metrics(step=1, values={"loss": 2.0}))
            known = mlflow_run_id()
        assert mlflow_run_id() != known
    found = runs(client)
    assert found["a stage"].info.run_id == known
    assert found["a stage"].data.metrics == {"loss": 2.0}
    assert found["a stage"].data.tags["mlflow.parentRunId"] == found["pipeline"].info.run_id
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    (experiment,) = client.search_experiments(filter_string="name = 'demo'")
    assert {run.info.experiment_id for run in found.values()} == {experiment.experiment_id}


def links(name):
    return [line.record.journal for line in read(name) if isinstance(line.record, Reused)]


def test_a_run_that_another_process_asked_for_is_below_that_ones(client):
    with recorded("asking", "a sweep", experiment="demo"):
        pass
    with recorded("asked", "a pipeline", experiment="demo", parent="asking"):
        pass
    found = runs(client)
    assert found["a pipeline"].data.tags["mlflow.parentRunId"] == found["a sweep"].info.run_id


def test_a_run_links_to_the_stages_that_another_began_and_knows_whether_it_made_any():
    with recorded("first", "first"):
        with recorded("stage", "a stage"):
            pass
        assert not reused_everything()
    with recorded("second", "second"):
        assert not reused_everything()
        reuse("stage", "a stage")
        assert reused_everything()
        with recorded("stage", "a stage"):  # looks at what is there
            pass
        assert reused_everything()
    with recorded("third", "third"):
        reuse("stage", "a stage")
        with recorded("another", "another stage"):
            pass
        assert not reused_everything()
    with recorded("fourth", "fourth"), recorded("another", "another stage"):
        pass  # goes on with it
    found = {name: links(name) for name in ("first", "second", "third", "fourth")}
    assert found == {"first": [], "second": ["stage"], "third": ["stage"], "fourth": ["another"]}


def test_a_run_that_is_tried_again_reuses_nothing_of_its_own():
    for _ in range(2):
        with recorded("pipe", "pipeline"):
            with recorded("other", "other") if not links("pipe") else nullcontext():
                pass
            reuse("other", "other")
            reuse("elsewhere", "elsewhere")
            assert not reused_everything()
    assert links("pipe") == ["elsewhere", "elsewhere"]


def test_an_error_fails_the_run_and_an_interruption_kills_it(client):
    with pytest.raises(ValueError, match="bad data"), recorded("failed", "failed"):
        raise ValueError("bad data")
    with pytest.raises(KeyboardInterrupt), recorded("killed", "killed"):
        raise KeyboardInterrupt
    found = {name: run.info.status for name, run in runs(client).items()}
    assert found == {"failed": "FAILED", "killed": "KILLED"}


def test_there_is_no_run_outside_a_block():
    assert mlflow_run_id() is None


@pytest.mark.parametrize("trouble", ["away", "silent"])
def test_without_mlflow_the_work_goes_on_and_nothing_is_lost(
    trouble, request, client, capsys, monkeypatch
):
    request.getfixturevalue(trouble)
    with recorded("stage", "a stage", experiment="demo") as run:
        for step in range(1, 101):
            run.write(Metrics(step=step, values={"loss": 1 / step}))
        assert mlflow_run_id() is None
    assert statuses("stage") == ["FINISHED"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "lacks a part of this run" in line
    assert "'mypt sync' sends it" in line
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync() == 102
    run_id = runs(client)["a stage"].info.run_id
    assert len(client.get_metric_history(run_id, "loss")) == 100


def test_an_mlflow_that_cannot_be_used_at_all_stops_nothing(capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    monkeypatch.setattr(recording, "_LOCAL_PATIENCE", 1e6)  # for one that is slow, not broken
    monkeypatch.setattr(recording, "_PATIENCE", 0.3)
    with recorded("stage", "a stage") as run:
        run.write(Tags(values={"a": "b"}))
    assert "lacks a part of this run" in capsys.readouterr().err
    assert statuses("stage") == ["FINISHED"]


def test_a_local_file_that_breaks_meanwhile_stops_nothing(own_home, capsys, monkeypatch):
    monkeypatch.setattr(recording, "_LOCAL_PATIENCE", 1e6)
    monkeypatch.setattr(recording, "_PATIENCE", 0.3)
    with recorded("stage", "a stage") as run:
        assert mlflow_run_id()
        (own_home / "mlflow.db").write_bytes(b"no database" * 1000)
        run.write(Tags(values={"a": "b"}))
    assert "lacks a part of this run" in capsys.readouterr().err
    assert statuses("stage") == ["FINISHED"]


def test_the_next_run_sends_and_closes_what_a_killed_process_left(client):
    program = (
        "import os, signal\n"
        "from tasks.tracking.journal import Journal\n"
        "from tasks.tracking.records import Opened\n"
        "Journal('orphan').write(Opened(experiment='demo', title='orphan'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert statuses("orphan") == []
    with recorded("next", "next", experiment="demo"):
        pass
    assert {name: run.info.status for name, run in runs(client).items()} == {
        "orphan": "KILLED",
        "next": "FINISHED",
    }


def test_a_damaged_journal_is_named_and_holds_up_no_other(client, capsys):
    with recorded("broken", "broken", experiment="demo"):
        pass
    journal_path("broken").write_bytes(b"nothing\n" + journal_path("broken").read_bytes())
    with recorded("good", "good", experiment="demo"):
        pass
    assert "broken.jsonl: the line that ends at byte 8 is damaged" in capsys.readouterr().err
    assert runs(client)["good"].info.status == "FINISHED"
    assert read_sent("good").ended
    assert names() == ("broken", "good")
