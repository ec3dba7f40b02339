"""How many faults are injected, where they strike, and the table of what came of them."""

import os
import random
import shutil

import pytest

from mypt.data.tokenizer import load_tokenizer
from tests.faults import children, operations, table
from tests.faults.pipeline import House

_PER_TEST = 10
"""Trials that one test makes in a row, so that none of them comes near the time limit."""


def pytest_addoption(parser):
    parser.addoption(
        "--faults",
        choices=("quick", "full"),
        default="quick",
        help="how many to inject: a few of each kind, or as many as docs/reliability.md says",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "faults: injects faults; all of them run by 'make faults'")
    config.addinivalue_line("markers", "row(name): row of the table that the trials count for")
    config.addinivalue_line("markers", "trials(quick, full, at_once): how many faults to inject")


def is_full(config):
    return config.getoption("--faults", default="quick") == "full"


def pytest_generate_tests(metafunc):
    marker = metafunc.definition.get_closest_marker("trials")
    if marker is None or "trials" not in metafunc.fixturenames:
        return
    choices = marker.kwargs
    n = choices["full"] if is_full(metafunc.config) else choices["quick"]
    size = choices.get("at_once", _PER_TEST)
    parts = [range(first, min(first + size, n)) for first in range(0, n, size)]
    metafunc.parametrize("trials", parts, ids=lambda part: f"{part.start}-{part.stop - 1}")


def pytest_sessionfinish(session):
    """Hand what this process counted to the one that started it, if there is one."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = table.counts()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Add what another process counted."""
    table.add(getattr(node, "workeroutput", {}).get("faults", {}))


def pytest_terminal_summary(terminalreporter):
    lines = table.render()
    if lines:
        terminalreporter.section("injected faults")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def full(pytestconfig):
    """Whether all faults are injected, not only the quick ones."""
    return is_full(pytestconfig)


@pytest.fixture
def row(request):
    """The row of the table that this test counts for."""
    return table.ROWS[request.node.get_closest_marker("row").args[0]]


@pytest.fixture
def dice(request):
    """Random numbers that are the same whenever this very test runs."""
    return random.Random(request.node.name)


@pytest.fixture(scope="session")
def _code():
    from mypt.training.circumstances import record_code
    from tests.faults.pipeline import PRETRAIN

    return record_code(PRETRAIN)


@pytest.fixture(autouse=True)
def _environment(monkeypatch, _code):
    monkeypatch.setenv("MYPT_HOME", os.environ["MYPT_HOME"])
    # Otherwise each child would hash all the code and ask git about it, and find other code if
    # somebody edits it meanwhile.
    monkeypatch.setattr("mypt.training.circumstances.record_code", lambda _: _code)


@pytest.fixture(scope="session")
def _house(tmp_path_factory):
    prepare_torch()
    return House(tmp_path_factory.mktemp("house"))


@pytest.fixture
def house(_house):
    """A home that is empty again for each test; always the same path, since files name it."""
    _house.clear()
    yield _house
    _house.clear()


@pytest.fixture(scope="session")
def undisturbed(_house):
    """What a pipeline leaves that nothing disturbs; two of them leave the same."""
    prints = []
    for _ in range(2):
        _house.clear()
        children.run_whole(_house.run)
        prints.append(_house.print_of())
    _house.clear()
    assert prints[0] == prints[1]
    return prints[0]


@pytest.fixture(scope="session")
def kinds(_house):
    """What an undisturbed pipeline does to the disk, one word an operation."""
    _house.clear()

    def work():
        found = []
        operations.intercept(operations.record(found))
        _house.run()
        return [operation.kind for operation in found]

    return children.ask(work)


@pytest.fixture(scope="module")
def made(_house, tmp_path_factory):
    """What a pipeline left, and a tokenizer that is not its own."""
    _house.clear()
    children.run_whole(_house.run)
    place = tmp_path_factory.mktemp("damaged")
    shutil.copytree(_house.home, place / "home")
    load_tokenizer("byte", "chatml").write(place)
    return place


def prepare_torch():
    """Import before the first fork whatever a training imports late, without running it."""
    import torch

    from mypt.model.gpt import GPT
    from mypt.training.optim import make_optimizer
    from tests.faults.pipeline import PRETRAIN

    torch.set_num_threads(1)
    make_optimizer(GPT(PRETRAIN.gpt()), PRETRAIN)
