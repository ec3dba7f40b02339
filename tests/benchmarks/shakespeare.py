"""Tiny Shakespeare in nanoGPT's README shape: the recipe at equal processor time."""

import os
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from harness import Line, interleave, judge, ratio
from numpy.typing import NDArray

from mypt.config import GPTConfig, TrainConfig, load_config
from mypt.model.compiling import compile_blocks
from mypt.model.gpt import GPT
from mypt.training.compute import seed_everything
from mypt.training.optim import learning_rate_at, make_optimizer

PATH = "MYPT_SHAKESPEARE"
SHAPE = GPTConfig(block_size=64, vocab_size=65, n_layer=4, n_head=4, n_embd=128)
ROWS, STEPS, SEEDS = 12, 2000, (0, 1, 2)
NANOGPT = TrainConfig(
    learning_rate=1e-3, max_iters=STEPS, warmup_iters=100, beta2=0.99, grad_clip=1.0
)
OURS = load_config(Path(__file__).parents[2] / "configs" / "tiny_modern.json").model_copy(
    update=SHAPE.model_dump(include={"block_size", "vocab_size", "n_layer", "n_head", "n_embd"})
    | {"rope_base": 100.0, "grad_clip": 0.0}
)
"""The preset in nanoGPT's shape; places are fewer, and clipping takes time."""


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the lines of this area; the text is named by an environment variable."""
    if not (path := os.environ.get(PATH)):
        named = f"set {PATH} to tinyshakespeare.txt"
        yield Line("tiny Shakespeare, 0.8 M parameters", "nanoGPT", "<= 1.58", "-", "-", named)
        return
    text = np.frombuffer(Path(path).read_bytes(), np.uint8)
    ids = np.unique(text, return_inverse=True)[1].astype(np.int64)
    learn, score = np.split(ids, [int(0.9 * len(ids))])
    theirs, ours = Recipe(SHAPE, NANOGPT, learn, 0), _ours(learn, 0, STEPS)
    pairs = {"ours": lambda: ours.go(10), "nanogpt": lambda: theirs.go(10)}
    found = ratio(interleave(pairs, 3 if quick else 15), "ours", "nanogpt")
    yield Line(
        "tiny Shakespeare: a step of 12 x 64 characters", "nanoGPT's step", "-", str(found), "-"
    )
    if quick:
        return
    theirs = Recipe(SHAPE, NANOGPT, learn, 0)
    theirs.go(STEPS)
    steps = round(STEPS * found.median)
    losses = [_trained(learn, seed, steps).score(score) for seed in SEEDS]
    yield _mean(
        "tiny Shakespeare, loss on the whole validation split",
        f"nanoGPT's {STEPS} steps: {theirs.score(score):.4f}",
        1.58,
        losses,
        f"equal processor time, {steps} steps",
    )
    yield _mean(
        "tiny Shakespeare, a seventh of the time",
        "nanoGPT's published 1.88",
        1.88,
        [_trained(learn, seed, steps // 7).score(score) for seed in SEEDS],
        f"{steps // 7} steps",
    )


def _mean(work: str, against: str, reach: float, losses: list[float], note: str) -> Line:
    mean = statistics.mean(losses)
    return Line(
        work=work,
        against=against,
        reach=f"<= {reach}, mean of three seeds",
        measured=f"{mean:.4f}",
        met=judge(-mean, -reach),
        note=f"{', '.join(f'{loss:.4f}' for loss in losses)}; {note}",
    )


class Recipe:
    """A model in training on random windows of a text."""

    def __init__(
        self, model: GPTConfig, train: TrainConfig, ids: NDArray[np.int64], seed: int
    ) -> None:
        seed_everything(seed)
        self.model, self.train, self.ids = GPT(model), train, ids
        self.optimizer = make_optimizer(self.model, train)
        self.random = np.random.default_rng(seed)
        self.step, self.modern = 0, model.pos_encoding == "rope"
        if self.modern:
            compile_blocks(self.model)

    def go(self, n: int) -> None:
        """Make ``n`` steps."""
        for _ in range(n):
            places = self.random.integers(len(self.ids) - SHAPE.block_size, size=ROWS)
            rows = torch.from_numpy(self.ids[places[:, None] + np.arange(SHAPE.block_size + 1)])
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate_at(self.step, self.train)
            inputs, targets = rows[:, :-1], rows[:, 1:]
            if self.modern:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = self.model.loss(inputs, targets).mean
            else:
                loss = self.model(inputs, targets)[1]
            loss.backward()
            if self.train.grad_clip:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.train.grad_clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1

    @torch.no_grad()
    def score(self, ids: NDArray[np.int64]) -> float:
        """Return nats a character over the whole of ``ids``, in float32."""
        self.model.eval()
        n = (len(ids) - 1) // SHAPE.block_size * SHAPE.block_size
        inputs, targets = (
            torch.from_numpy(part.reshape(-1, SHAPE.block_size)) for part in (ids[:n], ids[1:][:n])
        )
        parts = zip(inputs.split(256), targets.split(256), strict=True)
        return sum(self.model.loss(*part).total.item() for part in parts) / n


def _ours(ids: NDArray[np.int64], seed: int, steps: int) -> Recipe:
    return Recipe(OURS.gpt(), OURS.model_copy(update={"max_iters": steps}), ids, seed)


def _trained(ids: NDArray[np.int64], seed: int, steps: int) -> Recipe:
    recipe = _ours(ids, seed, steps)
    recipe.go(steps)
    return recipe
