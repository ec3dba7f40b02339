"""Adapters that go to ``peft`` and come from it: its logits and gradients are ours."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from mypt.config import GPTConfig, Lora
from mypt.data.tokenizer import load_tokenizer
from mypt.errors import CheckpointError, MyptError
from mypt.inference.huggingface.adapters import PeftConfig, export_peft, from_peft, open_peft
from mypt.inference.huggingface.exports import export_hf
from mypt.model.gpt import GPT
from mypt.model.lora import adapt
from tests.mypt.inference.huggingface.families import make, ours

peft = pytest.importorskip("peft", reason="pip install peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers' old ways
SIZES = {"block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 32, "dropout": 0.0}
MODERN = {
    "pos_encoding": "rope", "norm_type": "rmsnorm", "mlp_type": "swiglu", "n_kv_head": 2,
    "bias": False,
}  # fmt: skip


@pytest.fixture(params=[{}, MODERN], ids=["gpt2", "llama"])
def both(request, tmp_path):
    """Builds an adapted model of ours, and what peft loads of its two exports."""
    tokenizer = load_tokenizer("byte")

    def build(lora):
        torch.manual_seed(0)
        config = GPTConfig(vocab_size=tokenizer.n_vocab, **SIZES | request.param)
        model = GPT(config)
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        export_hf(tmp_path / "base", config, weights, tokenizer, card="")
        adapt(model, config, lora)
        own = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        for name, weight in own.items():
            if name.endswith("adapter.b"):
                torch.nn.init.normal_(weight, std=0.1)
        export_peft(
            tmp_path / "adapter", config, lora, {n: w.detach() for n, w in own.items()},
            base=None, base_name=str(tmp_path / "base"), base_digest="b" * 64, card="",
        )  # fmt: skip
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        return model, peft.PeftModel.from_pretrained(
            theirs, tmp_path / "adapter", is_trainable=True
        ).eval()

    return build


@pytest.mark.parametrize(
    "lora",
    [
        Lora(rank=3, alpha=5.0),
        Lora(rank=4, alpha=7.0, rslora=True, targets=("q_proj", "v_proj", "down_proj")),
        Lora(rank=2, targets=("k_proj", "o_proj", "up_proj")),
    ],
    ids=["all", "rslora", "some"],
)
def test_peft_computes_the_same_logits(both, lora):
    ours, theirs = both(lora)
    ids = torch.randint(ours.config.vocab_size, (3, 20))
    with torch.no_grad():
        assert (ours(ids)[0] - theirs(ids).logits).abs().max() < 1e-5


def test_gradients_are_those_of_peft(both):
    lora = Lora(rank=3, alpha=5.0)
    ours, theirs = both(lora)
    ids = torch.randint(ours.config.vocab_size, (3, 20))
    mask = torch.rand(3, 20) < 0.4
    labels = torch.where(mask, ids, -100)
    theirs(ids, labels=labels).loss.backward()
    targets, wanted = ids.roll(-1, 1), mask.roll(-1, 1)
    wanted[:, -1] = False
    torch.autograd.backward([ours.loss(ids, targets, wanted.to(torch.uint8)).mean])
    found = {n: w.grad for n, w in theirs.named_parameters() if w.requires_grad}
    for block in range(2):
        for name, layer in ours.transformer.h[block].named_modules():
            if not hasattr(layer, "rank"):
                continue
            here = ours.transformer.h[block].get_submodule(name)
            start = 0
            for number, rows in enumerate(here.rows):
                size = rows.stop - rows.start
                a = here.a.grad[number * 3 : (number + 1) * 3]
                b = here.b.grad[start : start + size]
                start += size
                assert any(_held(a, one) for one in found.values()), name
                assert any(_held(b, one) for one in found.values()), name


def _held(gradient, theirs):
    """Whether a gradient is a part of one of theirs, whose targets stand side by side."""
    high, wide = gradient.shape
    for top in range(0, theirs.shape[0] - high + 1):
        for left in range(0, theirs.shape[1] - wide + 1):
            part = theirs[top : top + high, left : left + wide]
            if torch.allclose(part, gradient, atol=1e-6):
                return True
    return False


def put(model, lora, weights):
    """Adapt a model of ours by an adapter's weights."""
    adapt(model, model.config, lora)
    held = dict(model.named_parameters())
    assert {name for name, weight in held.items() if weight.requires_grad} == weights.keys()
    with torch.no_grad():
        for name, weight in weights.items():
            held[name].copy_(weight)
    return model.eval()


