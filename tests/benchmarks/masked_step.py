"""One optimizer step over supervised tokens, against the seed's formula on the same model."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from harness import Line, extra_bytes, interleave, judge, ratio

from mypt.config import GPTConfig, TrainConfig
from mypt.model.gpt import GPT
from mypt.model.objectives import Objective
from mypt.training.optim import make_optimizer

SMALL = GPTConfig(block_size=256, vocab_size=50304, n_layer=4, n_head=4, n_embd=256)
DEMO = GPTConfig(block_size=128, vocab_size=272, n_layer=3, n_head=4, n_embd=128)
GPT2 = GPTConfig(block_size=256, vocab_size=50304, n_layer=12, n_head=12, n_embd=768)
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
