"""What only a CUDA GPU can tell: utilisation, the head's memory, packed attention, the masked step.

A test runs it on a CPU in miniature, so that it is in order when a GPU is lent.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from harness import Line, extra_bytes, judge
from lora_step import LORA, OurStep, PeftStep
from masked_step import spans

from mypt.config import GPTConfig, TrainConfig, load_config
from mypt.model.attention import attend, separate
from mypt.model.gpt import GPT
from mypt.model.linear_loss import linear_cross_entropy
from mypt.model.parameters import n_parameters
from mypt.training.optim import make_optimizer

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations a second by the makers' data sheets."""
PRESET = load_config(Path(__file__).parents[2] / "configs" / "150M.json").gpt()
DENSITIES = (0.1, 0.3, 0.5, 1.0)
WORKS = {
    "model FLOPs utilisation, 150M preset, block 1,024, bfloat16": ">= 50 %",
    "head: loss and gradients, bfloat16": "no slower, no more memory",
    "packed attention by blocks, T 2,048, bfloat16": "quicker than a dense mask",
    "masked step, 150M preset, by density": "1.2 times the unmasked at 0.3",
    "extra memory of a masked step, 150M preset, bfloat16": "<= 1/5 of the seed's formula",
    "LoRA step, SmolLM2-135M's sizes, bfloat16": ">= 1.35 times peft's",
}


