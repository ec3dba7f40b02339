"""Law 3 with weights: whole, packed, accumulated, over ranks and over a stop, and its mistakes."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from mypt.config import GPTConfig, MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import Dataset, mask, open_dataset, prepare
from mypt.errors import ConfigError
from mypt.home import models_dir
from mypt.model.gpt import GPT
from mypt.model.loss import supervised_positions
from mypt.training import step
from mypt.training.distributed import ALONE
from mypt.training.gradients import Share, add_gradients
from mypt.training.lineage import RunContext
from mypt.training.loader import Batch, GPTDataLoader
from mypt.training.loop import evaluate, train
from mypt.training.run import open_run
from tests.mypt.conftest import write_chat
from tests.mypt.training.gloo import together

BLOCK = 32
STEP = ((31, 5), (1, 9), (0, 2), (17, 20))
POLICY = MaskPolicy(roles=("user", "assistant"), weights={"user": 0.1, "stop": 2.0})


def batch(*supervised):
    generator = torch.Generator().manual_seed(sum(supervised))
    tokens = torch.randint(0, 256, (len(supervised), BLOCK + 1), generator=generator)
    learned = torch.stack([torch.arange(BLOCK) < n for n in supervised])
    weights = torch.rand(learned.shape, generator=generator) * 3 + 0.01
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.where(learned, weights, 0.0))


def joined(batches):
    return Batch(*(torch.cat(part) for part in zip(*(b[:3] for b in batches), strict=True)))


BATCHES = [batch(*rows) for rows in STEP]


def gradients(plan, batches, ranks=ALONE, **changes):
    """The gradient of one step and its loss, in float64, as ``take_step`` has them."""
    torch.set_default_dtype(torch.float64)
    try:
        made = plan(
            block_size=BLOCK, dropout=0.0, grad_accumulation=len(batches), z_loss=1e-3,
            objective="dft", **changes,
        )  # fmt: skip
        run = open_run(made, None, RunContext(), None, (), ranks)
        micros = ranks.share(len(batches))
        mine = [batches[micro] for micro in micros]
        places = [supervised_positions(one.targets, one.loss_mask) for one in mine]
        weighed = dict(zip(micros, map(partial(step._weight, run), mine, places), strict=True))
        weight = sum(ranks.merge(weighed, len(batches)))
        losses, _ = add_gradients(run, Share(micros, mine, places, weight))
        found = dict(zip(micros, losses.tolist(), strict=True))
        loss = sum(ranks.merge(found, len(batches))) / weight
        grads = [p.grad for p in run.model.parameters()]
    finally:
        torch.set_default_dtype(torch.float32)
    return torch.cat([getattr(g, "full_tensor", lambda g=g: g)().flatten() for g in grads]), loss


def off(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def test_whole_and_accumulated_have_the_same_gradient_and_loss(plan):
    whole, loss = gradients(plan, [joined(BATCHES)])
    apart, same = gradients(plan, BATCHES)
    assert off(apart, whole) <= 1e-13
    assert same == pytest.approx(loss, rel=1e-13)


def test_a_mean_of_the_micro_batches_means_is_another_gradient(plan):
    whole, _ = gradients(plan, [joined(BATCHES)])
    means = sum(gradients(plan, [one])[0] for one in BATCHES) / len(BATCHES)
    assert off(means, whole) > 1e-2


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_together_have_the_gradient_of_one_process(plan, size):
    whole, loss = gradients(plan, BATCHES)
    modes = {
        "ddp": {"parallel": "ddp"},
        "fsdp": {"parallel": "fsdp"},
        "tree": {"parallel": "ddp", "reduction": "tree"},
    }

    def work(ranks):
        found = [gradients(plan, BATCHES, ranks, **words) for words in modes.values()]
        return [(gradient.tolist(), said) for gradient, said in found]

    for said in together(size, partial(work)):
        for gradient, theirs in said:
            assert off(torch.tensor(gradient, dtype=torch.float64), whole) <= 1e-13
            assert theirs == pytest.approx(loss, rel=1e-13)


@pytest.fixture(scope="module")
def weighed(tmp_path_factory):
    """Conversations of very different lengths from two sources, weighed by role, end and source."""
    folder = tmp_path_factory.mktemp("weighed")
    sources = [
        Source(path=str(write_chat(folder / f"{name}.jsonl", n, answer)))
        for name, n, answer in (("long", 30, "{i} it is, " * 3), ("short", 50, "{i}!"))
    ]
    config = PrepareConfig(sources=tuple(sources), tokenization="byte", val_fraction=0.25)
    return Path(prepare(config, POLICY, folder / "dataset").path)


def loader(folder, **changes):
    given = {"batch_size": 4, "block_size": 96, "batching": "packed", "use_loss_mask": True}
    return GPTDataLoader(folder, **given | changes)


def epoch(found, micros=1):
    steps = range(found.epoch("train").steps)
    return [found.batch_at("train", step, micro) for step in steps for micro in range(micros)]


def test_batches_carry_floats_where_a_dataset_has_weights_and_bytes_where_not(
    weighed, chat_dataset
):
    for batching in ("windows", "packed"):
        ours = loader(weighed, batching=batching).batch_at("train", 0).loss_mask
        assert ours.dtype == torch.float32
        assert set(ours.unique().tolist()) <= {*np.float32([0, 0.1, 0.2, 1, 2]).tolist()}
        plain = loader(chat_dataset, batching=batching).batch_at("train", 0).loss_mask
        assert plain.dtype == torch.uint8


@pytest.mark.parametrize("normalisation", ["token", "conversation", "source", {"short.jsonl": 3}])
def test_packed_rows_have_the_loss_of_their_conversations_alone(weighed, normalisation):
    data = open_dataset(weighed)
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=96, vocab_size=600, n_layer=1, n_head=2, n_embd=16)).double()
    total = weight = 0.0
    for one in epoch(loader(weighed, normalisation=normalisation)):
        loss = model.loss(*one[:3], positions=one.positions, segments=one.segments)
        total, weight = total + loss.total.item(), weight + loss.weight.item()
    alone, whole = by_source(data, model, normalisation)
    assert weight == pytest.approx(whole, rel=1e-6)
    assert total / weight == pytest.approx(alone / whole, rel=1e-6)


def by_source(data, model, normalisation):
    """The formula: sums of weighed losses, each row or source divided by its own weight."""
    rows = []
    for view in data.shards("train"):
        for row in view.rows:
            place = slice(int(row["start"]), int(row["stop"]))
            tokens = torch.from_numpy(view.tokens[place].astype(np.int64))[None]
            weights = torch.from_numpy(data.weights[view.mask[place]])[None, 1:]
            loss = model.loss(tokens[:, :-1], tokens[:, 1:], weights)
            rows.append((view.record.source, loss.total.item(), weights.double().sum().item()))
    names = [source.name for source in data.manifest.sources]
    wholes = [sum(weight for of, _, weight in rows if of == n) for n in range(len(names))]
    shares = normalisation if isinstance(normalisation, dict) else {}
    total = whole = 0.0
    for source, loss, weight in rows:
        by = {"token": 1.0, "conversation": 1 / weight}.get(
            str(normalisation), shares.get(names[source], 1.0) / wholes[source]
        )
        total, whole = total + by * loss, whole + by * weight
    return total, whole


def test_each_conversation_and_each_source_weighs_the_same(weighed):
    rows = sum(len(view.rows) for view in open_dataset(weighed).shards("train"))
    for normalisation, n in (("conversation", rows), ("source", 2)):
        batches = epoch(loader(weighed, normalisation=normalisation))
        weights = sum(one.loss_mask.double().sum().item() for one in batches)
        assert weights == pytest.approx(n, rel=1e-5)


def test_a_normalisation_is_one_however_rows_are_packed(weighed):
    def told(micros=1, **changes):
        found, how = {}, {"normalisation": "conversation", "grad_accumulation": micros}
        for one in epoch(loader(weighed, **how, **changes), micros):
            for target, weight in zip(one.targets.flatten(), one.loss_mask.flatten(), strict=True):
                if weight:
                    found.setdefault(int(target), []).append(float(weight))
        return {target: sorted(weights) for target, weights in found.items()}

    assert told() == told(block_size=128, batch_size=1) == told(micros=3)


def test_normalisation_wants_packed_rows_and_sources_that_are_there(weighed, tiny):
    with pytest.raises(ConfigError, match="set batching: packed"):
        loader(weighed, batching="windows", normalisation="source")
    with pytest.raises(ConfigError, match="has no source 'web'; found"):
        loader(weighed, normalisation={"web": 1.0})
    with pytest.raises(ValueError, match="wants batching packed"):
        tiny(normalisation="conversation")
    with pytest.raises(ValueError, match="expected a share above 0"):
        tiny(normalisation={"a": 0}, batching="packed")


def weights_of(name):
    (newest,) = (models_dir() / name).glob("step_000006/model.safetensors")
    return newest.read_bytes()


@pytest.mark.parametrize(
    "changes", [{}, {"batching": "packed", "normalisation": "conversation", "objective": "eaft"}]
)
def test_weights_and_objectives_survive_a_stop(plan, finish, weighed, changes, tmp_path):
    how = {"dataset": weighed, "max_iters": 6, "block_size": 64} | changes
    finish(plan("straight", **how))
    done = []
    list(train(plan("stopped", **how), should_stop=lambda: len(done) >= 3 or done.append(0)))
    finish(plan("stopped", **how))
    assert weights_of("stopped") == weights_of("straight")
    rounded = tmp_path / "rounded"
    mask(weighed, MaskPolicy(roles=("user", "assistant")), rounded)  # as learned, each as 1
    finish(plan("rounded", **how | {"dataset": rounded}))
    assert weights_of("rounded") != weights_of("straight")


MISTAKES = {
    "weights lost": (Dataset, "weights", np.minimum(np.arange(256, dtype=np.float32), 1)),
    "normalised per micro-batch": (
        step, "add_gradients",
        lambda run, mine: add_gradients(
            run, mine._replace(weight=step._weight(run, mine.batches[0], mine.places[0]))
        ),
    ),
}  # fmt: skip
"""What a resumed run may do wrong from its third step on."""


@pytest.mark.parametrize("name", MISTAKES)
def test_a_resume_with_a_mistake_of_weights_ends_elsewhere(
    plan, finish, weighed, monkeypatch, name
):
    how = {"dataset": weighed, "max_iters": 6, "block_size": 64, "grad_accumulation": 2}
    finish(plan("straight", **how))
    done = []
    list(train(plan("stopped", **how), should_stop=lambda: len(done) >= 3 or done.append(0)))
    monkeypatch.setattr(*MISTAKES[name])
    finish(plan("stopped", **how))
    assert weights_of("stopped") != weights_of("straight")


def test_an_evaluation_reports_plain_nats_whatever_is_trained(plan, weighed, tmp_path):
    plainly = tmp_path / "plain"
    mask(weighed, MaskPolicy(roles=("user", "assistant")), plainly)
    how = {"batching": "packed", "block_size": 64}
    runs = [
        plan("a", dataset=weighed, objective="dft", z_loss=0.1, normalisation="source", **how),
        plan("b", dataset=plainly, **how),
    ]
    reports = [evaluate(open_run(one, None, RunContext(), None, ())) for one in runs]
    assert reports[0] == reports[1]


def test_kl_base_holds_a_fine_tuning_to_its_base_and_wants_one(plan, finish):
    with pytest.raises(ConfigError, match="kl_base 1 holds a model to its base, and there is none"):
        plan("none", kl_base=1.0)
    finish(plan("base", max_iters=4))
    moved = {}
    for name, kl in (("free", 0.0), ("held", 100.0)):
        made = plan(name, init_from="base", kl_base=kl, max_iters=6, dropout=0.0)
        run = open_run(made, None, RunContext(), None, ())
        before = torch.cat([p.detach().flatten().clone() for p in run.model.parameters()])
        finish(made)
        after = GPT(made.preset.gpt())
        state = safetensors.torch.load(weights_of(name))
        after.load_state_dict(state, strict=False)
        moved[name] = (torch.cat([p.flatten() for p in after.parameters()]) - before).norm().item()
    assert moved["held"] != moved["free"]