def theirs_on(name, folder, **said):
    """A random model of a family with an adapter that learned something; saved beside it."""
    base = make(name, folder / "base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **said)
    model = peft.get_peft_model(base, config).eval()
    model.save_pretrained(folder / "adapter")
    return model


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("gpt2", {"target_modules": "all-linear", "r": 3, "fan_in_fan_out": True}),
        ("gpt2", {"target_modules": ["c_fc"], "r": 2, "use_rslora": True, "lora_alpha": 3,
                  "fan_in_fan_out": True}),
        ("smollm2", {"target_modules": "all-linear", "r": 4, "lora_alpha": 7, "lora_dropout": 0.1}),
        ("smollm2", {"target_modules": ["q_proj", "v_proj"], "r": 4,
                     "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"self_attn.v_proj": 11}}),
        ("qwen3", {"target_modules": ["k_proj", "down_proj"], "r": 2, "use_rslora": True,
                   "rank_pattern": {"down_proj": 5}}),
        ("phi-4-mini", {"target_modules": "all-linear", "r": 3}),
        ("pythia", {"target_modules": "all-linear", "r": 3}),
        ("gemma 3", {"target_modules": ["gate_proj", "o_proj"], "r": 3}),
    ],
)  # fmt: skip
def test_an_adapter_of_peft_computes_the_same_logits_here(tmp_path, family, said):
    theirs = theirs_on(family, tmp_path, **said)
    model, read = ours(tmp_path / "base")
    lora, weights = from_peft(open_peft(tmp_path / "adapter"), model.config, read.base)
    assert lora.dropout == said.get("lora_dropout", 0.0)
    put(model, lora, weights)
    ids = torch.randint(model.config.vocab_size, (3, 20))
    with torch.no_grad():
        found, expected = model(ids)[0], theirs(ids).logits
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "lora",
    [
        Lora(rank=3, alpha=5.0, tokens=()),
        Lora(rank=2, alpha=7.0, rslora=True, targets=("q_proj", "v_proj", "down_proj"), tokens=()),
    ],
)
def test_what_goes_out_comes_back_bit_for_bit(both, tmp_path, lora):
    model, _ = both(lora)
    opened = open_peft(tmp_path / "adapter")
    assert opened.config.base_model_name_or_path == str(tmp_path / "base")
    assert opened.base_digest == "b" * 64
    again, weights = from_peft(opened, model.config, None)
    own = {n: w.detach() for n, w in model.named_parameters() if w.requires_grad}
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[name], own[name]) for name in own)
    assert (again.rank, again.rslora) == (lora.rank, lora.rslora)
    assert again.scale == pytest.approx(lora.scale, rel=1e-12)


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ({"peft_type": "LOHA"}, "peft_type LOHA; expected LORA"),
        ({"use_dora": True}, "use_dora True is not computed here"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\] is not computed here"),
        ({"bias": "all"}, "bias all is not computed here"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices .* is not computed here"),
        ({"some_later_kind": {"x": 1}}, "some_later_kind .* is not computed here"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa changes the base"),
        ({"lora_alpha": "much"}, "lora_alpha: expected a valid number, found 'much'"),
        ({"lora_alpha": 0, "alpha_pattern": {"c_fc": 1}}, "lora_alpha: expected greater than 0"),
        ({"lora_alpha": 10**400}, "lora_alpha: expected .*found a huge number"),
        ({"lora_alpha": float("inf")}, "lora_alpha: expected"),
        ({"lora_dropout": 2.0}, "lora_dropout: expected less than 1, found the number 2"),
        ({"use_rslora": "false"}, "use_rslora: expected a valid boolean, found 'false'"),
        ({"r": True}, "r: expected a valid integer, found true"),
        ({"r": 10**400}, "r: expected .*found a huge number"),
        ({"r": 10**9}, "r: expected less than or equal to 100000"),
        ({"r": 3}, r"A and B of .* are \(2, 32\) and .*by r or rank_pattern"),
        ({"rank_pattern": {"mlp.c_fc": 3, "up_proj": 3}}, r"are \(\d, 32\) and .*by r or rank_pat"),
        ({"alpha_pattern": {"(": 3}}, r"alpha_pattern: '\(' is no module's name"),
        ({"alpha_pattern": {"((.+)+)+!": 1}}, r"alpha_pattern: .* is no module's name"),
        ({"rank_pattern": {"(" * 5000 + ")" * 5000: 1}}, r"rank_pattern: .* is no module's name"),
        ({"rank_pattern": {"a\nb": "x"}}, r"rank_pattern: .* is no module's name"),
        ({"rank_pattern": [1]}, "rank_pattern: expected .*, found an array of 1"),
        ({"alpha_pattern": True}, "alpha_pattern: expected .*, found true"),
        ({"rank_pattern": {"a" * 201: 2}}, "rank_pattern: .* at most 200 characters"),
        ({"rank_pattern": {f"a{i}": 2 for i in range(2001)}}, "rank_pattern: .* at most 2000"),
    ],
)
def test_what_is_not_computed_here_is_refused_by_name(both, tmp_path, said, refused):
    model, _ = both(Lora(rank=2))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    with pytest.raises(MyptError, match=refused) as error:
        from_peft(open_peft(tmp_path / "adapter"), model.config, None)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # that it keeps the embedding too
