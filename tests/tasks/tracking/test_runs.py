"""Runs found by id or name, in journals or in MLflow, and put side by side."""

import pytest

from mypt.config import MaskPolicy
from mypt.data.dataset import mask
from mypt.errors import ConfigError
from tasks.tracking.destination import read_sent
from tasks.tracking.journal import Journal
from tasks.tracking.mirror import sync
from tasks.tracking.records import DatasetInput, Metrics, Opened, Params, Tags, journals_dir
from tasks.tracking.runs import compare_runs, find_run
from tests.mypt.conftest import prepare_chat


@pytest.fixture(autouse=True)
def _home(own_home):
    return own_home


def run(name, title, policy="assistant", loss=2.0, dataset=None, gate="not asked", **opened):
    journal = Journal(name)
    journal.write(Opened(experiment="demo", title=title, **opened))
    journal.write(Params(values={"policy": policy, "seed": "1"}))
    if dataset:
        read = {"name": dataset.path, "digest": dataset.digest, "path": dataset.path}
        journal.write(DatasetInput(**read, context="validation"))
        journal.write(DatasetInput(**read, context="train"))
    journal.write(Metrics(step=1, values={"val_loss": loss + 1, "system/cpu": 50.0}))
    journal.write(Metrics(step=2, values={"val_loss": loss}))
    journal.write(Tags(values={"gate": gate, "checkpoint": name}))
    journal.end("FINISHED")


def test_two_runs_are_compared_by_params_figures_and_datasets(tmp_path):
    from mypt.data.manifest import reference

    first = reference(prepare_chat(tmp_path))
    second = mask(first.path, MaskPolicy(end_of_turn=False), tmp_path / "datasets" / "other")
    run("a", "demo one", dataset=first)
    run("b", "demo two", "assistant,no_stop", 1.0, second, "promoted: there was no champion")
    found = compare_runs(find_run("demo one"), find_run("demo two"))
    assert found.settings == {
        "policy": ("assistant", "assistant,no_stop"),
        "gate": ("not asked", "promoted: there was no champion"),
    }
    assert found.metrics == {"val_loss": (2.0, 1.0)}
    assert found.dataset.same == 80
    assert found.dataset.settings
    again = compare_runs(find_run("demo one"), find_run("a"))
    assert (again.dataset, again.dataset_note) == (None, "both read the same dataset")


def test_a_run_is_found_by_its_id_its_beginning_its_journal_or_its_name():
    run("a", "demo one")
    sync()
    run_id = read_sent("a").run_id
    assert {find_run(text).id for text in (run_id, run_id[:8], "a", "demo one")} == {run_id}


def test_a_name_of_several_runs_is_refused_with_their_ids():
    run("a", "demo", time=1)
    run("b", "demo", "assistant,last", time=2)
    with pytest.raises(ConfigError, match=r"2 runs are called so; .*b \(assistant,last\), a \(ass"):
        find_run("demo")


def test_runs_of_which_only_mlflow_is_left_are_compared_too(own_home):
    run("a", "demo one")
    run("b", "demo two", loss=1.0, gate="refused: nothing is better")
    sync()
    before = compare_runs(find_run("demo one"), find_run("demo two"))
    for path in journals_dir().iterdir():
        path.unlink()
    found = compare_runs(find_run("demo one"), find_run("demo two"))
    assert found == before
    assert found.settings == {"gate": ("not asked", "refused: nothing is better")}
    assert own_home.exists()


def test_without_any_mlflow_an_unknown_name_makes_none(own_home):
    (own_home / "mlflow.db").unlink()
    with pytest.raises(ConfigError, match="no dataset, no model, and no run by that id or name"):
        find_run("nothing")
    assert not (own_home / "mlflow.db").exists()
