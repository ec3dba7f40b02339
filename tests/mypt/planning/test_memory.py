"""What a step keeps in memory is estimated to a tenth."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from mypt.config import Preset
from mypt.model.gpt import GPT
from mypt.model.objectives import Objective
from mypt.planning.sizes import estimate
from mypt.training.optim import make_optimizer, narrow

BOUND = 0.10
SIZES = {
    "block_size": 64, "vocab_size": 1024, "n_layer": 3, "n_head": 4, "n_embd": 64,
    "batch_size": 8, "dropout": 0.0,
}  # fmt: skip
MODERN = {
    "norm_type": "rmsnorm", "pos_encoding": "rope", "qk_norm": True, "mlp_type": "swiglu",
    "n_kv_head": 2, "tie_weights": False,
}  # fmt: skip
LLAMA_1B = {
    "vocab_size": 128256, "n_layer": 16, "n_head": 32, "n_kv_head": 8, "n_embd": 2048,
    "mlp_width": 8192, "mlp_type": "swiglu", "norm_type": "rmsnorm", "pos_encoding": "rope",
    "dropout": 0.0,
}  # fmt: skip
SMOLLM2_1B = LLAMA_1B | {"vocab_size": 49152, "n_layer": 24, "n_kv_head": 32}
QWEN_3B = LLAMA_1B | {
    "vocab_size": 151936, "n_layer": 36, "n_head": 16, "n_kv_head": 2, "mlp_width": 11008,
    "qkv_bias": True,
}  # fmt: skip
LLAMA_3B = LLAMA_1B | {"n_layer": 28, "n_head": 24, "n_embd": 3072}


@pytest.mark.parametrize("density", [1.0, 0.3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "kind",
    [{}, {"dropout": 0.1}, {"grad_accumulation": 3}, {"bias": True, "mlp_type": "relu2"}, MODERN,
     {"activation_checkpointing": True}, {"vocab_size": 50304}, {"n_layer": 8, "block_size": 32}],
)  # fmt: skip
def test_the_peak_is_what_a_step_needs(kind, dtype, density):
    preset = Preset.model_validate(SIZES | kind)
    expected = estimate(preset, "none", density=density, dtype=dtype, device="cpu")
    assert expected.peak == pytest.approx(_peak(preset, dtype, density), rel=BOUND)


@pytest.mark.parametrize("density", [1.0, 0.3])
@pytest.mark.parametrize("kind", [{}, {"grad_accumulation": 3}, MODERN, {"vocab_size": 50304}])
def test_the_peak_with_weights_in_bfloat16_is_what_a_step_needs(kind, density):
    preset = Preset.model_validate(SIZES | kind | {"weight_dtype": "bfloat16"})
    expected = estimate(preset, "none", density=density, device="cpu")
    assert expected.peak == pytest.approx(_peak(preset, "bfloat16", density), rel=BOUND)


@pytest.mark.parametrize("low", [{}, {"weight_dtype": "bfloat16"}])
@pytest.mark.parametrize("kind", [{}, MODERN | {"n_embd": 96}])
def test_the_peak_with_moments_of_eight_bits_is_what_a_step_needs(kind, low):
    pytest.importorskip("bitsandbytes", reason="pip install 'mypt[bitsandbytes]'")
    preset = Preset.model_validate(SIZES | kind | low | {"optimizer": "adamw8bit"})
    dtype = "bfloat16" if low else "float32"
    expected = estimate(preset, "none", dtype=dtype, device="cpu")
    assert expected.peak == pytest.approx(_peak(preset, dtype, 1.0), rel=BOUND)


@pytest.mark.parametrize(("sizes", "least"), [(SMOLLM2_1B, 24e9), (QWEN_3B, 40e9)])
def test_eight_bits_let_a_base_be_tuned_whole_on_the_next_smaller_card(sizes, least):
    """SmolLM2 1.7B and Qwen2.5 3B on cards of 24 and 40 GB, of which the runtime takes one."""
    row = {"block_size": 2048, "batch_size": 1, "grad_accumulation": 16}
    words = {"activation_checkpointing": True, "weight_dtype": "bfloat16"}
    preset = Preset.model_validate(sizes | row | words)
    eight = preset.model_copy(update={"optimizer": "adamw8bit"})
    assert estimate(eight, "none").peak < least - 1e9 < estimate(preset, "none").peak


PAIRS = {"batching": "packed", "objective": "dpo"}


@pytest.mark.parametrize("density", [1.0, 0.3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "kind",
    [PAIRS, PAIRS | {"objective": "simpo"}, PAIRS | {"grad_accumulation": 3}, {"kl_base": 0.1},
     {"kl_base": 0.1, "vocab_size": 50304}, PAIRS | {"n_embd": 256, "vocab_size": 4096}],
)  # fmt: skip
def test_the_peak_with_pairs_and_with_a_base_that_is_kept_is_what_a_step_needs(
    kind, dtype, density
):
    preset = Preset.model_validate(SIZES | kind)
    expected = estimate(preset, "none", density=density, dtype=dtype, device="cpu")
    assert expected.peak == pytest.approx(_peak(preset, dtype, density), rel=BOUND)


@pytest.mark.parametrize(("sizes", "card"), [(LLAMA_1B, 24e9), (LLAMA_3B, 80e9)])
def test_full_tuning_of_one_and_three_billion_weights_fits_one_card(sizes, card):
    """Llama 3.2's sizes, rows of 2,048 tokens; the runtime takes about a gigabyte for itself."""
    row = {"block_size": 2048, "batch_size": 1, "grad_accumulation": 16}
    preset = Preset.model_validate(sizes | row | {"activation_checkpointing": True})
    low = preset.model_copy(update={"weight_dtype": "bfloat16"})
    assert estimate(low, "none").peak < card - 1e9
    assert estimate(low, "none").peak < 0.85 * estimate(preset, "none").peak


