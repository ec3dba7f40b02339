"""One optimizer step: supervised tokens counted over all ranks, gradients, clipping, AdamW.

Nothing is updated by losses or gradients that are not finite.
"""

import math
import time

import torch
from torch import Tensor

from mypt.errors import TrainingError
from mypt.model.loss import supervised_positions, weights_at
from mypt.model.preference import count_pairs
from mypt.training.compute import memory_named
from mypt.training.distributed import is_part
from mypt.training.events import StepReport
from mypt.training.gradients import Share, add_gradients, loss_of
from mypt.training.loader import Batch
from mypt.training.optim import learning_rate_at
from mypt.training.run import Run


def take_step(run: Run) -> StepReport:
    """Make one optimizer step from ``grad_accumulation`` micro-batches on all ranks (law 3).

    Each supervised token of the step counts by its weight, wherever it stands: each micro-batch's
    summed loss is divided by the weight of the whole step, which the masks tell before the first
    forward pass. Where no token is supervised, weights and optimizer are left alone. Counting is
    the host's, and batches go to a device one by one, so that it never waits for the next (D96).

    Raises:
        TrainingError: If a loss or the gradient's norm is not finite, before the update.
    """
    config, step, started = run.plan.preset, run.state.step, time.monotonic()
    rate, loss, norm = learning_rate_at(step, config), math.nan, 0.0
    with memory_named(f"step {step + 1}", config, run.compute):
        micros = run.ranks.share(config.grad_accumulation)
        batches = [run.batch(micro) for micro in micros]
        places = [supervised_positions(batch.targets, batch.loss_mask) for batch in batches]
        tokens, supervised = run.ranks.total(sum(map(count_tokens, batches)), sum(map(len, places)))
        if supervised:
            mine = {m: _weight(run, b, p) for m, b, p in zip(micros, batches, places, strict=True)}
            weight = sum(run.ranks.merge(mine, config.grad_accumulation))
            share = Share(micros, batches, places, weight)
            found, measured = add_gradients(run, share), _norm(run)
            losses = _read(run, share, *found)
            norm = measured.item()
            _check_finite(run, losses, norm)
            _clip(run, config.grad_clip, measured, norm)
            loss = sum(losses) / weight
            for group in run.optimizer.param_groups:
                group["lr"] = rate
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
    run.count_step(tokens, supervised, loss, norm)
    return StepReport(
        step=step + 1,
        loss=loss,
        learning_rate=rate,
        grad_norm=norm,
        tokens=tokens,
        supervised=supervised,
        seconds=time.monotonic() - started,
    )


def _read(run: Run, mine: Share, on_device: Tensor, terms: list[Tensor]) -> list[float]:
    """Return the loss of each micro-batch on all ranks, and note of which groups they are made."""
    cells = [
        run.groups.of(run.places(micro), batch.targets.shape[1], where.numpy())
        for micro, batch, where in zip(mine.micros, mine.batches, mine.places, strict=True)
    ]
    # The only wait of a step: all that a device is to do is queued by now.
    losses, *told = torch.split(
        torch.cat([on_device, *terms]).cpu(), [len(terms), *map(len, terms)]
    )
    n = run.plan.preset.grad_accumulation
    weights = [weights_at(batch.loss_mask, where) for batch, where in zip(*mine[1:3], strict=True)]
    sums = dict(zip(mine.micros, map(run.groups.sums, cells, told, weights), strict=True))
    run.learned += run.ranks.merge_rows(sums, n, run.learned.shape)
    return run.ranks.merge(dict(zip(mine.micros, losses.tolist(), strict=True)), n)


def count_tokens(batch: Batch) -> int:
    """Return how many tokens the batch reads, padding apart."""
    if batch.segments is None:
        return batch.input_ids.numel()
    return int((batch.segments >= 0).sum().item())


def _weight(run: Run, batch: Batch, places: Tensor) -> float:
    """Return the weight of the supervised tokens: their number, where nothing is weighed.

    Of preference pairs it is theirs: each weighs the same, however long its sides are.
    """
    if run.objective.of_pairs:
        return float(count_pairs(batch.segments))
    weights = weights_at(batch.loss_mask, places)
    return float(len(places)) if weights is None else weights.sum(dtype=torch.float64).item()


def _norm(run: Run) -> Tensor:
    """Return the gradient's norm, shape (), on its device."""
    gradients = [w.grad for w in run.model.parameters() if w.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if is_part(norm) else norm


def _clip(run: Run, limit: float, norm: Tensor, found: float) -> None:
    """Bound the gradient's norm, which was ``found``, by ``limit``, where that is not 0."""
    if 0.0 < limit < found:  # where it is not, a pass over all gradients would change none
        torch.nn.utils.clip_grads_with_norm_(run.model.parameters(), limit, norm)


def _check_finite(run: Run, losses: list[float], norm: float) -> None:
    if math.isfinite(norm) and all(map(math.isfinite, losses)):
        return
    run.optimizer.zero_grad(set_to_none=True)
    suspects = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
    found = f"loss {losses[suspects[0]]}" if suspects else f"gradient norm {norm}"
    rows = [row for i in suspects or range(len(losses)) for row in _odd_rows(run, i)]
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    kept = f"the checkpoint of step {run.saved_step} is good"
    if run.saved_step is None:
        kept = "there is no checkpoint yet"
    raise TrainingError(
        f"step {run.state.step + 1}: {found} where a finite one was expected, in"
        f" {', '.join(rows[:3])}{more}; nothing was updated and {kept};"
        " lower learning_rate or look at these rows"
    )


def _odd_rows(run: Run, micro: int) -> list[str]:
    """Name the rows of a micro-batch whose own loss is not finite, or all if each is finite.

    Every rank looks at all of them: a sharded model answers only to all ranks at once.
    """
    names, batch = run.row_names(micro), run.batch(micro)
    with torch.no_grad():
        losses = [loss_of(run, _row(batch, i)).total.item() for i in range(len(names))]
    odd = [n for n, loss in zip(names, losses, strict=True) if not math.isfinite(loss)]
    return odd or [name for name in names if name]


def _row(batch: Batch, index: int) -> Batch:
    return Batch._make(None if field is None else field[index : index + 1] for field in batch)
