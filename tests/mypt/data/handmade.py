"""Small datasets made by hand: conversations as numbers of tokens, masks as the law wants them."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from mypt.config import MaskPolicy
from mypt.data.dataset import Dataset
from mypt.data.manifest import FileRecord, Manifest, Shard, SourceFile, SourceRecord
from mypt.data.masking import mask_from_spans
from mypt.data.shards import ShardView
from mypt.data.spans import BY_POLICY, KIND, ROLE, ROW_DTYPE, SPAN_DTYPE

DIGEST = "0" * 64


@dataclass(frozen=True)
class HandMade(Dataset):
    """A dataset whose arrays lie in memory."""

    views: tuple[ShardView, ...]

    @property
    def tokenizer(self):
        return SimpleNamespace(end_of_text=0)

    def shards(self, split):
        return tuple(view for view in self.views if view.record.split == split)


def index(conversations):
    """Return spans and rows of conversations such as ``[("user", 5), ("assistant", 3)]``.

    A turn of n tokens is one header, n - 2 of content and one end; a text row is content alone.
    """
    spans, rows, at = [], [], 0
    for number, turns in enumerate(conversations):
        start = at
        for message, (role, n) in enumerate(turns):
            parts = (("content", n),) if role == "text" else (
                ("header", 1), ("content", n - 2), ("end", 1))  # fmt: skip
            for kind, size in parts:
                if size:
                    where = (at, at + size, number, message)
                    spans.append((*where, ROLE[role], KIND[kind], BY_POLICY))
                    at += size
        rows.append((start, at, 0, number + 1, b""))
    return np.array(spans, SPAN_DTYPE), np.array(rows, ROW_DTYPE)


def shard(conversations, split="train", number=0, source=0, masked=True, first=1):
    """Return a shard whose token ids count on from ``first``, so that each is recognised."""
    spans, rows = index(conversations)
    n = int(rows["stop"][-1]) if len(rows) else 0
    mask = mask_from_spans(spans, n, MaskPolicy()) if masked else None
    return make_view(np.arange(first, first + n), mask, spans, rows, split, number, source)


def make_view(tokens, mask, spans, rows, split="train", number=0, source=0):
    """Return a shard view of given arrays."""
    name = f"{split}/shard_{number:03d}"
    tokens = np.asarray(tokens, np.uint32)

    def record(part, values):
        return values if values is None else FileRecord(name=name + part, size=1, digest=DIGEST)

    return ShardView(
        record=Shard(
            split=split,
            index=number,
            source=source,
            n_tokens=len(tokens),
            n_rows=0 if rows is None else len(rows),
            tokens=record(".bin", tokens),
            spans=record("_spans.npy", spans),
            rows=record("_rows.npy", rows),
            mask=record("_mask.bin", mask),
        ),
        tokens=tokens,
        mask=mask,
        spans=spans,
        rows=rows,
    )


def dataset(*views, weights=(1.0, 1.0)):
    """Return a dataset of ``views``; source i is called ``source i``."""
    sources = tuple(
        SourceRecord(
            name=f"source {i}",
            format="chat",
            weight=weight,
            files=(SourceFile(path=f"chat{i}.jsonl", size=1, sha256=DIGEST),),
            rows_read=1,
        )
        for i, weight in enumerate(weights)
    )
    manifest = Manifest(
        kind="chat",
        tokenizer=FileRecord(name="tokenizer_state.json", size=1, digest=DIGEST),
        tokenizer_name="byte",
        n_vocab=300,
        template=DIGEST,
        sources=sources,
        shards=tuple(view.record for view in views),
    )
    return HandMade(Path("hand"), manifest, views)
