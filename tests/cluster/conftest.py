"""Two hosts, a training that both share, and what one process makes of it."""

import json
import time
from pathlib import Path

import pytest

from mypt.config import Preset
from mypt.training.lineage import read_lineage
from mypt.training.loop import train
from mypt.training.plan import plan_run
from tests.cluster.hosts import two_hosts, why_not
from tests.mypt.conftest import TINY, prepare_chat

CONFIG = TINY | {
    "reduction": "tree", "grad_accumulation": 4, "max_iters": 400, "eval_interval": 100,
    "checkpoint_interval": 10, "step_timeout": 15.0,
}  # fmt: skip
LAST = CONFIG["max_iters"]
PATIENCE = 300.0
"""Seconds after which something counts as hung."""


def write_preset(folder):
    """The preset of each host, in a file."""
    path = folder / "pair.json"
    path.write_text(json.dumps(CONFIG | {"parallel": "ddp"}))
    return path


class Home:
    """The folder that hosts share: how far model ``m`` is, and what made it."""

    def __init__(self, path):
        self.path = path

    def latest(self):
        try:
            return int((self.path / "models" / "m" / "latest").read_text().strip()[5:])
        except FileNotFoundError:
            return 0

    def lineage(self, step):
        return read_lineage(self.path / "models" / "m" / f"step_{step:06d}")

    def reach(self, step, story):
        """Wait for a checkpoint of ``step`` or later."""
        deadline = time.monotonic() + PATIENCE
        while self.latest() < step:
            assert time.monotonic() < deadline, f"no step {step} yet\n{story()}"
            time.sleep(0.1)
        assert self.latest() < LAST, f"it ended before anything was done to it\n{story()}"


@pytest.fixture
def hosts():
    if reason := why_not():
        pytest.skip(reason)
    with two_hosts() as made:
        yield made


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return prepare_chat(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="session")
def alone(dataset, tmp_path_factory):
    """The digest of the weights that one process ends with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPT_HOME", str(tmp_path_factory.mktemp("alone")))
        *_, end = train(plan_run(Preset.model_validate(CONFIG), "m", dataset))
    return read_lineage(Path(end.checkpoint.path).with_name(f"step_{LAST:06d}")).weights
