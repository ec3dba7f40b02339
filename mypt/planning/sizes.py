"""What a model of given sizes has, does and needs: weights, operations and memory, exactly.

All of it before anything is built.
"""

from typing import Literal

from mypt.config import Architecture, Preset
from mypt.model.four_bits import BLOCK
from mypt.model.linear_loss import CACHE_BYTES, CHUNK_BYTES
from mypt.parsing import Frozen
from mypt.training.optim import EIGHT_BIT_BLOCK, EIGHT_BIT_FROM

Parallel = Literal["none", "ddp", "fsdp"]
_FLOAT = 4
"""Bytes of a gradient and a moment, and of a weight unless ``weight_dtype`` says otherwise."""
_HALF = 2
"""Bytes of a number in bfloat16."""


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
        """All of them, as :func:`mypt.model.parameters.n_parameters` counts."""
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
    beside: int = 0
    """Forward passes of a base that is kept, and of the head for the sums of pairs' sides."""

    @property
    def total(self) -> int:
        """What the model asks for; ``again`` and ``beside`` are not part of it."""
        return self.blocks + self.attention + self.head

    @property
    def computed(self) -> int:
        """What is computed for it, all in all."""
        return self.total + self.again + self.beside


def count_weights(model: Architecture) -> Weights:
    """Return how many weights a model has, without building it."""
    width, norm = model.n_embd, _norm(model)
    per_block = sum(_matrices(model)) + _norms(model) * norm
    if model.qk_norm:
        whole = model.qk_norm_over == "all"
        per_block += _heads_width(model) if whole else 2 * model.head_width
    if model.bias or model.qkv_bias:
        per_block += _attention_outputs(model)
    if model.bias:
        per_block += width + _mlp_outputs(model) + width
    return Weights(
        embedding=model.vocab_size * width,
        positions=model.longest * width * (model.pos_encoding == "learned"),
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
    keeps_base: bool = False,
    of_pairs: bool = False,
) -> Operations:
    """Return what ``rows`` rows of a whole block each cost, forward and backward.

    Args:
        model: The sizes.
        rows: Rows of ``block_size`` tokens.
        density: Share of the tokens that is supervised.
        prune_last_block: Whether the last block computes queries, projection and MLP of those only.
        checkpointing: Whether blocks compute their forward pass twice.
        keeps_base: Whether a base of the same sizes reads the same.
        of_pairs: Whether the head is passed once more, for the sums of pairs' sides.
    """
    tokens = rows * model.block_size
    supervised = round(tokens * density)
    key_weights = 2 * model.n_embd * model.key_heads * model.head_width
    of_block = sum(_matrices(model))
    wanted = supervised if prune_last_block else tokens
    products = (model.n_layer - 1) * tokens * of_block
    products += tokens * key_weights + wanted * (of_block - key_weights)
    heads = model.n_head * model.head_width
    pairs = 2 * heads * model.block_size * ((model.n_layer - 1) * tokens + wanted)
    head = supervised * model.n_embd * model.vocab_size
    return Operations(
        blocks=6 * products,
        attention=6 * pairs,
        head=6 * head,
        again=2 * (products + pairs) * checkpointing,
        beside=2 * (keeps_base * (products + pairs + head) + of_pairs * head),
    )


def _norm(model: Architecture) -> int:
    return model.n_embd * (1 + (model.bias and model.norm_type == "layernorm"))


def _norms(model: Architecture) -> int:
    """Return how many norms of the residual stream a block has."""
    return 4 if model.norm_place == "both" else 2


def _heads_width(model: Architecture) -> int:
    """Return numbers of a token's queries and keys."""
    return (model.n_head + model.key_heads) * model.head_width


def _attention_outputs(model: Architecture) -> int:
    return (model.n_head + 2 * model.key_heads) * model.head_width


def _mlp_outputs(model: Architecture) -> int:
    return model.inner_width * (2 if model.gated else 1)


def _matrices(model: Architecture) -> tuple[int, ...]:
    """Return numbers of each of a block's matrices."""
    c, inner, heads = model.n_embd, model.inner_width, model.n_head * model.head_width
    return c * _attention_outputs(model), c * heads, c * _mlp_outputs(model), c * inner


