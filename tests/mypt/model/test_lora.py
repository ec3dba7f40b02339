"""Adapters beside frozen matrices, against autograd's own sum of two products."""

import pytest
import torch
import torch.nn.functional as F

from mypt.config import GPTConfig, Lora
from mypt.errors import ConfigError
from mypt.model.gpt import GPT
from mypt.model.lora import adapt, bare, merged

SIZES = {"block_size": 12, "vocab_size": 40, "n_layer": 2, "n_head": 4, "n_embd": 16}
MODERN = {
    "pos_encoding": "rope", "norm_type": "rmsnorm", "mlp_type": "swiglu", "n_kv_head": 2,
    "bias": False,
}  # fmt: skip


def adapted(lora, dtype=torch.float64, **changes):
    """A GPT whose adapters, and not only As, are somewhere."""
    torch.manual_seed(0)
    config = GPTConfig(**SIZES | {"dropout": 0.0} | changes)
    model = GPT(config).to(dtype)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    adapt(model, config, lora)
    for name, weight in model.named_parameters():
        if name.endswith(("adapter.b", "adapter.delta")):
            torch.nn.init.normal_(weight, std=0.1)
    return model, before


def learned(model):
    return {name: w for name, w in model.named_parameters() if w.requires_grad}


def batch(rows=3):
    torch.manual_seed(1)
    ids = torch.randint(SIZES["vocab_size"], (rows, SIZES["block_size"]))
    return ids, ids.roll(-1, 1), (torch.rand(ids.shape) < 0.4).to(torch.uint8)


def naive(model, ids, targets, mask, scale):
    """The loss with each effective matrix written out, so that autograd finds all gradients."""
    weights = dict(model.named_parameters())
    whole = dict(weights)
    for name in weights:
        if not name.endswith("adapter.a"):
            continue
        place = name.removesuffix(".adapter.a")
        layer, start = model.get_submodule(place), 0
        parts, found = list(weights[name].split(layer.adapter.rank)), weights[f"{place}.weight"]
        for rows, a in zip(layer.adapter.rows, parts, strict=True):
            size = rows.stop - rows.start
            b = weights[f"{place}.adapter.b"][start : start + size]
            before, own, after = found.tensor_split((rows.start, rows.stop))
            found, start = torch.cat([before, own + scale * b @ a, after]), start + size
        whole[f"{place}.weight"] = found
    for place in ("transformer.wte", "lm_head"):
        rows = model.get_submodule(place).adapter
        if rows is not None:
            few = torch.zeros_like(weights["transformer.wte.weight"]).index_add(
                0, rows.ids, rows.delta
            )
            whole[f"{place}.weight"] = model.get_submodule(place).weight + few
    plain = bare(model)
    names = dict(plain.named_parameters())
    given = {name: whole[name] for name in names}
    if model.config.tie_weights:  # whole has it from both
        given["lm_head.weight"] = given["transformer.wte.weight"]
    logits = torch.func.functional_call(plain, given, (ids,))[0]
    wanted = mask.flatten().bool()
    nats = F.cross_entropy(
        logits.flatten(0, 1)[wanted], targets.flatten()[wanted], reduction="none"
    )
    return (nats * mask.flatten()[wanted]).sum()


@pytest.mark.parametrize("architecture", [{}, {"bias": True}, MODERN], ids=["gpt2", "bias", "swi"])
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj"), ("k_proj", "down_proj")])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("tokens", "weighed"), [(None, False), ((3, 39, 7), False), (None, True)])
def test_loss_and_gradients_are_those_of_the_effective_matrices(
    architecture, targets, tied, tokens, weighed
):
    lora = Lora(rank=3, alpha=5.0, targets=targets, tokens=tokens)
    model, _ = adapted(lora, tie_weights=tied, **architecture)
    ids, targets, mask = batch()
    mask = mask * torch.rand(mask.shape, dtype=torch.float64) if weighed else mask
    found = model.loss(ids, targets, mask).total
    expected = naive(model, ids, targets, mask, lora.scale)
    weights = learned(model)
    theirs = torch.autograd.grad(expected, list(weights.values()))
    torch.autograd.backward([found])
    assert abs(found - expected) < 1e-10
    for (name, weight), gradient in zip(weights.items(), theirs, strict=True):
        assert (weight.grad - gradient).abs().max() < 1e-10, name
    assert all(w.grad is None for w in model.parameters() if not w.requires_grad)


