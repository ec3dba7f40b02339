"""SIGKILL and SIGTERM at random instants: what was begun is finished as if nothing had been."""

import os
import signal
import time
from contextlib import suppress

import pytest

from flows.cli import main
from mypt import files
from mypt.home import STEP_FOLDER
from mypt.training import loop
from tests.faults import children
from tests.faults.pipeline import PRETRAIN, SFT

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def seconds(_house):
    """How long an undisturbed pipeline takes on this machine just now."""
    _house.clear()
    start = time.monotonic()
    children.run_whole(_house.run)
    return time.monotonic() - start


@pytest.mark.row("kill")
@pytest.mark.trials(quick=20, full=200)
def test_a_killed_pipeline_goes_on_bit_for_bit(trials, house, undisturbed, seconds, dice, row):
    n_struck = 0
    for _ in trials:
        with row.trial():
            for share in (1.0, 0.5):  # the second one strikes while the first is recovered from
                instant = dice.uniform(0, share * seconds)
                ended = children.killed_after(house.run, instant, signal.SIGKILL)
                assert ended.code in (0, -signal.SIGKILL), ended
                if share == 1.0 and ended.code == 0:  # the machine is quicker now than it was
                    seconds = instant
                n_struck += ended.code != 0
                house.check_whole()
            children.run_whole(house.run)
            assert house.print_of() == undisturbed
            house.clear()
    assert n_struck > len(trials) / 2, "the pipeline ends before it is killed"


class Training:
    """``mypt train`` on a dataset of the house, with a tally of the steps that it makes."""

    def __init__(self, house, preset, dataset):
        self.house, self.model = house, house.home / "models/m"
        self._steps = house.root / "steps"
        config = house.root / "preset.json"
        files.write_json(config, preset.model_dump(mode="json"))
        self._words = ["train", "--model_name", "m", "--config_file", str(config)]
        self._words += ["--dataset_dir", str(house.home / "datasets" / dataset)]

    def run(self):
        """Train in this process as the command does."""
        tally = os.open(self._steps, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        true_step = loop.take_step

        def take_step(run):
            made = true_step(run)
            os.write(tally, b".")
            return made

        loop.take_step = take_step
        os.environ["MYPT_HOME"] = str(self.house.home)
        return main(self._words)

    @property
    def steps(self):
        """Steps made since the tally was cleared."""
        return self._steps.stat().st_size if self._steps.exists() else 0

    @property
    def saved(self):
        """Step of the latest checkpoint, 0 if there is none."""
        with suppress(FileNotFoundError):
            return int(STEP_FOLDER.fullmatch((self.model / "latest").read_text().strip())[1])
        return 0

    def clear(self):
        """Forget the model."""
        self._steps.unlink(missing_ok=True)
        if self.model.exists():
            files.remove_folder(self.model)


@pytest.fixture(params=["pretrain", "fine-tune"])
def training(request, house):
    """A training, how long it takes, and what it leaves if nothing disturbs it."""
    children.run_whole(house.make_datasets)
    preset, dataset = {"pretrain": (PRETRAIN, "texts"), "fine-tune": (SFT, "chat")}[request.param]
    made = Training(house, preset, dataset)
    start = time.monotonic()
    children.run_whole(made.run)
    made.seconds = time.monotonic() - start
    made.reference = house.print_of()
    made.clear()
    return made


@pytest.mark.row("terminate")
@pytest.mark.trials(quick=3, full=25, at_once=5)
def test_a_terminated_training_saves_its_step_and_goes_on_bit_for_bit(
    trials, house, training, dice, row
):
    n_struck = 0
    for _ in trials:
        with row.trial():
            for share in (1.0, 0.5):
                instant = dice.uniform(0, share * training.seconds)
                ended = children.killed_after(training.run, instant, signal.SIGTERM)
                assert ended.shell_code in (0, 143), ended
                if share == 1.0 and ended.shell_code == 0:
                    training.seconds = instant
                n_struck += ended.shell_code == 143
                assert training.saved == training.steps, "a step is lost"
                house.check_whole()
            children.run_whole(training.run)
            assert house.print_of() == training.reference
            training.clear()
    assert n_struck > len(trials) / 2, "the training ends before it is asked to"
