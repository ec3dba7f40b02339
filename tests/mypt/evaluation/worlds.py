"""A base model and what was fine-tuned from it, as small as they get."""

from contextlib import contextmanager

import pytest
import torch

from mypt.config import MaskPolicy, PrepareConfig, Preset, Source
from mypt.data.dataset import prepare, tokenize
from mypt.training.events import Finished
from mypt.training.loop import train
from mypt.training.plan import plan_run

TINY = {
    "block_size": 64, "vocab_size": 272, "n_layer": 1, "n_head": 2, "n_embd": 16,
    "batch_size": 4, "max_iters": 2, "learning_rate": 1e-3, "warmup_iters": 1,
    "eval_interval": 2, "eval_iters": 1, "threads": 1, "device": "cpu",
}  # fmt: skip
LEARNED = {"use_loss_mask": True, "batching": "packed", "learning_rate": 0.1}


@contextmanager
def make_world(folder):
    """A base model on exercise statements, a chat model on exercise chats, and their data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPT_HOME", str(folder / "runs"))
        torch.set_num_threads(1)
        text = PrepareConfig(sources=(Source(exercises="text", count=640),), tokenization="byte")
        chat = PrepareConfig(sources=(Source(exercises="chat", count=120),), tokenization="byte")
        base_data = tokenize(text, folder / "runs" / "datasets" / "text")
        chat_data = prepare(chat, MaskPolicy(), folder / "runs" / "datasets" / "chat")
        base = fit("base", base_data.path)
        sft = fit("sft", chat_data.path, "base", **LEARNED)
        yield {"home": folder / "runs", "base": base, "sft": sft, "chat": chat_data}


def fit(name, dataset, init_from=None, **changes):
    plan = plan_run(Preset.model_validate(TINY | changes), name, dataset, init_from=init_from)
    return next(e.checkpoint for e in train(plan) if isinstance(e, Finished))