def test_of_full_rank_an_adapter_steps_where_full_tuning_does():
    lora = Lora(rank=16, alpha=16.0, targets=("o_proj",))
    model, before = adapted(lora, bias=False)
    place = model.transformer.h[0].attn.c_proj
    with torch.no_grad():
        place.adapter.b.zero_()
        place.adapter.a.copy_(torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0])
        model.transformer.h[1].attn.c_proj.adapter.b.zero_()
    full = GPT(model.config).double()
    full.load_state_dict(before, strict=False)
    ids, targets, mask = batch()
    for one in (full, model):
        torch.autograd.backward([one.loss(ids, targets, mask).total])
    # One step of gradient descent: B moves by -rate dB, and W + s B A by that times A.
    moved = lora.scale * place.adapter.b.grad @ place.adapter.a
    wanted = full.transformer.h[0].attn.c_proj.weight.grad
    assert (moved - wanted).abs().max() < 1e-10
    assert place.adapter.a.grad.abs().max() == 0


@pytest.mark.parametrize("architecture", [{"bias": True}, MODERN], ids=["gpt2", "swiglu"])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("tokens", [None, (0, 21)])
def test_merged_equals_unmerged(architecture, rslora, tokens):
    lora = Lora(rank=5, alpha=7.0, rslora=rslora, tokens=tokens)
    model, before = adapted(lora, torch.float32, **architecture)
    own = {n: w.detach() for n, w in learned(model).items()}
    plain = GPT(model.config)
    plain.load_state_dict(merged(model.config, lora, before, own), strict=False)
    ids, _, _ = batch()
    assert (plain(ids)[0] - model(ids)[0]).abs().max() < 1e-6


def test_the_base_beneath_is_the_same_memory_and_answers_as_before():
    model, before = adapted(Lora(rank=2, tokens=(5,)))
    beneath = bare(model)
    held = dict(model.named_parameters())
    assert all(w is held[name] for name, w in beneath.named_parameters())
    first = GPT(model.config).double()
    first.load_state_dict(before, strict=False)
    ids, _, _ = batch()
    assert torch.equal(beneath(ids)[0], first(ids)[0])
    assert not torch.equal(model(ids)[0], first(ids)[0])


def test_dropout_leaves_out_what_a_reads_and_only_in_training():
    model, _ = adapted(Lora(rank=2, dropout=0.5))
    ids, _, _ = batch()
    one, other = model.train()(ids)[0], model(ids)[0]
    assert not torch.equal(one, other)
    assert torch.equal(model.eval()(ids)[0], model(ids)[0])


def test_dropout_has_the_gradients_that_autograd_finds():
    lora = Lora(rank=2, dropout=0.5, targets=("o_proj",))
    model, _ = adapted(lora, bias=True)
    layer = model.transformer.h[0].attn.c_proj.train()
    x = torch.randn(7, 16, dtype=torch.float64, requires_grad=True)
    wanted = (x, layer.adapter.a, layer.adapter.b)
    torch.manual_seed(3)
    found = torch.autograd.grad(layer(x).square().sum(), wanted)
    torch.manual_seed(3)
    beside = F.dropout(x, 0.5) @ layer.adapter.a.T @ layer.adapter.b.T
    own = F.linear(x, layer.weight, layer.bias) + lora.scale * beside
    for one, other in zip(found, torch.autograd.grad(own.square().sum(), wanted), strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def test_a_matrix_that_the_architecture_has_not_is_refused():
    with pytest.raises(ConfigError, match=r"mlp_type gelu has no gate_proj; leave it out"):
        adapted(Lora(targets=("gate_proj",)))
    with pytest.raises(ValueError, match="expected all-linear, or a list of q_proj"):
        Lora(targets="all")
