"""MLflow away, failing or silent: training goes on, and every figure arrives in the end."""

import os
import shutil
import threading
import warnings

import pytest

from mypt.errors import MyptError
from mypt.training.events import StepReport
from tasks import training
from tasks.tracking.journal import Journal
from tasks.tracking.records import Metrics, Opened, read
from tests.faults import children, disks, gate
from tests.faults.pipeline import PRETRAIN, TINY, final_folders

pytestmark = [pytest.mark.faults, pytest.mark.row("service")]
STEPS = TINY["max_iters"]
CASES = [(gate.AWAY, "start"), (gate.FAILING, "middle"), (gate.SILENT, "always")]
"""The quick ones first: each trouble once, at each moment once."""
CASES += [
    (trouble, moment)
    for trouble in (gate.AWAY, gate.FAILING, gate.SILENT)
    for moment in ("start", "middle", "always")
    if (trouble, moment) not in CASES
]
PATIENCE = 2.0


@pytest.fixture(scope="module")
def mlflow_port(tmp_path_factory, _mlflow_database):
    """An MLflow server over a database of its own."""
    from mlflow.server import app
    from werkzeug.serving import WSGIRequestHandler, make_server

    folder = tmp_path_factory.mktemp("mlflow-server")
    shutil.copy(_mlflow_database, folder / "mlflow.db")
    os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{folder / 'mlflow.db'}"
    os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = (folder / "artifacts").as_uri()

    class Quiet(WSGIRequestHandler):
        def log(self, *_):
            pass

    def serve(listener):
        warnings.simplefilter("ignore")  # what MLflow's libraries say of each other
        make_server(
            "127.0.0.1", 0, app, threaded=True, request_handler=Quiet, fd=listener.fileno()
        ).serve_forever()

    with gate.served(serve) as port:
        yield port
    del os.environ["_MLFLOW_SERVER_FILE_STORE"], os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"]


@pytest.fixture
def mlflow(mlflow_port, tmp_path, monkeypatch):
    with gate.Gate(tmp_path, mlflow_port) as made:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", made.url)
        yield made


class Waits:
    """Counts the seconds that the main thread waits in vain."""

    def __init__(self):
        self.in_vain = 0.0
        self._true_wait = threading.Condition.wait
        threading.Condition.wait = lambda condition, timeout=None: self._wait(condition, timeout)

    def _wait(self, condition, timeout):
        done = self._true_wait(condition, timeout)
        if not done and threading.current_thread() is threading.main_thread():
            self.in_vain += timeout
        return done


def train_recorded(house, turn):
    """Train as the pipeline's task does; return losses by step and seconds waited in vain.

    Args:
        house: Its datasets are there already.
        turn: Called when half of the steps are made.
    """
    os.environ["MYPT_HOME"] = str(house.home)
    true_train, losses, waits = training.train_anywhere, {}, Waits()

    def train_anywhere(plan, **choices):
        for event in true_train(plan, **choices):
            if isinstance(event, StepReport):
                losses[event.step] = event.loss
                if event.step == STEPS // 2:
                    turn()
            yield event

    training.train_anywhere = train_anywhere
    training.train(PRETRAIN, "base", house.make_datasets()[0]).make()
    return {"losses": losses, "waited": waits.in_vain}


def synced(house):
    """Send the rest twice; return how much each brought, and what MLflow then has."""
    from mlflow import MlflowClient

    from tasks.tracking.destination import read_sent
    from tasks.tracking.mirror import sync
    from tasks.tracking.records import names

    os.environ["MYPT_HOME"] = str(house.home)
    sent = [sync(), sync()]
    (name,) = names()
    client, state = MlflowClient(), read_sent(name)
    mine = (
        f"tags.`mypt.journal` = '{name}' and attributes.start_time = {next(read(name)).record.time}"
    )
    assert len(client.search_runs([state.experiment_id], mine)) == 1
    history = client.get_metric_history(state.run_id, "loss")
    return {"sent": sent, "losses": {str(metric.step): metric.value for metric in history},
            "n": len(history)}  # fmt: skip


def test_a_database_that_refuses_is_not_waited_for(house, row, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{house.root / 'texts.jsonl'}")
    with row.trial():
        said = children.ask(lambda: train_recorded(house, lambda: None))
        assert len(said["losses"]) == STEPS
        assert said["waited"] <= PATIENCE


def test_a_journal_that_finds_no_room_is_named_and_goes_on(house, row):
    def work():
        os.environ["MYPT_HOME"] = str(house.home)
        journal = Journal("full")
        journal.write(Opened(experiment="demo", title="full"))
        disks.fill(house.home, 1 << 12)
        failed, said = -1, ""
        while not said:
            failed += 1
            try:
                journal.write(Metrics(step=failed, values={"loss": 1.0}))
            except MyptError as error:
                said = str(error)
        disks.make_room(house.home)
        journal.end("FAILED")
        kept = [line.record.step for line in read("full") if isinstance(line.record, Metrics)]
        return {"said": said, "kept": kept, "failed": failed}

    with row.trial(), disks.own_disk(house.home):
        found = children.ask(work)
        assert found["said"].startswith(f"{house.home}/tracking/full.jsonl: cannot be written")
        assert found["kept"] in (list(range(found["failed"] + more)) for more in (0, 1))


def weights_of(house):
    """Return the digests of what the training made, ids of services apart."""
    found = house.print_of()
    return {
        name.rpartition("/")[2]: digest
        for name, digest in found.items()
        if name.startswith("models/") and name.endswith(".safetensors")
    }


@pytest.mark.trials(quick=3, full=len(CASES), at_once=1)
def test_training_goes_on_and_no_figure_is_lost(trials, house, mlflow, undisturbed, row):
    trouble, moment = CASES[trials.start]
    children.run_whole(house.make_datasets)
    mlflow.set(gate.UP if moment == "middle" else trouble)
    turned = {"start": gate.UP, "middle": trouble, "always": trouble}[moment]
    with row.trial():
        said = children.ask(lambda: train_recorded(house, lambda: mlflow.set(turned)))
        assert said["waited"] <= PATIENCE
        assert len(said["losses"]) == STEPS
        mlflow.set(gate.UP)
        found = children.ask(lambda: synced(house))
        assert found["losses"] == said["losses"]
        assert (found["n"], found["sent"][1]) == (STEPS, 0)
        expected = {k: v for k, v in undisturbed.items() if k.startswith("models/base/")}
        for name, digest in weights_of(house).items():
            assert digest in expected.values(), name
        assert final_folders(house.home / "models")
