"""What a model of given sizes has and does: weights and floating-point operations, exactly."""

from mypt.config import Architecture
from mypt.parsing import Frozen


class Weights(Frozen):
    """Numbers that training changes, by part; the tied head is the embedding and not counted."""

    embedding: int
    """Of tokens."""
    positions: int
    blocks: int
    head: int
    """Of its own: 0 where it is tied."""
    norm: int
    """The last one."""

    @property
    def total(self) -> int:
        """All of them, as :meth:`mypt.model.gpt.GPT.n_parameters` counts."""
        return self.embedding + self.positions + self.blocks + self.head + self.norm


class Operations(Frozen):
    """Multiplications and additions of matrix products, forward and backward, 2 a pair.

    What makes a model quicker than another is left to what it runs on: norms, softmax, copies
    and AdamW are few operations and not counted, nor is what a kernel computes twice.
    """

    blocks: int
    """Products with weights."""
    attention: int
    """Queries with keys and weights with values, the whole square as is usual (Chowdhery et al.
    2022, appendix B), though the causal half would do."""
    head: int
    """Of supervised tokens only (law 4)."""
    again: int = 0
    """Forward passes that activation checkpointing makes a second time."""

    @property
    def total(self) -> int:
        """What the model asks for; ``again`` is not part of it."""
        return self.blocks + self.attention + self.head


def count_weights(model: Architecture) -> Weights:
    """Return how many weights a model has, without building it."""
    width, norm = model.n_embd, _norm(model)
    per_block = _attention_weights(model) + _mlp_weights(model) + 2 * norm
    per_block += 2 * model.head_width * model.qk_norm
    if model.bias:
        per_block += _attention_outputs(model) + width + _mlp_outputs(model) + width
    return Weights(
        embedding=model.vocab_size * width,
        positions=model.block_size * width * (model.pos_encoding == "learned"),
        blocks=model.n_layer * per_block,
        head=0 if model.tie_weights else model.vocab_size * width,
        norm=norm,
    )


def count_operations(
    model: Architecture,
    rows: int,
    *,
    density: float = 1.0,
    prune_last_block: bool = True,
    checkpointing: bool = False,
) -> Operations:
    """Return what ``rows`` rows of a whole block each cost, forward and backward.

    Args:
        model: The sizes.
        rows: Rows of ``block_size`` tokens.
        density: Share of the tokens that is supervised.
        prune_last_block: Whether the last block computes queries, projection and MLP of those only.
        checkpointing: Whether blocks compute their forward pass twice.
    """
    tokens = rows * model.block_size
    supervised = round(tokens * density)
    key_weights = 2 * model.n_embd * model.key_heads * model.head_width
    of_block = _attention_weights(model) + _mlp_weights(model)
    wanted = supervised if prune_last_block else tokens
    products = (model.n_layer - 1) * tokens * of_block
    products += tokens * key_weights + wanted * (of_block - key_weights)
    pairs = 2 * model.n_embd * model.block_size * ((model.n_layer - 1) * tokens + wanted)
    return Operations(
        blocks=6 * products,
        attention=6 * pairs,
        head=6 * supervised * model.n_embd * model.vocab_size,
        again=2 * (products + pairs) * checkpointing,
    )


def _norm(model: Architecture) -> int:
    return model.n_embd * (1 + (model.bias and model.norm_type == "layernorm"))


def _attention_outputs(model: Architecture) -> int:
    return model.n_embd + 2 * model.key_heads * model.head_width


def _attention_weights(model: Architecture) -> int:
    return model.n_embd * (_attention_outputs(model) + model.n_embd)


def _mlp_outputs(model: Architecture) -> int:
    return model.inner_width * (2 if model.mlp_type == "swiglu" else 1)


def _mlp_weights(model: Architecture) -> int:
    return model.n_embd * (_mlp_outputs(model) + model.inner_width)
