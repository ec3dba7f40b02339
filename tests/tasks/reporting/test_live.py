import time

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client

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
    monkeypatch.setattr(live, "_remove", lambda bar: told.append(f"{bar} is removed"))
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
def test_the_bar_is_made_once_moved_and_removed_when_the_stage_has_ended(shown):
    def body():
        with live_progress("Small chat") as move:
            move(0.5, "step 1 of 2")
            time.sleep(0.2)

    run_in_prefect(body)
    assert shown[0][1] == "progress-small-chat"
    assert {"step 1 of 2", 50.0} < set(shown[-2])
    assert shown[-1] == "the bar is removed"


@pytest.mark.usefixtures("prefect")
@pytest.mark.parametrize("busy", ["update_progress_artifact", "_remove"])
def test_a_server_that_is_busy_for_a_moment_keeps_no_bar(shown, monkeypatch, busy):
    take, asked = getattr(live, busy), []

    def refuse_once(*said):
        asked.append(said)
        if len(asked) == 1:
            raise OSError("busy")
        take(*said)

    monkeypatch.setattr(live, "_PAUSES", (0.01, 0.01))
    monkeypatch.setattr(live, busy, refuse_once)

    def body():
        with live_progress("chat") as move:
            time.sleep(0.05)
            move(0.5, "step 1 of 2")
            time.sleep(0.2)

    run_in_prefect(body)
    assert shown[-1] == "the bar is removed"


@pytest.mark.usefixtures("prefect")
def test_the_bar_of_a_stage_that_failed_stays_where_it_was(shown):
    def body():
        with live_progress("chat") as move:
            move(0.5, "step 1 of 2")
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        run_in_prefect(body)
    assert {"step 1 of 2", 50.0} < set(shown[-1])


@pytest.mark.usefixtures("prefect")
def test_a_bar_that_is_removed_is_nowhere_in_prefect():
    def body():
        with live_progress("a removed bar") as move:
            move(0.5, "half")

    run_in_prefect(body)
    end = time.monotonic() + 60  # a busy server is asked again, and nobody waits for it
    with get_client(sync_client=True) as client:
        while "progress-a-removed-bar" in {found.key for found in client.read_artifacts()}:
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.mark.usefixtures("prefect")
def test_a_prefect_that_refuses_is_told_about_once_and_stops_nothing(shown, monkeypatch, capsys):
    def refuse(*_):
        raise OSError("away")

    monkeypatch.setattr(live, "create_progress_artifact", refuse)

    def body():
        with live_progress("chat") as move:
            move(0.5, "half")

    run_in_prefect(body)
    said = "mypt: progress is not shown in Prefect: away; the work goes on without\n"
    assert capsys.readouterr().err == said
    assert shown == []


def test_outside_of_prefect_nothing_happens(shown):
    with live_progress("chat") as move:
        move(0.5, "half")
    assert shown == []
