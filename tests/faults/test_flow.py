"""The flow with Prefect and MLflow: killed, tripped, and run again over what has changed."""

import errno
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from mypt.data.dataset import open_dataset
from tests.faults import children, operations
from tests.faults.damage import flip
from tests.faults.flow import Flow, used_files
from tests.faults.pipeline import TINY

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.usefixtures("prefect")]
HARMS = ("changed", "deleted")
STAGES = 7


@pytest.fixture(scope="module")
def flow(tmp_path_factory, _mlflow_database, _house, prefect):  # noqa: ARG001
    made = Flow(tmp_path_factory.mktemp("flow"))
    made.home.mkdir()
    shutil.copy(_mlflow_database, made.home / "mlflow.db")
    return made


@pytest.fixture(scope="module")
def done(flow):
    """The flow's summary when it ran undisturbed, and what it made."""
    start = time.monotonic()
    summary = flow.run()
    return {"seconds": time.monotonic() - start, "print": flow.print_of(summary)}


@pytest.fixture
def fresh(flow, done, _mlflow_database):  # noqa: ARG001
    """The same flow in the same place, of which nothing is left."""
    shutil.rmtree(flow.home)
    flow.home.mkdir()
    shutil.copy(_mlflow_database, flow.home / "mlflow.db")
    return flow


def histories(flow):
    """Return the steps of each training in MLflow, a list for each run."""

    def work():
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{flow.home / 'mlflow.db'}")
        runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
        found = [
            sorted(metric.step for metric in client.get_metric_history(run.info.run_id, "loss"))
            for run in runs
            if run.data.tags["mypt.journal"].startswith("train-")
        ]
        return {"steps": found}

    return children.ask(work)["steps"]


@pytest.mark.row("kill flow")
@pytest.mark.trials(quick=1, full=10, at_once=2)
def test_a_killed_flow_is_finished_by_the_next(trials, fresh, done, dice, row):
    for _ in trials:
        with row.trial():
            for share in (1.0, 0.5):
                ended = children.killed_after(
                    fresh.work, dice.uniform(0.1, share) * done["seconds"], signal.SIGKILL
                )
                assert ended.code in (0, -signal.SIGKILL), ended
            assert fresh.print_of(fresh.run()) == done["print"]
            assert histories(fresh) == [list(range(1, TINY["max_iters"] + 1))] * 2


@pytest.mark.row("kill flow")
@pytest.mark.trials(quick=1, full=10, at_once=2)
def test_prefects_retry_finishes_a_killed_flow_in_the_same_run(trials, fresh, done, dice, row):
    for _ in trials:
        run_id = children.ask(fresh.begin)
        with row.trial():
            for share in (0.9, 0.45):
                ended = children.killed_after(
                    lambda run_id=run_id: fresh.go_on(run_id),
                    dice.uniform(0.1, share) * done["seconds"],
                    signal.SIGKILL,
                )
                assert ended.code in (0, -signal.SIGKILL), ended
                children.run_whole(lambda run_id=run_id: fresh.retry(run_id))
            summary = Path(children.ask(lambda run_id=run_id: fresh.go_on(run_id)))
            assert fresh.print_of(summary) == done["print"]
            assert histories(fresh) == [list(range(1, TINY["max_iters"] + 1))] * 2


class Trip:
    """Lets one operation on a result fail once, as a disk does that has a bad moment."""

    def __init__(self, number):
        self._left = number

    def act(self, operation, do, _):
        if any(f"/{kind}/" in path for kind in ("datasets", "models") for path in operation.paths):
            self._left -= 1
            if self._left == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return do()


@pytest.mark.row("kill flow")
@pytest.mark.trials(quick=1, full=10, at_once=2)
def test_prefect_tries_again_what_failed_and_it_goes_on(trials, fresh, done, dice, row):
    for _ in trials:
        trip = Trip(dice.randrange(1, 200))
        with row.trial():
            summary, _ = fresh.tell(lambda trip=trip: operations.intercept(trip.act))
            assert fresh.print_of(summary) == done["print"]
            assert histories(fresh) == [list(range(1, TINY["max_iters"] + 1))] * 2


@pytest.mark.row("cache")
@pytest.mark.trials(quick=2, full=2 * STAGES, at_once=1)
def test_a_result_that_changed_is_made_again(trials, flow, dice, row):
    before = flow.run()
    expected, outputs = flow.print_of(before), flow.outputs(before)
    name = list(outputs)[-1 - trials.start % STAGES]
    output, harm = outputs[name], HARMS[trials.start // STAGES]
    with row.trial():
        if harm == "changed":
            flip(dice.choice(used_files(output)), dice)
        elif output.is_file():
            output.unlink()
        else:
            shutil.rmtree(output)
        summary, printed = flow.tell()
        assert name in printed
        assert f"reused: {name}" not in printed
        assert flow.print_of(summary) == expected


@pytest.mark.row("cache")
@pytest.mark.parametrize(
    ("name", "old", "new", "stage", "model"),
    [
        ("texts", "number 17 follows", "number 71 follows", "tokenize base corpus small-base",
         "pretrain small-base"),
        ("chats", "say 17", "say 71", "mask chat data small-chat", "fine-tune small-chat"),
    ],
)  # fmt: skip
def test_a_source_that_was_edited_unseen_is_read_again(name, old, new, stage, model, flow, row):
    before = flow.outputs(flow.run())
    path = flow.root / f"{name}.jsonl"
    status, data = path.stat(), path.read_bytes()
    path.write_bytes(data.replace(old.encode(), new.encode()))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    try:
        with row.trial():
            assert (path.stat().st_size, path.stat().st_mtime) == (len(data), status.st_mtime)
            after = flow.outputs(flow.run())
            assert after[model] != before[model]
            text = text_of(after[stage])
            assert new in text
            assert old not in text
    finally:
        path.write_bytes(data)


def text_of(folder):
    dataset = open_dataset(folder)
    shards = (shard for split in ("train", "val") for shard in dataset.shards(split))
    return "".join(dataset.tokenizer.decode(shard.tokens) for shard in shards)
