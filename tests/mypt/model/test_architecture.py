"""The modern parts, chosen by config, against their formulas and the laws that GPT-2 keeps."""

import pytest
import torch
import torch.nn.functional as F

from mypt.config import GPTConfig
from mypt.errors import ConfigError
from mypt.model.gpt import GPT
from mypt.model.parameters import n_parameters
from mypt.model.transformer import MLP, turn, turns
from mypt.parsing import parse_config

GPT2 = GPTConfig(block_size=24, vocab_size=61, n_layer=2, n_head=4, n_embd=32)
MODERN = {
    "pos_encoding": "rope", "norm_type": "rmsnorm", "mlp_type": "swiglu", "qk_norm": True,
    "n_kv_head": 2, "tie_weights": False,
}  # fmt: skip
ALONE = [{key: value} for key, value in MODERN.items()]
OF_BASES = [
    {"pos_encoding": "rope", "nope_every": 2, "head_dim": 12, "qkv_bias": True},
    {"pos_encoding": "rope", "rope_width": 4, "parallel_blocks": True, "mlp_type": "gelu_erf"},
    {"pos_encoding": "rope", "window": 5, "full_every": 2, "window_rope_base": 100.0},
    {"qk_norm": True, "qk_norm_over": "all", "qk_norm_eps": 1e-3, "norm_place": "after"},
    {"mlp_type": "geglu", "norm_place": "both", "embedding_scale": 3.0, "logit_divisor": 2.0},
    {"attention_scale": 0.2, "residual_scale": 0.7, "window": 6, "n_kv_head": 2},
    {"logit_softcap": 0.3},
]
EACH = [*ALONE, {"mlp_type": "relu2"}, MODERN, MODERN | {"bias": True}, *OF_BASES]
SEGMENTS = torch.tensor([[0] * 7 + [1] * 17, [0] * 24])


def build(changes, dtype=torch.float32):
    torch.manual_seed(0)
    model = GPT(GPT2.model_copy(update=changes)).eval()
    with torch.no_grad():  # far from the start, where norms' gains are 1
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype)


def batch(density=0.3):
    generator = torch.Generator().manual_seed(1)
    idx, targets = torch.randint(61, (2, 2, 24), generator=generator).unbind()
    return idx, targets, (torch.rand(2, 24, generator=generator) < density).to(torch.uint8)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters()])


@pytest.mark.parametrize("changes", EACH, ids=str)
@pytest.mark.parametrize("segments", [None, SEGMENTS])
@pytest.mark.parametrize("prune", [True, False])
def test_loss_and_every_gradient_are_the_seeds_formula(changes, segments, prune):
    model, (idx, targets, mask) = build(changes), batch()
    ours = model.loss(idx, targets, mask, segments=segments, prune_last_block=prune).total
    logits = model(idx, segments=segments)[0]
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    theirs = (losses * mask.flatten()).sum()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    ours, theirs = gradients(model, ours), gradients(model, theirs)
    assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


@pytest.mark.parametrize("changes", EACH, ids=str)
def test_no_bit_of_a_conversation_depends_on_its_neighbour(changes):
    model, (idx, _, _) = build(changes), batch()
    before = model(idx, segments=SEGMENTS)[0][0]
    for place, kept in ((3, slice(7, 24)), (12, slice(0, 7))):
        changed = idx.clone()
        changed[0, place] = (idx[0, place] + 1) % 61
        after = model(changed, segments=SEGMENTS)[0][0]
        assert torch.equal(before[kept], after[kept])
        assert not torch.equal(before, after)


