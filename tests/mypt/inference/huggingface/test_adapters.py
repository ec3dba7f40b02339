"""Adapters that go to ``peft``: its logits and gradients are ours."""

import pytest
import torch

from mypt.config import GPTConfig, Lora
from mypt.data.tokenizer import load_tokenizer
from mypt.inference.huggingface.adapters import export_peft
from mypt.inference.huggingface.exports import export_hf
from mypt.model.gpt import GPT
from mypt.model.lora import adapt

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
            base=None, base_name=str(tmp_path / "base"), card="",
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
