"""Batches of windows with their masks, against nanoGPT's get_batch and TRL's collator."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from harness import Line, interleave, judge, ratio

from mypt.config import MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import prepare
from mypt.training.loader import GPTDataLoader

BATCHES = 400


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the lines of this area."""
    for shards in (1,) if quick else (1, 4):
        folder = Path(tempfile.mkdtemp()) / "chats"
        source = Source(exercises="chat", count=48_000, name="questions")
        size = 10_000_000 if shards == 1 else 300_000
        prepare(
            PrepareConfig(sources=(source,), tokenization="byte", shard_tokens=size),
            MaskPolicy(),
            folder,
        )
        for rows, length in ((8, 256), (16, 1024)):
            yield from _compare(folder, rows, length, 2 if quick else 7)


def _compare(folder: Path, rows: int, length: int, rounds: int) -> Iterator[Line]:
    loader = GPTDataLoader(folder, batch_size=rows, block_size=length, use_loss_mask=True)
    files = sorted((folder / "train").glob("shard_*.bin"))
    steps = iter(range(10**9))
    variants = {
        "ours": _many(lambda: loader.batch_at("train", next(steps))),
        "nanogpt": _many(_nanogpt(files[0], rows, length)),
        "trl": _many(_trl(files[0], rows, length)),
    }
    seconds = interleave(variants, rounds)
    n_shards = sum("_mask" not in path.name for path in files)
    for peer, against, reach in (
        ("nanogpt", "nanoGPT's get_batch, with a mask", 25.0),
        ("trl", "torch's DataLoader with TRL's collator", 40.0),
    ):
        found = ratio(seconds, "ours", peer)
        yield Line(
            work=f"loader, batch {rows} x {length:,}, {n_shards} shard{'s' * (n_shards > 1)}",
            against=against,
            reach=f">= {reach:.0f}",
            measured=str(found),
            met=judge(found.median, reach),
            note=f"{BATCHES / min(seconds['ours']):.0f} batches a processor second",
        )


def _many(draw: Callable[[], object]) -> Callable[[], None]:
    def work() -> None:
        for _ in range(BATCHES):
            draw()

    return work


def _nanogpt(path: Path, rows: int, length: int) -> Callable[[], object]:
    """A fresh memory map a batch, as against its leak, and one small tensor a row."""

    def draw() -> object:
        tokens = np.memmap(path, np.uint32, mode="r")
        mask = np.memmap(path.with_name(f"{path.stem}_mask.bin"), np.uint8, mode="r")
        starts = torch.randint(len(tokens) - length, (rows,)).tolist()
        return tuple(
            torch.stack([torch.from_numpy(of[i : i + length].astype(np.int64)) for i in places])
            for of, places in (
                (tokens, starts),
                (tokens, [i + 1 for i in starts]),
                (mask, [i + 1 for i in starts]),
            )
        )

    return draw


def _trl(path: Path, rows: int, length: int) -> Callable[[], object]:
    """Rows of lists, cut to the block before, through torch's loader and TRL's collator."""
    from datasets import Dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    tokens = np.fromfile(path, np.uint32)[: 128 * length].reshape(-1, length).astype(np.int64)
    mask = np.fromfile(path.with_name(f"{path.stem}_mask.bin"), np.uint8)[: tokens.size]
    labels = np.where(mask.reshape(tokens.shape) == 1, tokens, -100)
    table = Dataset.from_dict({"input_ids": tokens.tolist(), "labels": labels.tolist()})
    batches = torch.utils.data.DataLoader(
        table, rows, shuffle=True, drop_last=True, collate_fn=DataCollatorForLanguageModeling(0)
    )
    drawn: list[Iterator[object]] = [iter(())]

    def draw() -> object:
        try:
            return next(drawn[0])
        except StopIteration:
            drawn[0] = iter(batches)
            return next(drawn[0])

    return draw