@pytest.mark.parametrize("changes", EACH, ids=str)
def test_a_conversation_gives_packed_what_it_gives_alone(changes):
    model, (idx, _, _) = build(changes, torch.float64), batch()
    packed = model(idx, segments=SEGMENTS)[0]
    torch.testing.assert_close(packed[0, 7:], model(idx[:1, 7:])[0][0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("changes", EACH, ids=str)
def test_reading_token_by_token_from_the_cache_gives_the_same_logits(changes):
    model, (idx, _, _) = build(changes), batch()
    expected = model(idx)[0]
    cache = model.new_cache(2, 24)
    for t in range(24):
        got = model.step(idx[:, t : t + 1], cache, torch.full((2, 1), t))
        torch.testing.assert_close(got, expected[:, t], rtol=1e-4, atol=1e-5)


def test_shared_heads_keep_a_smaller_cache():
    sizes = [build(c).new_cache(2, 24)._keys[0].numel() for c in ({}, {"n_kv_head": 1})]
    assert sizes[0] == 4 * sizes[1]


def test_parameters_are_counted_by_hand():
    embedding, block = 61 * 32, 32 * 32 * 12
    norms = 5 * 32
    counts = {
        (): embedding + 24 * 32 + 2 * block + norms,
        ("pos_encoding",): embedding + 2 * block + norms,
        ("tie_weights",): 2 * embedding + 24 * 32 + 2 * block + norms,
        ("n_kv_head",): embedding + 24 * 32 + 2 * (block - 32 * 32) + norms,
        ("qk_norm",): embedding + 24 * 32 + 2 * (block + 2 * 8) + norms,
        ("mlp_type",): embedding + 24 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 88) + norms,
    }
    for keys, expected in counts.items():
        assert n_parameters(build({key: MODERN[key] for key in keys})) == expected, keys


def test_rotary_products_depend_on_the_distance_alone():
    table = turns(64, 8).double()
    query, key = torch.randn(2, 1, 1, 8, dtype=torch.float64).unbind()
    near = [
        (turn(query, table[None, p]) * turn(key, table[None, p + 5])).sum() for p in (0, 17, 58)
    ]
    torch.testing.assert_close(near[0].expand(2), torch.stack(near[1:]), rtol=0, atol=1e-6)
    assert turn(query, table[None, 0]).equal(query)


def test_rotary_turns_pairs_by_their_own_speed():
    turned = turn(torch.tensor([[[1.0, 1.0, 0.0, 0.0]]]), turns(8, 4)[None, 3])
    fast, slow = torch.tensor(3.0), torch.tensor(0.03)
    expected = torch.stack([fast.cos(), slow.cos(), fast.sin(), slow.sin()])
    torch.testing.assert_close(turned[0, 0], expected)


@pytest.mark.parametrize("kind", ["gelu", "relu2", "swiglu"])
def test_each_mlp_is_its_formula(kind):
    mlp, x = MLP(GPT2.model_copy(update={"mlp_type": kind})), torch.randn(3, 32)
    wide = x @ mlp.c_fc.weight.T
    bent = {
        "gelu": lambda: F.gelu(wide, approximate="tanh"),
        "relu2": lambda: wide.clamp(min=0) ** 2,
        "swiglu": lambda: wide[:, :88] * wide[:, 88:] * wide[:, 88:].sigmoid(),
    }[kind]()
    torch.testing.assert_close(mlp(x), bent @ mlp.c_proj.weight.T)


def test_zero_projections_make_each_block_begin_as_nothing():
    torch.manual_seed(0)
    model = GPT(GPT2.model_copy(update={**MODERN, "zero_init": True}))
    assert not any(p.any() for n, p in model.named_parameters() if n.endswith("c_proj.weight"))
    embedded = F.rms_norm(model.transformer.wte(batch()[0]), (32,), eps=1e-6)
    torch.testing.assert_close(model.hidden(batch()[0]), embedded)


def test_scaled_weights_keep_the_size_of_what_they_read():
    torch.manual_seed(0)
    model = GPT(GPT2.model_copy(update={**MODERN, "n_embd": 256, "scaled_init": True}))
    read, block = torch.randn(512, 256), model.transformer.h[0]
    assert block.attn.c_attn(read).std().item() == pytest.approx(1.0, rel=0.1)
    assert block.attn.c_proj(read).std().item() == pytest.approx(1 / 2, rel=0.1)  # of 4 added
    assert model.transformer.wte.weight.std().item() == pytest.approx(1 / 32, rel=0.1)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"n_kv_head": 3}, "n_kv_head 3 does not divide n_head 4; set n_kv_head to one"),
        ({"n_head": 6}, "n_head 6 does not divide n_embd 32; set n_head to one that does"),
        ({"n_kv_head": 0}, "n_kv_head"),
        ({"pos_encoding": "rope", "n_head": 32}, "n_embd / n_head is 1; rope wants an even width"),
        ({"norm_type": "rms"}, "'layernorm' or 'rmsnorm'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(values, found):
    with pytest.raises(ConfigError, match=found):
        parse_config(GPT2.model_dump() | values, GPTConfig, "here")
