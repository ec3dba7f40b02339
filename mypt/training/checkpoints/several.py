"""Several checkpoints that answer beside each other: one base's weights are held once.

A file of its own: whoever reads one checkpoint gets plain weights (D125), and only a server of
several has a reason to let adapters stand beside their base instead.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mypt import home
from mypt.data.tokenizer import Tokenizer
from mypt.model.gpt import GPT
from mypt.model.lora import adapt, merged
from mypt.model.parameters import make_model, on_weights
from mypt.training.checkpoints.checkpoint import (
    Checkpoint,
    find_base,
    load_checkpoint,
    load_model,
    load_weights,
)
from mypt.training.lineage import Lineage, read_lineage

_Held = tuple[str, str]
"""Digest of weights, and what training rounded them to."""


def load_models(
    names: Sequence[str | Path],
) -> list[tuple[GPT, Tokenizer, Checkpoint]]:
    """Return what :func:`load_model` does for each name, without the checkpoints' own weights.

    Where several name the same base by digest, or one is that base, its weights are in memory
    once, and each adapter's own beside them.

    Args:
        names: As for :func:`load_model`.

    Raises:
        CheckpointError: As :func:`load_checkpoint`.
    """
    paths = [home.checkpoint_to_use(name) for name in names]
    held = [_held(read_lineage(path)) for path in paths]
    shared, bases = Counter(held), dict[_Held, GPT]()
    found = (
        load_model(path) if shared[key] == 1 else _beside(path, key, bases)
        for path, key in zip(paths, held, strict=True)
    )
    return [(model, words, replace(checkpoint, weights={})) for model, words, checkpoint in found]


def _held(lineage: Lineage) -> _Held:
    """Return which weights a model needs in memory, its adapter aside."""
    if lineage.config.lora and lineage.parent:
        return lineage.parent.weights, lineage.config.weight_dtype
    return lineage.weights, "float32"


def _beside(path: Path, held: _Held, bases: dict[_Held, GPT]) -> tuple[GPT, Tokenizer, Checkpoint]:
    """Return a model whose base is taken from ``bases``, or put there."""
    own = load_checkpoint(path, merge=False)
    lora, parent = own.preset.lora, own.lineage.parent
    if held not in bases:
        first, weights = own, own.weights
        if lora and parent:
            first = load_checkpoint(find_base(path, parent))
            weights = merged(own.preset, lora, first.weights, {}, held[1])  # rounded as in training
        bases[held] = make_model(first.config)
        load_weights(bases[held], weights, first.path)
    model = on_weights(own.config, bases[held])
    if lora and parent:
        adapt(model, own.config, lora)
        load_weights(model, own.weights, path)
    return model.eval(), own.tokenizer, own
