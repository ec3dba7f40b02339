"""Law 3 with pairs: each weighs the same, whole, packed, accumulated, over ranks, over a stop."""

import shutil
import signal

import pytest
import safetensors.torch
import torch

from mypt import files
from mypt.config import MaskPolicy
from mypt.data.dataset import mask
from mypt.errors import CheckpointError, ConfigError, MaskError
from mypt.home import models_dir
from mypt.model import preference
from mypt.model.loss import supervised_positions
from mypt.training import gradients as summing
from mypt.training import loop, step
from mypt.training.checkpoints import checkpoint
from mypt.training.distributed import ALONE
from mypt.training.gradients import Share, add_gradients
from mypt.training.lineage import RunContext, read_lineage
from mypt.training.loop import evaluate, train
from mypt.training.run import open_run
from tests.mypt.training.gloo import together
from tests.mypt.training.test_resume import in_a_child, kill_at

OF_PAIRS = {
    "block_size": 256, "batching": "packed", "objective": "dpo", "use_loss_mask": None,
    "batch_size": 1, "grad_accumulation": 4, "max_iters": 6, "dropout": 0.0, "eval_interval": 3,
    "learning_rate": 3e-3,
}  # fmt: skip


@pytest.fixture
def base(plan, finish):
    finish(plan("base", block_size=256, max_iters=4))
    return "base"


@pytest.fixture
def pairs(plan, pair_dataset, base):
    """A plan of training on pairs, with changes to the preset."""

    def made(name="p", **changes):
        return plan(name, init_from=base, dataset=pair_dataset, **OF_PAIRS | changes)

    return made


