import os
import signal
import threading

import pytest

from tasks.training import held_back_sigterm


class _Terminated(BaseException):
    pass


@pytest.fixture(autouse=True)
def _handler():
    """What Prefect does in a flow: SIGTERM raises wherever the program stands."""

    def terminate(*_):
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_signal_is_told_at_once_and_acts_at_the_end():
    steps = []

    def train():
        with held_back_sigterm() as asked:
            while not asked():
                steps.append(1)
                os.kill(os.getpid(), signal.SIGTERM)
            steps.append("saved")

    with pytest.raises(_Terminated):
        train()
    assert steps == [1, "saved"]


def test_without_a_signal_nothing_happens():
    with held_back_sigterm() as asked:
        assert not asked()


def test_a_failing_block_does_not_swallow_the_signal():
    def train():
        with held_back_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ValueError

    with pytest.raises(_Terminated):
        train()


def test_a_thread_trains_without_it():
    found = []

    def work():
        with held_back_sigterm() as asked:
            found.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
