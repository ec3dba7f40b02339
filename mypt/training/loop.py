"""The training loop of both phases: a generator of events, to be read from top to bottom."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from mypt.data.conversations import Form
from mypt.data.manifest import Split
from mypt.inference.chat import ask
from mypt.model.loss import supervised_positions
from mypt.model.parameters import n_parameters
from mypt.training.checkpointing import keeper
from mypt.training.checkpoints.folder import checkpoint_ref
from mypt.training.claim import beginning
from mypt.training.compute import memory_named, use_threads
from mypt.training.distributed import ALONE, Ranks
from mypt.training.events import EvalReport, Event, Finished, Sample, Started
from mypt.training.gradients import loss_of
from mypt.training.lineage import RunContext
from mypt.training.plan import RunPlan, plan_run
from mypt.training.run import Run, open_run
from mypt.training.step import take_step

__all__ = ["RunContext", "RunPlan", "plan_run", "train"]

MAX_ITERS, EARLY_STOP, STOPPED = "max_iters", "early stop", "stopped"
ALREADY_FINISHED = "already finished"
_SAMPLE_TOKENS = 64
_GUESSING = 5
"""Batches by which a model of random weights is measured."""


def train(
    plan: RunPlan,
    *,
    context: RunContext = RunContext(),  # noqa: B008  (frozen)
    should_stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> Iterator[Event]:
    """Train as planned, or go on where the same plan stopped, one event at a time.

    A step boundary has a fixed order: evaluate, save, look whether to stop. So a checkpoint
    of step n always lies behind the evaluation of step n, and a resumed run does exactly what
    the undisturbed one would have done.

    Args:
        plan: What :func:`mypt.training.plan.plan_run` resolved.
        context: Ids by which services know this run, kept in the lineage.
        should_stop: Asked at each step boundary; True on any rank saves a checkpoint and ends.
        ranks: This process among those that train; every one of them runs this loop.

    Raises:
        ConfigError: If the name belongs to another run.
        CheckpointError: If another process trains under this name now.
        TrainingError: If a loss or gradient is not finite; nothing was updated by it.
    """
    config = plan.preset
    with beginning(plan, context, ranks) as (folder, found, notes):
        extended = found is not None and found.lineage.config.max_iters != config.max_iters
        if found is not None and found.state.finished and not extended:
            yield Finished(found.state.step, ALREADY_FINISHED, checkpoint_ref(folder))
            return
        run = open_run(plan, folder, context, found, notes, ranks)
        with use_threads(run.compute.threads), keeper(run) as checkpoints:
            yield _started(run)
            if found is None:
                yield evaluate(run)
                yield from answer_prompts(run)
            while not run.state.finished and not ranks.agree(should_stop()):
                yield take_step(run)
                step, improved = run.state.step, False
                if step % config.eval_interval == 0 or step == config.max_iters:
                    report = evaluate(run)
                    improved = report.best
                    yield report
                    yield from answer_prompts(run)
                if improved or run.state.finished or step % config.checkpoint_interval == 0:
                    checkpoints.write()
                yield from checkpoints.saved()
            if run.saved_step != run.state.step:
                checkpoints.write()
            yield from checkpoints.saved(wait=True)
        ranks.wait()
        reason = run.state.finished or STOPPED
        yield Finished(run.state.step, reason, checkpoint_ref(folder))


def evaluate(run: Run) -> EvalReport:
    """Score both splits and judge: best so far, and whether training has ended.

    The rows are the same at every evaluation, come from a loader of their own, and no random
    number is drawn: training cannot notice that it was looked at.
    """
    config, state = run.plan.preset, run.state
    with memory_named(f"step {state.step + 1}", config, run.compute), _eval_mode(run):
        train_loss, _ = _mean_loss(run, "train")
        val_loss, groups = math.nan, run.groups.none()
        if run.dataset.manifest.tokens("val"):
            val_loss, groups = _mean_loss(run, "val")
    best = state.step > 0 and val_loss < (
        math.inf if state.best_val_loss is None else state.best_val_loss
    )
    if best:
        news = {"best_step": state.step, "best_val_loss": val_loss, "evals_since_best": 0}
    else:
        news = {"evals_since_best": state.evals_since_best + (state.step > 0)}
    losses = {"train_loss": _or_none(train_loss), "val_loss": _or_none(val_loss)}
    state = state.model_copy(update=news | losses)
    if state.step == config.max_iters:
        state = state.model_copy(update={"finished": MAX_ITERS})
    elif config.patience and state.evals_since_best >= config.patience:
        state = state.model_copy(update={"finished": EARLY_STOP})
    run.state = state
    learned, run.learned = run.learned, run.groups.none()
    by = map(run.groups.means, (learned, groups))
    return EvalReport(state.step, train_loss, val_loss, best, *by)


def _or_none(loss: float) -> float | None:
    return None if math.isnan(loss) else loss


def answer_prompts(run: Run) -> Iterator[Sample]:
    """Let the model answer the configured prompts, in the form of its training data."""
    for prompt in run.plan.preset.sample_prompts:
        with _eval_mode(run):
            form: Form = "chat" if run.plan.kind == "chat" else "plain"
            reply = ask(
                run.model, run.dataset.tokenizer, prompt, form=form, max_tokens=_SAMPLE_TOKENS
            )
        yield Sample(run.state.step, prompt, reply.text)


def _mean_loss(run: Run, split: Split) -> tuple[float, NDArray[np.float64]]:
    """Return nats per supervised token over eval_iters micro-batches: sums before division.

    And (2, G): of which groups' losses and tokens they are made. Of random weights the loss is near
    that of guessing whatever is read, so that few batches tell it and nobody waits for many.
    """
    config, n_batches = run.plan.preset, run.plan.preset.eval_iters
    if not run.state.step and run.plan.parent is None:
        n_batches = min(n_batches, _GUESSING)
    if config.batching == "packed":
        n_batches = min(n_batches, run.watch.epoch(split).steps)  # no row twice
    totals, counts, parts = dict[int, float](), dict[int, float](), {}
    for index, counts_here in run.ranks.turns(n_batches):
        batch = run.watch.batch_at(split, index)
        loss = loss_of(run, batch)
        if counts_here:
            totals[index], counts[index] = loss.total.item(), loss.weight.item()
            where = supervised_positions(batch.targets, batch.loss_mask).numpy()
            rows = run.watch.places_at(split, index)
            cells = run.groups.of(rows, batch.targets.shape[1], where)
            assert loss.terms is not None, "the model tells"
            parts[index] = run.groups.sums(cells, loss.terms.cpu(), None)
    total, n_tokens = (sum(run.ranks.merge(found, n_batches)) for found in (totals, counts))
    sums = run.ranks.merge_rows(parts, n_batches, run.learned.shape)
    return (total / n_tokens if n_tokens else math.nan), sums


@contextmanager
def _eval_mode(run: Run) -> Iterator[None]:
    run.model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        run.model.train()


def _started(run: Run) -> Started:
    config, record = run.plan.preset, run.compute.record()
    return Started(
        model_name=run.plan.model_name,
        step=run.state.step,
        max_iters=config.max_iters,
        n_parameters=n_parameters(run.model),
        device=record.device,
        dtype=record.dtype,
        tokens_per_step=config.batch_size * config.grad_accumulation * config.block_size,
        policy=run.plan.policy,
        inherited=() if run.state.step else run.plan.inherited,  # said when it began
        notes=(*run.notes, *run.loader.notes),
    )
