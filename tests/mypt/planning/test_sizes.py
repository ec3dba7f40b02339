"""Weights and operations are counted without a model as torch counts them with one."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mypt.config import GPTConfig, load_config
from mypt.model.gpt import GPT
from mypt.model.objectives import NLL, Objective
from mypt.model.parameters import n_parameters
from mypt.planning.sizes import count_operations, count_weights

SIZES = {"block_size": 32, "vocab_size": 300, "n_layer": 3, "n_head": 4, "n_embd": 32}
MODERN = {
    "pos_encoding": "rope", "norm_type": "rmsnorm", "mlp_type": "swiglu", "qk_norm": True,
    "n_kv_head": 2, "tie_weights": False,
}  # fmt: skip
KINDS = [{}, {"bias": True}, MODERN, {"bias": True} | MODERN, {"mlp_type": "relu2"},
         {"mlp_width": 50, "n_kv_head": 1},
         {"qkv_bias": True, "head_dim": 16, "norm_place": "both", "mlp_type": "geglu"},
         MODERN | {"qk_norm_over": "all", "norm_place": "after", "longest_context": 64},
         {"bias": True, "parallel_blocks": True, "longest_context": 64}]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_counted_exactly(kind):
    config = GPTConfig(**SIZES | kind)
    assert count_weights(config).total == n_parameters(GPT(config))


@pytest.mark.parametrize("name", ["tiny", "tiny_modern", "150M", "200M", "250M_1024"])
def test_weights_of_the_presets_are_counted_exactly(name):
    config = load_config(f"configs/{name}.json").gpt()
    with torch.device("meta"):
        assert count_weights(config).total == n_parameters(GPT(config))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_operations_of_unmasked_training_are_those_torch_counts(kind, checkpointing):
    counted, expected = _count(kind, 1.0, checkpointing)
    assert counted == expected.total + expected.again


@pytest.mark.parametrize("objective", [Objective("dpo"), Objective("simpo"), Objective("ipo")])
def test_operations_of_pairs_and_their_base_are_those_torch_counts(objective):
    """Rows of one side each, so that attention is the whole square that is counted."""
    counted, expected = _count({}, 1.0, False, objective)
    assert expected.beside
    assert counted == expected.computed


def test_operations_of_a_base_that_is_kept_are_those_torch_counts():
    counted, expected = _count({}, 1.0, False, Objective(kl_base=0.1))
    assert counted == expected.computed == expected.total + expected.total // 3


@pytest.mark.parametrize("kind", KINDS)
def test_operations_of_masked_training_are_those_torch_counts_to_two_percent(kind):
    """Not exactly: queries at some places stand in rows as long as the longest of them."""
    counted, expected = _count(kind, 0.3, checkpointing=False)
    assert expected.total <= counted <= 1.02 * expected.total


def test_a_block_that_is_not_pruned_is_counted_whole():
    config = GPTConfig(**SIZES)
    whole = count_operations(config, 2, density=0.5, prune_last_block=False)
    assert whole.blocks == count_operations(config, 2).blocks
    assert whole.head == count_operations(config, 2).head // 2


def _count(kind, density, checkpointing, objective=NLL):
    """Return what torch counts and what is expected.

    With dropout a CPU attends by plain products, which the counter sees.
    """
    torch.manual_seed(0)
    config = GPTConfig(**SIZES | kind, dropout=0.1)
    model = GPT(config).train()
    model.transformer.checkpoint_blocks(checkpointing)
    torch.manual_seed(0)  # the same mask, however many weights were drawn
    ids = torch.randint(config.vocab_size, (4, config.block_size))
    mask = None if density == 1.0 else (torch.rand(ids.shape) < density).to(torch.uint8)
    keeps_base = objective.name in ("dpo", "ipo") or objective.kl_base > 0
    base = GPT(config).requires_grad_(False).train() if keeps_base else None
    segments = torch.zeros_like(ids) if objective.of_pairs else None
    with FlopCounterMode(display=False) as counter:
        loss = model.loss(ids, ids, mask, segments=segments, objective=objective, base=base)
        loss.total.backward()
    share = 1.0 if mask is None else mask.float().mean().item()
    return counter.get_total_flops(), count_operations(
        config,
        4,
        density=share,
        checkpointing=checkpointing,
        keeps_base=keeps_base,
        of_pairs=objective.of_pairs,
    )
