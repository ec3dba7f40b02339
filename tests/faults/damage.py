"""Files of a dataset and of a checkpoint, and what can happen to their bytes."""

import random
from collections.abc import Callable
from pathlib import Path

CUT, ZEROED, EMPTIED, SWAPPED, MISSING = "cut", "zero-tailed", "emptied", "swapped", "missing"
HARMS = (CUT, ZEROED, EMPTIED, SWAPPED, MISSING)
DATASET = {
    "tokens": "*/shard_[0-9][0-9][0-9].bin",
    "mask": "*/shard_*_mask.bin",
    "spans": "*/shard_*_spans.npy",
    "rows": "*/shard_*_rows.npy",
    "metadata": "dataset_metadata.json",
    "tokenizer": "tokenizer_state.json",
}
CHECKPOINT = {
    "weights": "model.safetensors",
    "optimizer": "optimizer.safetensors",
    "history": "history.safetensors",
    "config": "config.json",
    "trainer state": "trainer_state.json",
    "tokenizer": "tokenizer_state.json",
    "lineage": "lineage.json",
}


def flip(path: Path, dice: random.Random) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def tear(path: Path, harm: str, strangers: list[Path], dice: random.Random) -> None:
    """Do a file harm; ``strangers`` are files of the same kind from elsewhere."""
    data = path.read_bytes()
    keep = dice.randrange(len(data))
    zeros = bytes(len(data) - keep)
    changes: dict[str, Callable[[], object]] = {
        CUT: lambda: path.write_bytes(data[:keep]),
        # Some files end in zeros anyway.
        ZEROED: lambda: path.write_bytes(data[:keep] + zeros if any(data[keep:]) else zeros),
        EMPTIED: lambda: path.write_bytes(b""),
        SWAPPED: lambda: path.write_bytes(dice.choice(strangers).read_bytes()),
        MISSING: path.unlink,
    }
    changes[harm]()
