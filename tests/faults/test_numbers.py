"""A loss or a gradient that is not finite stops training before anything is spoiled."""

import math

import pytest
import torch

from mypt.home import step_folder
from mypt.training import gradients, step
from tests.faults import children
from tests.faults.pipeline import TINY

pytestmark = [pytest.mark.faults, pytest.mark.row("number")]
MODELS = {"pretrain": "base", "fine-tune": "chat"}


class Explode(torch.autograd.Function):
    """Passes a loss on unchanged and makes its gradient infinite."""

    @staticmethod
    def forward(_, loss):
        return loss

    @staticmethod
    def backward(_, gradient):
        return gradient * math.inf


HARMS = {
    "nan": lambda loss: loss * math.nan,
    "inf": lambda loss: loss * math.inf,
    "exploding": Explode.apply,
}


class Poison:
    """Spoils the loss of one row of one micro-batch at one step of one stage."""

    def __init__(self, harm, stage, dice):
        self.harm, self.stage, self.begun = HARMS[harm], stage, ""
        self.step = dice.randrange(TINY["max_iters"])
        self.micro = dice.randrange(TINY["grad_accumulation"])
        self.row = dice.randrange(TINY["batch_size"])
        self.name = ""
        self._true_loss = step.loss_of

    def enter(self, stage):
        """Notice which stage begins."""
        self.begun = stage
        step.loss_of = gradients.loss_of = self.loss_of

    def loss_of(self, run, batch, supervised=None):
        """Stand in for the loss of a micro-batch, and of one row when the culprit is sought."""
        loss = self._true_loss(run, batch, supervised)
        if (self.begun, run.state.step) != (self.stage, self.step):
            return loss
        culprit = run.batch(self.micro).input_ids[self.row]
        self.name = run.row_names(self.micro)[self.row]
        if not (batch.input_ids == culprit).all(dim=1).any():
            return loss
        return loss._replace(total=self.harm(loss.total))


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("stage", MODELS)
@pytest.mark.trials(quick=1, full=10)
def test_training_stops_before_the_update(trials, stage, harm, house, undisturbed, dice, row):
    for _ in trials:
        poison = Poison(harm, stage, dice)

        def work(poison=poison):
            try:
                house.run(poison.enter)
            except step.TrainingError as error:
                return [str(error), poison.name]

        with row.trial():
            said, name = children.ask(work)
            assert len(said.splitlines()) == 1
            assert said.startswith(f"step {poison.step + 1}: ")
            assert ("gradient norm" if harm == "exploding" else "loss") in said
            if harm == "exploding":  # every row's own loss is finite
                assert ".jsonl line" in said
            else:
                assert name in said
            house.check_whole()
            children.run_whole(house.run)
            assert house.print_of() == undisturbed
            house.clear()


class Overflow:
    """Makes a weight infinite by the update after which a stage's first checkpoint is due."""

    def __init__(self, stage):
        self.stage, self.begun, self.made = stage, "", 0
        self._true_step = torch.optim.AdamW.step

    def enter(self, stage):
        """Notice which stage begins."""
        self.begun, self.made = stage, 0
        torch.optim.AdamW.step = lambda optimizer: self._step(optimizer)

    def _step(self, optimizer):
        self._true_step(optimizer)
        self.made += 1
        if (self.begun, self.made) == (self.stage, TINY["checkpoint_interval"]):
            with torch.no_grad():
                optimizer.param_groups[0]["params"][-1].view(-1)[0] = math.inf


@pytest.mark.parametrize("stage", MODELS)
def test_no_checkpoint_holds_what_is_not_finite(stage, house, undisturbed, row):
    """An update may overflow although loss and gradient were finite."""
    overflow = Overflow(stage)
    with row.trial():
        ended = children.run(lambda: house.run(overflow.enter))
        assert "TrainingError" in ended.kind, ended.trace
        due = house.home / "models" / MODELS[stage] / step_folder(TINY["checkpoint_interval"])
        assert not due.exists()
        house.check_whole()
        children.run_whole(house.run)
        assert house.print_of() == undisturbed
