import os
import signal
import threading

import pytest
from prefect import flow
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import StateType

from tasks.stages import Output, stage
from tasks.stopping import StoppableTask, Stopped, acting, heard, stoppable


class _Terminated(BaseException):
    pass


@pytest.fixture(autouse=True)
def _handler():
    """What Prefect does in a flow: SIGTERM raises wherever the program stands."""

    def terminate(*_):
        raise _Terminated

    # A command that trained in this process before has left its own.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.signal(signal.SIGTERM, terminate)
    yield
    assert signal.getsignal(signal.SIGTERM) is terminate
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGTERM, before)


def send(number):
    os.kill(os.getpid(), number)


def stop_here(number):
    with heard(), acting():
        send(number)
        raise AssertionError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_what_acts_where_it_stands(number):
    with pytest.raises(Stopped):
        stop_here(number)


def test_what_is_held_back_is_told_at_once_and_stopped_at_its_end():
    steps = []

    def train():
        with acting(False) as asked:
            while not asked():
                steps.append(1)
                send(signal.SIGTERM)
                send(signal.SIGTERM)
            steps.append("saved")
        steps.append("never")

    with pytest.raises(Stopped), heard(), acting():
        train()
    assert steps == [1, "saved"]


def test_what_came_while_nothing_acted_stops_what_acts_next():
    with heard() as asked:
        send(signal.SIGINT)
        assert asked == [signal.SIGINT]
        with pytest.raises(Stopped), acting():
            raise AssertionError


def test_a_failing_block_tells_its_own_error():
    def train():
        with acting(False):
            send(signal.SIGTERM)
            raise ValueError

    with pytest.raises(ValueError), heard(), acting():  # noqa: PT011
        train()


def test_a_second_ctrl_c_ends_at_once_and_a_third_kills(capfd):
    def train():
        with acting(False):
            send(signal.SIGINT)
            with pytest.raises(Stopped):
                send(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL

    with pytest.raises(Stopped), heard(), acting():
        train()
    assert capfd.readouterr().err == "\nmypt: stopping; Ctrl-C again ends at once\n"


def test_what_was_asked_of_one_run_does_not_stop_the_next():
    with pytest.raises(Stopped):
        stop_here(signal.SIGTERM)
    with heard() as asked, acting() as stop:
        assert not asked
        assert not stop()


def test_a_thread_hears_nothing_and_is_not_interrupted():
    found = []

    def work():
        with heard() as asked, acting() as stop:
            found.append((asked, stop()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [([], False)]


@pytest.mark.usefixtures("prefect")
class TestUnderPrefect:
    def test_a_stopped_task_and_its_flow_are_cancelled_and_nothing_after_it_runs(self):
        done = []

        def work(what):
            done.append(what)
            if what == "stopped":
                send(signal.SIGTERM)
            done.append("worked")

        task = StoppableTask(work, name="work", cache_policy=NO_CACHE)

        @flow
        @stoppable
        def three():
            task("first")
            task("stopped")
            task("never")

        state = three(return_state=True)
        assert state.type is StateType.CANCELLED
        assert "SIGTERM" in state.message
        assert done == ["first", "worked", "stopped"]

    def test_a_signal_in_prefects_own_work_ends_the_flow_behind_the_task(self):
        done = []

        def send_there(*_):
            send(signal.SIGTERM)
            done.append("prefect")

        options = {"cache_policy": NO_CACHE, "on_completion": [send_there]}
        first = StoppableTask(lambda: done.append("first"), name="first", **options)
        second = StoppableTask(lambda: done.append("second"), name="second")

        @flow
        @stoppable
        def two():
            first()
            second()

        assert two(return_state=True).type is StateType.CANCELLED
        assert done == ["first", "prefect"]

    def test_a_second_ctrl_c_in_prefects_own_work_lets_it_write_down_the_end(self, capfd):
        found = []

        def send_there(*_):
            send(signal.SIGINT)
            send(signal.SIGINT)
            found.append(signal.getsignal(signal.SIGINT))

        options = {"cache_policy": NO_CACHE, "on_completion": [send_there]}
        task = StoppableTask(lambda: None, name="task", **options)

        @flow
        @stoppable
        def one():
            task()

        state = one(return_state=True)
        assert (state.type, found) == (StateType.CANCELLED, [signal.SIG_DFL])
        assert "mypt: Prefect writes it down; Ctrl-C again kills" in capfd.readouterr().err

    def test_a_stopped_stage_is_not_remembered_as_done(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MYPT_HOME", str(tmp_path / "home"))
        calls = []

        # Whole from the start, as the folder of a training is that has a checkpoint already.
        @stage("train {name}", lambda _: None)
        def train(name):
            def make():
                calls.append(name)
                if len(calls) == 1:
                    send(signal.SIGINT)
                return "trained"

            return Output(tmp_path, f"stopped-{name}", make)

        @flow
        @stoppable
        def one():
            return train("a")

        assert one(return_state=True).type is StateType.CANCELLED
        assert one() == one() == "trained"
        assert calls == ["a", "a"]