@pytest.mark.parametrize("parallel", ["none", "ddp", "fsdp"])
@pytest.mark.parametrize("kind", [{}, {"grad_accumulation": 8}, {"n_embd": 1024, "batch_size": 1}])
def test_the_parts_of_the_peak_sum_to_it(kind, parallel):
    found = estimate(Preset.model_validate(SIZES | kind), parallel, processes=2)
    beside = {"peak", "snapshot"}
    assert sum(found.model_dump(exclude=beside).values()) == found.peak


def test_ranks_of_fsdp_divide_what_they_keep_and_gather_two_blocks():
    preset = Preset.model_validate(SIZES | {"grad_accumulation": 8, "n_layer": 16})
    whole = estimate(preset, "ddp", processes=8)
    parts = estimate(preset, "fsdp", processes=8)
    assert parts.optimizer == -(-whole.optimizer // 16) * 2
    assert whole.weights // 8 < parts.weights < whole.weights // 2
    assert parts.activations < whole.activations  # no copies of autocast's
    assert parts.snapshot * 8 == whole.snapshot


def test_a_tree_holds_a_sum_a_level():
    sizes = SIZES | {"grad_accumulation": 8}
    plain = estimate(Preset.model_validate(sizes), "none")
    tree = estimate(Preset.model_validate(sizes | {"reduction": "tree"}), "none")
    assert tree.gradients == 4 * plain.gradients


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._known = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for found in tree_iter(out):
            if isinstance(found, torch.Tensor):
                self._note(found.untyped_storage())
        return out

    def _note(self, storage):
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key):
        self.now -= self._known.pop(key)


def _peak(preset, dtype, density):
    """Return the most bytes that were alive in the second step, when all moments are there."""
    torch.manual_seed(0)
    with _Live() as live:
        model = narrow(GPT(preset.gpt()), preset.weight_dtype).train()
        model.transformer.checkpoint_blocks(preset.activation_checkpointing)
        optimizer = make_optimizer(model, preset)
        how = {"objective": Objective.of(preset)}
        if preset.keeps_base:
            how["base"] = GPT(preset.gpt()).requires_grad_(False).eval()
        if preset.of_pairs:
            sides = (torch.arange(preset.block_size) >= preset.block_size // 2).int()
            how["segments"] = sides.repeat(preset.batch_size, 1)
        for _ in range(2):
            live.most = live.now
            for _ in range(preset.grad_accumulation):
                ids = torch.randint(preset.vocab_size, (preset.batch_size, preset.block_size))
                mask = (torch.rand(ids.shape) < density).to(torch.uint8)
                with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                    loss = model.loss(ids, ids, mask, **how)
                loss.total.backward()
                del loss
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return live.most
