"""One optimizer step over supervised tokens, against the seed's formula on the same model."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness import Line, extra_bytes, interleave, judge, ratio

from mypt.config import GPTConfig, MaskPolicy, PrepareConfig, Preset, Source, TrainConfig
from mypt.data.dataset import prepare
from mypt.model.gpt import GPT
from mypt.model.objectives import Objective
from mypt.training import step
from mypt.training.lineage import RunContext
from mypt.training.optim import make_optimizer
from mypt.training.plan import plan_run
from mypt.training.run import open_run

SMALL = GPTConfig(block_size=256, vocab_size=50304, n_layer=4, n_head=4, n_embd=256)
DEMO = GPTConfig(block_size=128, vocab_size=272, n_layer=3, n_head=4, n_embd=128)
GPT2 = GPTConfig(block_size=256, vocab_size=50304, n_layer=12, n_head=12, n_embd=768)
DEARER = {"weights": 0.02, "dft": 0.02, "z_loss": 0.02, "eaft": 0.10}
"""How much more time than plain steps each may take."""
SEED = "the seed's formula, same model, eager"


@dataclass(frozen=True)
class Setting:
    """What one comparison runs on."""

    name: str
    model: GPTConfig
    rows: int
    density: float
    bf16: bool

    def __str__(self) -> str:
        dtype = "bfloat16" if self.bf16 else "float32"
        return f"{self.name}, {dtype}, density {self.density}"


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the lines of this area."""
    if quick:
        yield _faster(Setting("small", SMALL, 8, 0.3, bf16=True), 2, 4.0)
        return
    for density, reach in ((0.1, 6.0), (0.3, 4.0), (0.5, 3.0), (1.0, 2.3)):
        yield _faster(Setting("small", SMALL, 8, density, bf16=True), 3, reach)
    yield _faster(Setting("small", SMALL, 8, 0.3, bf16=False), 3, 2.7)
    yield _faster(Setting("124M", GPT2, 2, 0.3, bf16=True), 3, 1.4)
    for density, share in ((0.3, 1 / 5), (0.5, 1 / 5), (1.0, 1 / 3)):
        yield _smaller(Setting("small", SMALL, 8, density, bf16=True), share)
    yield _beside_compiled(Setting("small", SMALL, 8, 0.3, bf16=True))
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


def _faster(setting: Setting, rounds: int, reach: float) -> Line:
    seconds = interleave({"ours": Step(setting), "seed": Step(setting, seeds=True)}, rounds)
    found = ratio(seconds, "ours", "seed")
    rate = setting.rows * setting.model.block_size / min(seconds["ours"])
    return Line(
        work=f"masked step, {setting}",
        against=SEED,
        reach=f">= {reach}",
        measured=str(found),
        met=judge(found.median, reach),
        note=f"{rate:.0f} tokens a processor second",
    )


def _smaller(setting: Setting, share: float) -> Line:
    found = []
    for seeds in (False, True):
        step = Step(setting, seeds=seeds)
        step()
        found.append(extra_bytes(step) / 2**20)
    return Line(
        work=f"extra memory of a masked step, {setting}",
        against=SEED,
        reach=f"<= 1/{1 / share:.0f}",
        measured=f"1/{found[1] / found[0]:.2g}",
        met="yes" if found[0] <= share * found[1] else "no",
        note=f"{found[0]:.0f} of {found[1]:.0f} MiB",
    )


def _beside_compiled(setting: Setting) -> Line:
    seeds = Step(setting, seeds=True)
    seeds.model.forward = torch.compile(seeds.model.forward)
    found = ratio(interleave({"ours": Step(setting), "seed": seeds}, 3), "ours", "seed")
    against = "the seed's formula, same model, its logits compiled"
    return Line(f"masked step, {setting}", against, "beside", str(found), "-")


class Step:
    """Forward, backward, clipping and the same fused AdamW on either side."""

    def __init__(self, setting: Setting, *, seeds: bool = False, what: str = "") -> None:
        torch.manual_seed(0)
        self.setting, self.seeds = setting, seeds
        self.model = GPT(setting.model)
        self.optimizer = make_optimizer(self.model, TrainConfig())
        shape = (setting.rows, setting.model.block_size)
        self.idx, self.targets = torch.randint(setting.model.vocab_size, (2, *shape)).unbind()
        self.mask = spans(shape, setting.density)
        if what == "weights":
            self.mask = self.mask * torch.rand(shape).add_(0.5)
        z_loss = 1e-4 if what == "z_loss" else 0.0
        self.objective = Objective(what if what in ("dft", "eaft") else "nll", z_loss)

    def __call__(self) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.setting.bf16):
            loss = self._by_formula() if self.seeds else self._by_mypt()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _by_mypt(self) -> torch.Tensor:
        return self.model.loss(self.idx, self.targets, self.mask, objective=self.objective).mean

    def _by_formula(self) -> torch.Tensor:
        logits = self.model(self.idx)[0]
        losses = F.cross_entropy(logits.flatten(0, 1), self.targets.flatten(), reduction="none")
        mask = self.mask.flatten()
        return (losses * mask).sum() / mask.sum()


def spans(shape: tuple[int, int], density: float) -> torch.Tensor:
    """Return a mask of turns: stretches of 16 supervised tokens, as many as density asks for."""
    turns = torch.rand(shape[0], shape[1] // 16)
    wanted = round(turns.numel() * density)
    chosen = torch.zeros(turns.numel(), dtype=torch.uint8)
    chosen[turns.flatten().argsort()[:wanted]] = 1
    return chosen.view(turns.shape).repeat_interleave(16, dim=1)