class Memory(Frozen):
    """Bytes of one process, without what the runtime takes for itself (about 1 GB on a GPU).

    They are those of the moment at which most is held: gradients grow while activations go.
    """

    weights: int
    """With those of a base that is kept, and what fsdp gathers of the others' parts."""
    optimizer: int
    gradients: int
    """Of micro-batches before, or of all weights where that moment is the update."""
    activations: int
    """What the blocks of one micro-batch keep for the backward pass."""
    working: int
    """What the loss is made with (logits, their gradients, the vocabulary's), or a block's
    gradients, or what a weight in bfloat16 is updated with: the greater."""
    peak: int
    """All of these."""
    snapshot: int
    """On the CPU beside it, while a checkpoint is written."""


def estimate(
    preset: Preset,
    parallel: Parallel,
    *,
    processes: int = 1,
    density: float = 1.0,
    dtype: str = "bfloat16",
    device: str = "cuda",
) -> Memory:
    """Return what one of ``processes`` keeps of a step of ``preset``.

    Args:
        preset: Sizes and training values.
        parallel: Whether each process holds the whole model or a part of it.
        processes: How many share a step.
        density: Share of the tokens that is supervised.
        dtype: float32 or bfloat16, of the products.
        device: Kind of device; on a CPU attention computes in float32 and, with dropout, keeps
            whole squares of weights.
    """
    on_cpu = device == "cpu"
    weights, width = count_weights(preset), 4 if dtype == "float32" else 2
    micros = -(-preset.grad_accumulation // processes)
    rows = preset.batch_size * preset.block_size
    whole = _FLOAT * weights.total
    own, held, gathered, sums = whole, weight_bytes(preset), 0, whole
    narrow, moments = held < whole, moment_bytes(preset)
    base = whole if preset.keeps_base and not preset.lora else 0
    if parallel == "fsdp":
        own = held = -(-own // processes)
        moments = 2 * own
        gathered, sums = _gathered(preset, weights, width)
        sums += own
    if preset.reduction == "tree":
        sums = own * micros.bit_length()
    activations = _activations(preset, rows, density, width, on_cpu)
    if width < _FLOAT and parallel != "fsdp" and not narrow:
        activations += width * weights.blocks  # autocast keeps its copies until the pass is over
    head = _head(preset, round(rows * density), width)
    back = _FLOAT * preset.vocab_size * preset.n_embd + rows * _way_back(preset, width, on_cpu)
    stands = sums if micros > 1 or parallel == "ddp" else 0
    rounding = narrow * 2 * _FLOAT * max(preset.vocab_size * preset.n_embd, _largest(preset))
    most = max((stands, activations, max(head, back)), (sums, 0, rounding), key=sum)
    return Memory(
        weights=held + base + gathered,
        optimizer=moments,
        gradients=most[0],
        activations=most[1],
        working=most[2],
        peak=held + base + moments + gathered + sum(most),
        snapshot=held + moments,
    )


def weight_bytes(preset: Preset) -> int:
    """Return bytes of all weights as training keeps them; a checkpoint's, but for an adapter's."""
    weights = count_weights(preset)
    if preset.weight_dtype == "float32":
        return _FLOAT * weights.total
    products = preset.n_layer * sum(_matrices(preset))
    if preset.weight_dtype == "nf4":  # a scale for each 64 codes of half a byte
        return _FLOAT * (weights.total - products) + products // 2 + _FLOAT * products // BLOCK
    products += preset.vocab_size * preset.n_embd
    return _FLOAT * weights.total - (_FLOAT - _HALF) * products


def moment_bytes(preset: Preset) -> int:
    """Return bytes of AdamW's two moments, as training keeps them and a checkpoint holds them."""
    weights = count_weights(preset)
    if preset.optimizer == "adamw":
        return 2 * _FLOAT * weights.total
    large = [n for n in _matrices(preset) if n >= EIGHT_BIT_FROM] * preset.n_layer
    large += [weights.head] * (weights.head >= EIGHT_BIT_FROM)
    codes = sum(n + _FLOAT * -(-n // EIGHT_BIT_BLOCK) for n in large)
    return 2 * (codes + _FLOAT * (weights.total - sum(large)))


def _largest(model: Architecture) -> int:
    """Return numbers of a block's largest matrix."""
    return max(_matrices(model))


def _gathered(preset: Preset, weights: Weights, width: int) -> tuple[int, int]:
    """Return bytes of weights and of gradients that are whole while fsdp computes.

    The vocabulary's matrix stays whole from the forward pass to the backward pass; of the blocks
    one computes while the next one comes.
    """
    whole = weights.total - weights.blocks + 2 * weights.blocks // preset.n_layer
    return width * whole, width * whole


def _head(preset: Preset, supervised: int, width: int) -> int:
    """Return bytes of one pass over the supervised tokens of a micro-batch."""
    table = preset.vocab_size * preset.n_embd
    most = max(1, CHUNK_BYTES // (width * preset.vocab_size))
    chunk = -(-supervised // max(1, -(-supervised // most)))
    lower = 0
    if width < _FLOAT:
        copied = table * (preset.weight_dtype == "float32") + supervised * preset.n_embd
        lower = width * copied + CACHE_BYTES
    states = _FLOAT * preset.n_embd * (2 * supervised + 4 * chunk)
    held = 0
    if preset.keeps_base:
        states += _FLOAT * preset.n_embd * supervised
    if preset.kl_base:
        precise = _FLOAT * (5 if width < _FLOAT else 4)  # both predictions, and how they differ
        held = chunk * preset.vocab_size * (width + precise)
        held += width * (table + supervised * preset.n_embd) * (width < _FLOAT)
    return width * chunk * preset.vocab_size + held + lower + states + _FLOAT * table


def _activations(preset: Preset, rows: int, density: float, width: int, on_cpu: bool) -> int:
    """Return bytes that all blocks and the last norm keep of ``rows`` tokens."""
    wanted = density if preset.prune_last_block else 1.0
    stream = _FLOAT * preset.n_embd
    asked, answered = _block(preset, width, on_cpu)
    kept = preset.n_layer * asked + (preset.n_layer - 1 + wanted) * answered
    if preset.activation_checkpointing:
        kept = preset.n_layer * stream
    kept += wanted * _norm_bytes(preset, 0) + (stream if preset.dropout else 0)
    return round(rows * kept)


def _way_back(preset: Preset, width: int, on_cpu: bool) -> int:
    """Return bytes a token of a block's gradients, and of what is computed again for them."""
    gradients = _FLOAT * preset.n_embd + width * (_fan_out(preset) + preset.inner_width)
    if preset.activation_checkpointing:
        gradients += sum(_block(preset, width, on_cpu))
    return gradients


def _block(model: Preset, width: int, on_cpu: bool) -> tuple[int, int]:
    """Return bytes a token that one block keeps: for keys and values, and for all the rest.

    Each product keeps what goes in; so do the norms, in float32, attention and the MLP's bend.
    """
    c, keys = model.n_head * model.head_width, model.key_heads * model.head_width
    inside = _FLOAT if on_cpu else width  # attention's arithmetic (D21)
    shared = c if model.key_heads < model.n_head else keys  # repeated for each query
    norms = _norms(model) // 2 * _norm_bytes(model, width)
    asked = norms + inside * 2 * shared
    answered = inside * 2 * c + (width * c if inside > width else 0) + norms
    if model.qk_norm:
        answered += _FLOAT * 2 * (c + keys)
    elif model.pos_encoding == "rope" and width == _FLOAT:
        answered += _FLOAT * (c + keys)
    if model.dropout:
        squares = 3 * inside * model.n_head * model.block_size
        answered += squares + 2 * width * c if on_cpu else 2 * c
    bent = _gate(model) * (model.mlp_type != "swiglu")  # which is computed again
    return asked, answered + width * (_fan_out(model) + model.inner_width + bent)


def _norm_bytes(model: Preset, width: int) -> int:
    """Return bytes a token of a norm's input and of its output."""
    return (_FLOAT + width) * model.n_embd


def _fan_out(model: Preset) -> int:
    """Return numbers that the MLP keeps of its first product; a square needs only its root."""
    return model.inner_width + _gate(model)


def _gate(model: Preset) -> int:
    return model.inner_width if model.gated else 0
