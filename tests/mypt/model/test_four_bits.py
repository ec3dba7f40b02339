"""Frozen matrices in four bits, against the numbers that their codes stand for."""

import sys

import pytest
import torch

from mypt.config import GPTConfig, Lora, TrainConfig
from mypt.errors import ConfigError
from mypt.model.four_bits import BLOCK, FourBits
from mypt.model.gpt import GPT
from mypt.model.lora import Linear, adapt
from mypt.model.parameters import n_parameters
from mypt.training.optim import narrow
from tests.mypt.model.test_lora import MODERN, SIZES, batch

TABLE = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip
"""The sixteen numbers, as Dettmers et al. 2023 list them in appendix E."""


@pytest.fixture(autouse=True)
def _library():
    pytest.importorskip("bitsandbytes", reason="pip install 'mypt[bitsandbytes]'")


@pytest.mark.parametrize("shape", [(16, 48), (7, 10), (64, 64)])
def test_each_number_is_the_nearest_of_sixteen_times_the_largest_of_its_block(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    expected = []
    for block in weight.flatten().split(BLOCK):
        top = block.abs().max()
        near = (block[:, None] / top - torch.tensor(TABLE)).abs().argmin(1)
        expected.append(torch.tensor(TABLE)[near] * top)
    found = FourBits(weight)
    assert torch.allclose(found.whole(torch.float32), torch.cat(expected).view(shape), atol=1e-6)
    assert n_parameters(torch.nn.ModuleList([found, torch.nn.Linear(2, 3)])) == weight.numel() + 9
    again = FourBits(weight)
    assert torch.equal(found.codes, again.codes)
    assert torch.equal(found.scales, again.scales)


@pytest.mark.parametrize("architecture", [{"bias": True}, MODERN], ids=["gpt2", "llama"])
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
def test_loss_and_gradients_are_those_of_the_numbers_that_codes_stand_for(architecture, targets):
    lora = Lora(rank=3, targets=targets)
    losses, gradients = [], []
    for packed in (True, False):
        torch.manual_seed(0)
        config = GPTConfig(**SIZES | {"dropout": 0.0} | architecture)
        model = GPT(config)
        adapt(model, config, lora)
        for name, weight in model.named_parameters():
            if name.endswith("adapter.b"):
                torch.nn.init.normal_(weight, std=0.1)
        for layer in model.transformer.h.modules():
            if isinstance(layer, Linear) and not packed:
                layer.weight.data = FourBits(layer.weight).whole(torch.float32)
        if packed:
            narrow(model, "nf4")
            assert all(layer.weight is None for layer in model.transformer.h.modules()
                       if isinstance(layer, Linear))  # fmt: skip
        loss = model.loss(*batch()).total
        torch.autograd.backward([loss])
        losses.append(loss)
        gradients.append({n: w.grad for n, w in model.named_parameters() if w.requires_grad})
    assert losses[0] == losses[1]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


def test_nothing_is_kept_of_the_numbers_for_the_way_back():
    layer = Linear(640, 640, bias=False).requires_grad_(False)
    layer.pack()
    x, kept = torch.randn(2, 640, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        layer(x)
    assert sum(kept) < 640 * 64
    assert layer.packed.codes.nbytes + layer.packed.scales.nbytes == 640 * 640 * 9 // 16


def test_four_bits_want_an_adapter_and_the_library(monkeypatch):
    with pytest.raises(ValueError, match="weight_dtype nf4 learns nothing itself; set lora"):
        TrainConfig(weight_dtype="nf4")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"weight_dtype nf4: bitsandbytes is not installed"):
        FourBits(torch.ones(4, 64))
    with pytest.raises(ConfigError, match=r"bitsandbytes has none for meta"):
        FourBits(torch.ones(4, 64, device="meta"))