@dataclass(frozen=True)
class Place:
    """Where it is measured, and how much at once."""

    device: str
    config: GPTConfig
    rows: int
    rounds: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens of a batch."""
        return self.rows, self.config.block_size

    def model(self) -> GPT:
        """Return a model of the config's sizes, without dropout."""
        return GPT(self.config.model_copy(update={"dropout": 0.0})).to(self.device)

    def batch(self, density: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return inputs, targets and mask."""
        ids = torch.randint(self.config.vocab_size, (2, *self.shape), device=self.device)
        return ids[0], ids[1], spans(self.shape, density).to(self.device)

    def autocast(self) -> torch.autocast:
        """Return what lets products be bfloat16."""
        return torch.autocast(self.device, dtype=torch.bfloat16)

    def time_of(self, work: Callable[[], object]) -> float:
        """Return seconds of one call, by the device's own clock."""
        for _ in range(min(3, self.rounds)):
            work()
        if self.device == "cpu":
            began = time.process_time()
            for _ in range(self.rounds):
                work()
            return (time.process_time() - began) / self.rounds
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(self.rounds):
            work()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1e3 / self.rounds

    def extra_mib(self, work: Callable[[], object]) -> float:
        """Return by how much memory rises while ``work`` runs."""
        if self.device == "cpu":
            return extra_bytes(work) / 2**20
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the lines of this area."""
    if not torch.cuda.is_available():
        for work, reach in WORKS.items():
            yield Line(work, "-", reach, "-", "no GPU was at hand")
        return
    config = PRESET.model_copy(update={"block_size": 1024})
    yield from measure(Place("cuda", config, rows=16, rounds=3 if quick else 20))


def measure(place: Place) -> Iterator[Line]:
    """Yield all lines, what matters most first: a lent machine may be taken away."""
    model = place.model()
    seconds = {density: place.time_of(_step(place, model, density)) for density in DENSITIES[::-1]}
    yield _utilisation(place, seconds[1.0])
    yield from _heads(place)
    yield _packed(place)
    for density in DENSITIES[:-1]:
        found = seconds[1.0] / seconds[density]
        yield Line(
            work=f"masked step at density {density}, 150M preset, bfloat16",
            against="the same step unmasked",
            reach=">= 1.2" if density == 0.3 else "beside",
            measured=f"{found:.2f}",
            met=judge(found, 1.2) if density == 0.3 else "-",
        )
    for density in (0.3, 1.0):
        yield _memory(place, model, density)
    yield from _adapters(place)


def _utilisation(place: Place, seconds: float) -> Line:
    name = torch.cuda.get_device_name() if place.device == "cuda" else "a processor"
    peak = next((speed for key, speed in PEAK.items() if key in name), None)
    used = flops(place) / seconds
    return Line(
        work="model FLOPs utilisation, 150M preset, block 1,024, bfloat16",
        against=f"the data sheet of {name}",
        reach=">= 50 %",
        measured=f"{100 * used / peak:.0f} %" if peak else f"{used / 1e12:.2g} TFLOP/s",
        met=judge(used / peak, 0.5) if peak else "-",
    )


def flops(place: Place) -> float:
    """Return operations of one step: six a weight and token, and attention's two products."""
    config = place.config
    with torch.device("meta"):
        weights = n_parameters(GPT(config)) - config.block_size * config.n_embd
    tokens = place.rows * config.block_size
    return tokens * (6 * weights + 6 * config.n_layer * config.n_embd * config.block_size)


def _step(place: Place, model: GPT, density: float) -> Callable[[], None]:
    """Return one whole optimizer step."""
    optimizer = make_optimizer(model, TrainConfig())
    idx, targets, mask = place.batch(density)

    def work() -> None:
        with place.autocast():
            loss = model.loss(idx, targets, mask).mean
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def _packed(place: Place) -> Line:
    length = 2 * place.config.block_size
    segments = (torch.rand(place.rows, length, device=place.device) < 1 / 150).cumsum(1)
    shape = (3, place.rows, length, 12, 64)
    qkv = torch.randn(shape, device=place.device, dtype=torch.bfloat16, requires_grad=True)
    found = []
    for head_width in (64, 0):  # by blocks, and by a dense mask

        def work(head_width: int = head_width) -> None:
            gathered = attend(*qkv.unbind(0), separate(segments, head_width=head_width))
            torch.autograd.grad(gathered.sum(), qkv)

        found.append((place.time_of(work), place.extra_mib(work)))
    (ours, our_mib), (dense, dense_mib) = found
    return Line(
        work="packed attention by blocks, T 2,048, bfloat16, forward and backward",
        against="scaled_dot_product_attention with a dense mask",
        reach="quicker",
        measured=f"{dense / ours:.2f}; {our_mib:.0f} of {dense_mib:.0f} MiB",
        met=judge(dense / ours, 1.0),
    )


def _heads(place: Place) -> Iterator[Line]:
    """Compare loss and gradients of the vocabulary projection, all in bfloat16."""
    config, device = place.config, place.device
    n_rows = place.rows * config.block_size
    rows = torch.randn(n_rows, config.n_embd, device=device, requires_grad=True)
    weight = torch.randn(config.vocab_size, config.n_embd, device=device, requires_grad=True)
    targets = torch.randint(config.vocab_size, (n_rows,), device=device)
    found = {}
    for name, loss in _losses(rows, weight, targets).items():

        def work(loss: Callable[[], torch.Tensor] = loss) -> None:
            with place.autocast():
                total = loss()
            torch.autograd.grad(total, (rows, weight))

        found[name] = place.time_of(work), place.extra_mib(work)
    ours, our_mib = found.pop("ours")
    for name, (seconds, mib) in found.items():
        yield Line(
            work="head: loss and gradients, bfloat16",
            against=name,
            reach="no slower, no more memory",
            measured=f"{seconds / ours:.2f}; {our_mib:.0f} of {mib:.0f} MiB",
            met="yes" if ours <= seconds and our_mib <= mib else "no",
        )
    for package in ("cut_cross_entropy", "liger_kernel"):
        if find_spec(package) is None or place.device == "cpu":
            yield Line(
                "head: loss and gradients, bfloat16", package, "no slower, no more memory", "-",
                f"pip install {package.replace('_', '-')} first, and a GPU",
            )  # fmt: skip


def _losses(
    rows: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> dict[str, Callable[[], torch.Tensor]]:
    """Return the sum of losses by ours, by all logits, and by peers that are installed."""
    losses: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: linear_cross_entropy(rows, weight, targets),
        "logits and cross-entropy": lambda: F.cross_entropy(
            (rows @ weight.T).float(), targets, reduction="sum"
        ),
    }
    if not rows.is_cuda:  # both are Triton's
        return losses
    if find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy as cut

        losses["cut-cross-entropy"] = lambda: cut(
            rows.bfloat16(), weight.bfloat16(), targets, reduction="sum"
        )
    if find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        fused = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        losses["Liger"] = lambda: fused(weight.bfloat16(), rows.bfloat16(), targets)
    return losses


def _memory(place: Place, model: GPT, density: float) -> Line:
    """Compare what a masked step needs beside its weights with the seed's formula."""
    idx, targets, mask = place.batch(density)

    def extra(loss: Callable[[], torch.Tensor]) -> float:
        def work() -> None:
            with place.autocast():
                total = loss()
            total.backward()
            model.zero_grad(set_to_none=True)

        return place.extra_mib(work)

    def seeds() -> torch.Tensor:
        logits = model.lm_head(model.hidden(idx))
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return (losses * mask.flatten()).sum() / mask.sum()

    ours, theirs = extra(lambda: model.loss(idx, targets, mask).mean), extra(seeds)
    limit = 1 / 3 if density == 1.0 else 1 / 5
    return Line(
        work=f"extra memory of a masked step at density {density}, 150M preset, bfloat16",
        against="the seed's formula",
        reach="<= 1/3" if density == 1.0 else "<= 1/5",
        measured=f"{ours:.0f} of {theirs:.0f} MiB",
        met=judge(limit, ours / max(theirs, 1e-9)),
    )


def _adapters(place: Place) -> Iterator[Line]:
    """Compare a LoRA step of SmolLM2-135M's sizes with peft's, and with Liger's kernels beneath."""
    if find_spec("peft") is None:
        yield Line("LoRA step", "transformers with peft", ">= 1.35", "-", "pip install peft first")
        return
    liger = place.device == "cuda" and find_spec("liger_kernel") is not None
    for name in ("peft", "peft and Liger")[: 1 + liger]:
        if name != "peft":
            from liger_kernel.transformers import apply_liger_kernel_to_llama

            apply_liger_kernel_to_llama()
        ours, theirs = OurStep(LORA, bf16=True), PeftStep(bf16=True)
        found = place.time_of(theirs.to(place.device)) / place.time_of(ours.to(place.device))
        yield Line(
            work=f"LoRA step, SmolLM2-135M's sizes, rank {LORA.rank}, 2 x 512, density 0.3",
            against=f"transformers with {name}",
            reach=">= 1.35",
            measured=f"{found:.2f}",
            met=judge(found, 1.35),
        )
