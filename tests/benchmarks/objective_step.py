"""What weights, objectives and losses by group cost beside plain masked steps."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from harness import Line, extra_bytes, interleave, ratio
from masked_step import DEMO, SMALL, Setting, Step

from mypt.config import GPTConfig, MaskPolicy, PrepareConfig, Preset, Source
from mypt.data.dataset import prepare
from mypt.training import step
from mypt.training.lineage import RunContext
from mypt.training.plan import plan_run
from mypt.training.run import open_run

DEARER = {"weights": 0.02, "dft": 0.02, "z_loss": 0.02, "eaft": 0.10}
"""How much more time than plain steps each may take."""


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the lines of this area."""
    if quick:
        yield _dearer(Setting("small", SMALL, 8, 0.3, bf16=True), "weights", DEARER["weights"])
        return
    for bf16 in (True, False):
        for what, most in DEARER.items():
            yield _dearer(Setting("small", SMALL, 8, 0.3, bf16=bf16), what, most)
    for name, model, tokenization, rows in (
        ("demo", DEMO, "byte", 16),
        ("small", SMALL, "gpt2", 8),
    ):
        yield _telling(name, model, tokenization, rows)


def _telling(name: str, model: GPTConfig, tokenization: str, rows: int) -> Line:
    """Return what part of a run's steps, on the examples' chats, goes to telling groups' losses."""
    folder = Path(tempfile.mkdtemp())
    sources = (Source(path=str(Path(__file__).parents[2] / "examples" / "chats")),)
    config = PrepareConfig(sources=sources, tokenization=tokenization)
    data = prepare(config, MaskPolicy(), folder / "data")
    size = model.model_dump(exclude={"dropout"})
    preset = Preset(batching="packed", use_loss_mask=True, batch_size=rows, max_lost=1.0, **size)
    run = open_run(plan_run(preset, "m", data.path), folder, RunContext(), None, ())
    true_read, told = step._read, []

    def timed(run: Any, mine: Any, losses: torch.Tensor, terms: Any) -> list[float]:
        started = time.process_time()
        run.ranks.merge(dict(enumerate(losses.tolist())), len(losses))  # as without groups
        between = time.process_time()
        found = true_read(run, mine, losses, terms)
        told.append(time.process_time() - between - (between - started))
        return found

    step._read = timed
    try:
        seconds = interleave({"step": lambda: step.take_step(run)}, 15)["step"]
    finally:
        step._read = true_read
    shares = sorted(part / whole for part, whole in zip(told[1:], seconds, strict=True))
    low, median, high = statistics.quantiles(shares, n=4, method="inclusive")
    return Line(
        work=f"reading a step's losses by source, class and role, {name}",
        against="the step itself",
        reach="<= 1 % of it",
        measured=f"{median:.2%} ({low:.2%}-{high:.2%})",
        met="yes" if median <= 0.01 else "no",
        note=f"{1000 * statistics.median(seconds):.0f} ms a step",
    )


def _dearer(setting: Setting, what: str, most: float) -> Line:
    """Compare steps of weights and objectives with the plain step: time and memory."""
    plain, other = Step(setting), Step(setting, what=what)
    found = ratio(interleave({"plain": plain, "other": other}, 9), "plain", "other")
    memory = [extra_bytes(step) for step in (plain, other)]
    return Line(
        work=f"masked step with {what}, {setting}",
        against="the plain masked step",
        reach=f"<= {most:.0%} more time, the same memory",
        measured=f"{1 / found.median - 1:+.1%} time"
        f" ({1 / found.high - 1:+.1%} to {1 / found.low - 1:+.1%})",
        met="yes" if 1 / found.median <= 1 + most else "no",
        note=f"{memory[1] / 2**20:.1f} of {memory[0] / 2**20:.1f} MiB beside weights",
    )