def test_pairs_that_are_no_blocks_or_are_not_whole_are_refused(tmp_path):
    theirs_on("tinyllama", tmp_path, target_modules=["q_proj", "embed_tokens"], r=2)
    model, read = ours(tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"embed_tokens.* \(and 2 more\) is beside no matrix"):
        from_peft(open_peft(tmp_path / "adapter"), model.config, read.base)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    kept = {n: t for n, t in load_file(path).items() if "embed" not in n}
    begins = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
    for broken, refused in (
        ({n: t for n, t in kept.items() if n != f"{begins}B.weight"}, "A and B of .*layers.1"),
        (kept | {f"{begins}A.weight": torch.ones(2, 7)}, r"are \(2, 7\) and"),
        ({n: t for n, t in kept.items() if begins not in n}, "no A and B for q_proj of block 1"),
        ({}, "no A and B; expected"),
    ):
        save_file(broken, path)
        with pytest.raises(CheckpointError, match=refused):
            from_peft(open_peft(tmp_path / "adapter"), model.config, read.base)
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="a pickle is never read"):
        open_peft(tmp_path / "adapter")


def filled(number):
    return lambda one: one.fill_(number)


@pytest.mark.parametrize(
    ("which", "change", "refused"),
    [
        ("A", lambda one: one.to(torch.complex64), r"lora_A.weight is C64; expected a weight's"),
        ("A", lambda one: one.to(torch.int64), "lora_A.weight is I64; expected a weight's type"),
        ("A", lambda one: one > 0, "lora_A.weight is BOOL; expected a weight's type"),
        ("B", filled(3e38), r"A and B of .* hold up to .* and 3e\+38; expected"),
        ("B", filled(float("nan")), r"adapter_model.safetensors: .*lora_B.weight .* inf or nan"),
        ("A", filled(float("inf")), r"adapter_model.safetensors: .*lora_A.weight .* inf or nan"),
        ("A", lambda _: torch.ones(40_000_000, 0), r"are \(40000000, 0\) .*expected \(\d, \d+\)"),
        ("A", lambda _: torch.tensor(1.0), r"are \(\) and"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_pair_of_numbers_are_refused(both, tmp_path, which, change, refused):
    model, _ = both(Lora(rank=2))
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if f"lora_{which}" in name)
    save_file(tensors | {name: change(tensors[name])}, path)
    with pytest.raises(CheckpointError, match=refused) as error:
        from_peft(open_peft(tmp_path / "adapter"), model.config, None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("make_other", [os.mkfifo, os.mkdir])
def test_what_is_no_ordinary_file_is_refused_as_such(tmp_path, name, make_other):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / name).unlink(missing_ok=True)
    make_other(tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{name}: no ordinary file"):
        open_peft(tmp_path)


def test_a_header_larger_than_any_adapter_needs_is_not_read(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    one = '"{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    header = "{" + ",".join(one.format(number) for number in range(300_000)) + "}"
    size = len(header).to_bytes(8, "little")
    (tmp_path / "adapter_model.safetensors").write_bytes(size + header.encode())
    with pytest.raises(CheckpointError, match=r"a header of \d+ bytes"):
        open_peft(tmp_path)


def test_a_pattern_may_be_anchored_as_in_peft():
    config = PeftConfig(r=2, rank_pattern={"^model.layers.0.q_proj$": 3, r"1\.q_proj": 4})
    names = ("model.layers.0.q_proj", "x.model.layers.0.q_proj", "model.layers.1.q_proj", "")
    assert [config.rank(name) for name in names] == [3, 2, 4, 2]
