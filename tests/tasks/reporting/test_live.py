import pytest
from prefect import flow, task

from tasks.reporting import live
from tasks.reporting.live import live_progress


@pytest.fixture
def shown(monkeypatch):
    """What Prefect is told, in order."""
    told = []
    monkeypatch.setattr(live, "_SECONDS", 0.01)
    monkeypatch.setattr(
        live, "create_progress_artifact", lambda *said: told.append(said) or "the bar"
    )
    monkeypatch.setattr(live, "update_progress_artifact", lambda *said: told.append(said))
    return told


def run_in_prefect(body):
    @task
    def work():
        body()

    @flow
    def whole():
        work()

    whole()


@pytest.mark.usefixtures("prefect")
def test_the_bar_is_made_once_moved_and_ends_where_the_stage_ended(shown):
    def body():
        with live_progress("Small chat") as move:
            move(0.5, "step 1 of 2")
            move(1.0, "step 2 of 2")

    run_in_prefect(body)
    assert shown[0][1] == "progress-small-chat"
    assert {"step 2 of 2", 100.0} < set(shown[-1])


@pytest.mark.usefixtures("prefect")
def test_a_prefect_that_refuses_is_told_about_once_and_stops_nothing(shown, monkeypatch, capsys):
    def refuse(*_):
        raise OSError("away")

    monkeypatch.setattr(live, "create_progress_artifact", refuse)

    def body():
        with live_progress("chat") as move:
            move(0.5, "half")

    run_in_prefect(body)
    assert capsys.readouterr().err == "mypt: progress is not shown in Prefect (away)\n"
    assert shown == []


def test_outside_of_prefect_nothing_happens(shown):
    with live_progress("chat") as move:
        move(0.5, "half")
    assert shown == []
