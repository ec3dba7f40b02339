"""A model's loss over held-out conversations, against a plain loop with transformers."""

import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from harness import Line, extra_bytes, interleave, judge, ratio
from waiting import WORDS

from mypt.config import Architecture, GPTConfig, MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import Dataset, open_dataset, prepare
from mypt.evaluation.token_scores import score_tokens
from mypt.inference.huggingface.layouts import write_layout
from mypt.inference.huggingface.weights import to_hf
from mypt.model.gpt import GPT

SIZES = Architecture(
    block_size=1024, vocab_size=50_304, n_layer=4, n_head=4, n_embd=256, mlp_width=704,
    mlp_type="swiglu", norm_type="rmsnorm", pos_encoding="rope",
)  # fmt: skip
ROWS, BATCH = 160, 8


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the lines of this area."""
    with tempfile.TemporaryDirectory() as folder:
        data = _conversations(Path(folder))
        ours, theirs = _Ours(data), _Theirs(data)
        off = abs(ours() - theirs())
        assert off < 1e-4, f"the two losses differ by {off}"
        memory = [extra_bytes(work) / 2**20 for work in (ours, theirs)]
        seconds = interleave({"ours": ours, "theirs": theirs}, 2 if quick else 5)
    found, rate = ratio(seconds, "ours", "theirs"), ours.tokens / min(seconds["ours"])
    yield Line(
        work=f"evaluate: loss over {ROWS} conversations, density {ours.density:.2f}, float32",
        against=f"transformers, {BATCH} padded rows at a time, mean over labels",
        reach=">= 1.5",
        measured=str(found),
        met=judge(found.median, 1.5),
        note=f"{rate:,.0f} tokens a processor second; {memory[0]:.0f} and {memory[1]:.0f} MiB"
        f" beside the weights; equal within {off:.0e}; ours also says each token's rank and class",
    )


def _conversations(folder: Path) -> Dataset:
    drawn = random.Random(0)
    with (folder / "chats.jsonl").open("w") as file:
        for _ in range(ROWS):
            turns = [
                {"role": role, "content": " ".join(drawn.choices(WORDS, k=drawn.randint(*words)))}
                for _ in range(drawn.randint(1, 4))
                for role, words in (("user", (20, 110)), ("assistant", (5, 60)))
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    config = PrepareConfig(
        sources=(Source(path=str(folder / "chats.jsonl")),), tokenization="gpt2", val_fraction=0.99
    )
    return open_dataset(prepare(config, MaskPolicy(), folder / "data").path)


class _Ours:
    """The scores of every supervised token, as ``mypt evaluate`` has them."""

    def __init__(self, data: Dataset) -> None:
        torch.manual_seed(0)
        self.data, self.model = data, GPT(GPTConfig(**SIZES.model_dump())).eval()
        masks = [shard.mask for shard in data.shards("val")]
        self.tokens = sum(len(mask) for mask in masks)
        self.density = float(np.concatenate(masks).mean())

    def __call__(self) -> float:
        return score_tokens(self.model, self.data).mean


class _Theirs:
    """The same model and rows; labels of -100 where nothing is supervised."""

    def __init__(self, data: Dataset) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        source = GPT(GPTConfig(**SIZES.model_dump()))
        self.model = LlamaForCausalLM(LlamaConfig(**write_layout("llama", SIZES))).eval()
        weights = to_hf("llama", SIZES, dict(source.named_parameters()), torch.float32)
        self.model.load_state_dict(weights, strict=False)
        self.model.tie_weights()
        self.rows = [
            (torch.from_numpy(shard.tokens[start:stop].astype(np.int64)),
             torch.from_numpy(np.array(shard.mask[start:stop])).bool())
            for shard in data.shards("val")
            for start, stop in zip(shard.rows["start"], shard.rows["stop"], strict=True)
        ]  # fmt: skip

    @torch.no_grad()
    def __call__(self) -> float:
        total = count = 0.0
        for at in range(0, len(self.rows), BATCH):
            some = self.rows[at : at + BATCH]
            longest = max(len(ids) for ids, _ in some)
            ids = torch.zeros(len(some), longest, dtype=torch.long)
            seen, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
            for row, (tokens, mask) in enumerate(some):
                ids[row, : len(tokens)], seen[row, : len(tokens)] = tokens, 1
                labels[row, : len(tokens)] = torch.where(mask, tokens, -100)
            n = int((labels[:, 1:] != -100).sum())
            loss = self.model(input_ids=ids, attention_mask=seen, labels=labels, use_cache=False)
            total, count = total + loss.loss.item() * n, count + n
        return total / count
