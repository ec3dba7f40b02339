"""Small raw files and the configs that read them; everything on byte tokens."""

import json
import random

import numpy as np

from mypt.config import PrepareConfig, Source
from mypt.data.dataset import open_dataset
from mypt.data.manifest import SPLITS

WORDS = ("tea", "rain", "<User>", "ü", "Paris", "no", "🙂", "</Assistant>", "2+2")


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def chats(count, seed=0):
    """Return ``count`` different conversations of one to three exchanges."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        turns = []
        for _ in range(rng.randint(1, 3)):
            question, answer = (" ".join(rng.choices(WORDS, k=rng.randint(1, 6))) for _ in range(2))
            turns += [say("user", f"{seed}.{number}: {question}"), say("assistant", answer)]
        found.append(turns)
    return found


def write_chats(path, conversations):
    """Write conversations as JSON lines of ``messages`` and return the path."""
    lines = (json.dumps({"messages": turns}, ensure_ascii=False) for turns in conversations)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def config(*paths, format="auto", **values):
    """Return a config that reads ``paths`` on byte tokens unless ``values`` say otherwise."""
    sources = tuple(Source(path=str(path), format=format) for path in paths)
    return PrepareConfig(**{"sources": sources, "tokenization": "byte"} | values)


def texts(path):
    """Return what every row of a dataset says, tags included, by split."""
    dataset = open_dataset(path)
    return {
        split: [
            dataset.tokenizer.decode(shard.tokens[row["start"] : row["stop"]])
            for shard in dataset.shards(split)
            for row in shard.rows
        ]
        for split in SPLITS
    }


def supervised(path, split="train"):
    """Return the bytes of the supervised tokens of a split, one shard after the other."""
    dataset = open_dataset(path)
    return b"".join(
        dataset.tokenizer.decode_bytes(np.asarray(shard.tokens)[np.asarray(shard.mask) == 1])
        for shard in dataset.shards(split)
    )


def tree(folder):
    """Return every file below ``folder`` with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