def gradient(made, ranks=ALONE, damage=None):
    """The gradient of the first step, its loss and its pairs, in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        run = open_run(made, None, RunContext(), None, (), ranks)
        torch.manual_seed(1)
        with torch.no_grad():  # away from the reference, at which all slopes are alike
            for weight in run.model.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.1)
        if damage:
            damage(run)
        n = made.preset.grad_accumulation
        micros = ranks.share(n)
        batches = [run.batch(micro) for micro in micros]
        places = [supervised_positions(one.targets, one.loss_mask) for one in batches]
        mine = {m: step._weight(run, b, p) for m, b, p in zip(micros, batches, places, strict=True)}
        weight = sum(ranks.merge(mine, n))
        losses, _ = add_gradients(run, Share(micros, batches, places, weight))
        found = dict(zip(micros, losses.tolist(), strict=True))
        loss = sum(ranks.merge(found, n)) / weight
        grads = [p.grad for p in run.model.parameters()]
    finally:
        torch.set_default_dtype(torch.float32)
    return torch.cat([grad.flatten() for grad in grads]), loss, weight


def off(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("objective", ["dpo", "ipo", "simpo"])
def test_an_epoch_is_the_same_step_however_it_is_cut(pairs, objective):
    n_pairs, whole, loss = 0, None, 0.0
    for words in (
        {"batch_size": 64, "grad_accumulation": 1},
        {"batch_size": 8, "grad_accumulation": 4},
        {"batch_size": 2, "grad_accumulation": 13},
        {"batch_size": 1, "grad_accumulation": 41, "block_size": 128},
    ):
        found, said, weight = gradient(pairs(objective=objective, **words))
        if whole is None:
            whole, loss, n_pairs = found, said, weight
            assert n_pairs > 30
        assert weight == n_pairs
        assert off(found, whole) <= 1e-12
        assert said == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_together_have_the_gradient_of_one_process(pairs, size):
    whole, loss, weight = gradient(pairs())
    modes = ({"parallel": "ddp"}, {"parallel": "ddp", "reduction": "tree"})

    def work(ranks):
        found = [gradient(pairs(**words), ranks) for words in modes]
        return [(slope.tolist(), said, pairs_) for slope, said, pairs_ in found]

    for said in together(size, work):
        for slope, theirs, n_pairs in said:
            assert n_pairs == weight
            assert off(torch.tensor(slope, dtype=torch.float64), whole) <= 1e-13
            assert theirs == pytest.approx(loss, rel=1e-13)


def test_a_mean_of_the_micro_batches_means_is_another_gradient(pairs, monkeypatch):
    whole, *_ = gradient(pairs())
    true_loss = summing.loss_of

    def mean(*given):
        found = true_loss(*given)
        return found._replace(total=found.total / found.weight)

    monkeypatch.setattr(summing, "loss_of", mean)
    assert off(gradient(pairs())[0], whole) > 1e-2


def test_a_reference_that_learns_along_is_another_gradient(pairs):
    whole, *_ = gradient(pairs())
    along, *_ = gradient(pairs(), damage=lambda run: setattr(run, "base", run.model))
    assert off(along, whole) > 1e-2


def test_sides_that_are_swapped_are_another_gradient(pairs, monkeypatch):
    whole, *_ = gradient(pairs())
    true = preference.number_sides
    monkeypatch.setattr(preference, "number_sides", lambda *given: true(*given) ^ 1)
    assert off(gradient(pairs())[0], -whole) < off(gradient(pairs())[0], whole)


def digest_of(name):
    latest = models_dir() / name / "latest"
    folder = latest.parent / latest.read_text().strip()
    parts = ("model.safetensors", "optimizer.safetensors", "history.safetensors")
    return [files.digest_file(folder / part) for part in parts]


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_stopped_run_goes_on_bit_for_bit(pairs, finish, stop_at):
    finish(pairs("straight"))
    done = []
    first = list(train(pairs("m"), should_stop=lambda: len(done) >= stop_at or done.append(0)))
    assert (first[-1].reason, first[-1].step) == ("stopped", stop_at)
    finish(pairs("m"))
    assert digest_of("m") == digest_of("straight")


@pytest.mark.parametrize(
    ("place", "name", "nth"),
    [
        (loop.Run, "batch", 10),  # between two micro-batches of step 3
        (preference, "number_sides", 9),  # between the passes over one
        (loop, "loss_of", 5),  # inside an evaluation
        (checkpoint, "write_lineage", 2),  # in a checkpoint, all files but the last there
    ],
)
@pytest.mark.parametrize("objective", ["dpo", "simpo"])
def test_a_killed_run_goes_on_bit_for_bit(pairs, finish, objective, place, name, nth):
    words = {"objective": objective, "checkpoint_interval": 2}
    finish(pairs("straight", **words))
    for where in ((place, name, nth), (loop.Run, "batch", 3)):  # a second one during recovery
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, *where)
            ended = in_a_child(lambda: list(train(pairs("m", **words))))
            assert ended == -signal.SIGKILL
    finish(pairs("m", **words))
    assert digest_of("m") == digest_of("straight")


def test_training_makes_the_chosen_side_likelier(pairs, finish):
    found = finish(pairs(max_iters=30, eval_interval=10))
    before, *_, after = [e.val_loss for e in found["evals"]]
    assert before == pytest.approx(0.693147, abs=1e-5)
    assert after < 0.5
    lineage = read_lineage(models_dir() / "p" / "step_000030")
    assert lineage.dataset.pairs == 60
    assert lineage.config.objective == "dpo"


def test_an_evaluation_is_the_mean_over_all_pairs_of_the_split(pairs):
    run = open_run(pairs(eval_iters=100), models_dir() / "p", RunContext(), None, ())
    report = evaluate(run)
    assert report.val_loss == pytest.approx(0.693147, abs=1e-5)
    assert all(weight.grad is None for weight in run.base.parameters())


def test_a_run_without_a_base_has_no_reference(plan, pair_dataset, finish):
    with pytest.raises(ConfigError, match="objective dpo with reference base holds a model to its"):
        plan("p", dataset=pair_dataset, **OF_PAIRS)
    for words in ({"objective": "simpo"}, {"reference": "none"}):
        finish(plan(next(iter(words)), dataset=pair_dataset, **OF_PAIRS | words))


def test_an_objective_that_does_not_fit_the_rows_is_refused_with_the_way_out(
    plan, pair_dataset, base
):
    with pytest.raises(ConfigError, match="preference pairs, whose rejected sides objective nll"):
        plan("p", dataset=pair_dataset)
    with pytest.raises(ConfigError, match="no preference pairs, which objective dpo compares"):
        plan("p", init_from=base, **OF_PAIRS)


def test_weights_of_tokens_are_refused(plan, pair_dataset, tmp_path, base):
    weighed = mask(pair_dataset, MaskPolicy(weights={"stop": 2.0}), tmp_path / "weighed")
    with pytest.raises(MaskError, match="its tokens are weighed, which objective dpo does not"):
        plan("p", init_from=base, dataset=weighed.path, **OF_PAIRS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"batching": "windows"}, "set batching packed"),
        ({"kl_base": 0.1}, "set kl_base 0"),
        ({"z_loss": 0.1}, "set z_loss 0"),
        ({"normalisation": "conversation"}, "set normalisation token"),
        ({"use_loss_mask": False}, "set use_loss_mask true"),
        ({"objective": "ipo", "label_smoothing": 0.1}, "set label_smoothing 0"),
        ({"parallel": "fsdp"}, "set ddp"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
    ],
)
def test_a_config_that_means_nothing_is_refused(tiny, words, said):
    with pytest.raises(ValueError, match=said):
        tiny(**OF_PAIRS | words)


def test_a_config_of_before_has_the_digest_of_before(plan):
    assert not {"beta", "gamma", "label_smoothing", "reference"} & plan().identity().keys()


def test_a_damaged_reference_is_refused(pairs, finish):
    made = pairs("m")
    path = models_dir() / "base" / "step_000004" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    shutil.copy(path, path.with_suffix(".kept"))
    weights["transformer.ln_f.weight"] += 1
    safetensors.torch.save_file(weights, path)
    with pytest.raises(CheckpointError, match="base"):
        finish(made)
