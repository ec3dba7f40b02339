"""What only a CUDA GPU can tell: model FLOPs utilisation, the head's memory, the masked step."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from harness import Line, judge
from masked_step import spans

from mypt.config import GPTConfig, TrainConfig, load_config
from mypt.model.attention import attend, separate
from mypt.model.gpt import GPT
from mypt.model.linear_loss import linear_cross_entropy
from mypt.training.optim import make_optimizer

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations a second by the makers' data sheets."""
ROWS, LENGTH = 16, 1024
HEAD = "head: loss and gradients, against cut-cross-entropy"


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the lines of this area."""
    if not torch.cuda.is_available():
        for work, reach in (
            ("model FLOPs utilisation, 150M preset, block 1,024, bfloat16", ">= 50 %"),
            (HEAD, "its memory, no slower"),
            ("masked step at density 0.3", "about 1.2 times the unmasked"),
            (
                "extra memory of a masked step, 150M preset, bfloat16",
                "<= 1/5 of the seed's formula",
            ),
            ("packed attention by blocks, T 2,048, bfloat16", "quicker than a dense mask"),
        ):
            yield Line(work, "-", reach, "-", "no GPU was at hand")
        return
    presets = Path(__file__).parents[2] / "configs"
    config = load_config(presets / "150M.json").gpt().model_copy(update={"block_size": LENGTH})
    model = GPT(config.model_copy(update={"dropout": 0.0})).cuda()
    steps = {density: step(model, density) for density in (1.0, 0.3)}
    seconds = {density: time_of(work, 3 if quick else 20) for density, work in steps.items()}
    name = torch.cuda.get_device_name()
    peak = next((speed for key, speed in PEAK.items() if key in name), None)
    used = flops(config) / seconds[1.0]
    yield Line(
        work="model FLOPs utilisation, 150M preset, block 1,024, bfloat16",
        against=f"the data sheet of {name}",
        reach=">= 50 %",
        measured=f"{100 * used / peak:.0f} %" if peak else f"{used / 1e12:.0f} TFLOP/s",
        met=judge(used / peak, 0.5) if peak else "-",
        note=f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB",
    )
    yield Line(
        work="masked step at density 0.3",
        against="the same step unmasked",
        reach=">= 1.2",
        measured=f"{seconds[1.0] / seconds[0.3]:.2f}",
        met=judge(seconds[1.0] / seconds[0.3], 1.2),
    )
    for density in (0.3, 1.0):
        yield _memory(model, density)
    yield from _heads(config)
    yield _packed()


def _packed() -> Line:
    segments = (torch.rand(ROWS, 2 * LENGTH, device="cuda") < 1 / 150).cumsum(1)
    shape = (3, ROWS, 2 * LENGTH, 12, 64)
    qkv = torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    found = []
    for head_width in (64, 0):  # by blocks, and by a dense mask

        def work(head_width: int = head_width) -> None:
            gathered = attend(*qkv.unbind(0), separate(segments, head_width=head_width))
            torch.autograd.grad(gathered.sum(), qkv)

        found.append((time_of(work, 5), extra_mib(work)))
    (ours, our_mib), (dense, dense_mib) = found
    return Line(
        work="packed attention by blocks, T 2,048, bfloat16, forward and backward",
        against="scaled_dot_product_attention with a dense mask",
        reach="quicker",
        measured=f"{dense / ours:.2f}; {our_mib:.0f} of {dense_mib:.0f} MiB",
        met=judge(dense / ours, 1.0),
    )


def step(model: GPT, density: float) -> Callable[[], None]:
    """Return one whole optimizer step."""
    optimizer = make_optimizer(model, TrainConfig())
    idx, targets = torch.randint(model.config.vocab_size, (2, ROWS, LENGTH), device="cuda")
    mask = spans((ROWS, LENGTH), density).cuda()

    def work() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model.loss(idx, targets, mask).mean
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def flops(config: GPTConfig) -> float:
    """Return operations of one step: six a weight and token, and attention's two products."""
    with torch.device("meta"):
        weights = GPT(config).n_parameters() - config.block_size * config.n_embd
    tokens = ROWS * LENGTH
    return tokens * (6 * weights + 6 * config.n_layer * config.n_embd * LENGTH)


def time_of(work: Callable[[], None], rounds: int) -> float:
    """Return seconds of one call, by the device's own clock."""
    for _ in range(3):
        work()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(rounds):
        work()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1e3 / rounds


def extra_mib(work: Callable[[], None]) -> float:
    """Return by how much the device's memory rises while ``work`` runs."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _heads(config: GPTConfig) -> Iterator[Line]:
    """Compare loss and gradients of the vocabulary projection, all in bfloat16."""
    rows = torch.randn(ROWS * LENGTH, config.n_embd, device="cuda", requires_grad=True)
    weight = torch.randn(config.vocab_size, config.n_embd, device="cuda", requires_grad=True)
    targets = torch.randint(config.vocab_size, (len(rows),), device="cuda")
    losses: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: linear_cross_entropy(rows, weight, targets),
        "logits and cross-entropy": lambda: F.cross_entropy(
            (rows @ weight.T).float(), targets, reduction="sum"
        ),
    }
    if find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy as cut

        losses["cut-cross-entropy"] = lambda: cut(
            rows.bfloat16(), weight.bfloat16(), targets, reduction="sum"
        )
    found = {}
    for name, loss in losses.items():

        def work(loss: Callable[[], torch.Tensor] = loss) -> None:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                total = loss()
            torch.autograd.grad(total, (rows, weight))

        found[name] = time_of(work, 5), extra_mib(work)
    ours, our_mib = found.pop("ours")
    for name, (seconds, mib) in found.items():
        yield Line(
            work="head: loss and gradients, bfloat16",
            against=name,
            reach="no slower, no more memory",
            measured=f"{seconds / ours:.2f}; {our_mib:.0f} of {mib:.0f} MiB",
            met="yes" if ours <= seconds and our_mib <= mib else "no",
        )
    if "cut-cross-entropy" not in found:
        yield Line(HEAD, "-", "its memory, no slower", "-", "pip install cut-cross-entropy first")


def _memory(model: GPT, density: float) -> Line:
    """Compare what a masked step needs beside its weights with the seed's formula."""
    idx, targets = torch.randint(model.config.vocab_size, (2, ROWS, LENGTH), device="cuda")
    mask = spans((ROWS, LENGTH), density).cuda()

    def extra(loss: Callable[[], torch.Tensor]) -> float:
        def work() -> None:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                total = loss()
            total.backward()
            model.zero_grad(set_to_none=True)

        return extra_mib(work)

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
        met=judge(limit, ours / theirs),
    )
