"""A module of transformers behind our head: its loss, its gradients, its conversations apart."""

import json

import pytest
import torch

from mypt.config import GPTConfig
from mypt.errors import CheckpointError, ConfigError
from mypt.inference.generation import generate, generate_batch
from mypt.inference.huggingface.imports import read_base, read_foreign
from mypt.inference.huggingface.tensors import Tensors
from mypt.model.foreign import write_module
from mypt.model.parameters import make_model, shapes
from tests.mypt.inference.huggingface.families import FAMILIES, FOREIGN, VOCAB, make

transformers = pytest.importorskip("transformers", reason="pip install 'mypt[transformers]'")


@pytest.fixture(params=FOREIGN)
def both(request, tmp_path):
    """A random model of transformers, and the same read back as one of ours."""
    theirs = make(request.param, tmp_path)
    return theirs, read(tmp_path)


def read(folder):
    found = read_foreign(folder)
    model = make_model(GPTConfig(**found.architecture.model_dump())).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(found.weights[name])
    return model


def batch():
    chance = torch.Generator().manual_seed(3)
    ids = torch.randint(VOCAB, (2, 31), generator=chance)
    mask = torch.randint(2, (2, 30), generator=chance).to(torch.uint8)
    return ids[:, :-1], ids[:, 1:], mask


def test_loss_and_gradients_are_those_of_transformers_with_the_same_labels(both):
    theirs, ours = both
    idx, targets, mask = batch()
    labels = torch.where(mask.bool(), targets, -100)
    logits = theirs(input_ids=idx, use_cache=False).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    expected.backward()
    found = ours.loss(idx, targets, mask).mean
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours(idx, targets, mask)[1], expected, rtol=1e-5, atol=0)
    grads = {n: p.grad for n, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if (wanted := grads.get(name)) is not None:
            bound = 1e-5 * max(1e-2, wanted.abs().max().item())
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=bound)


def test_parameters_have_the_names_of_the_module_and_all_that_its_files_hold(both):
    theirs, ours = both
    held = {name: p.shape for name, p in ours.named_parameters()}
    tied = {n for n in theirs.state_dict() if n.startswith("lm_head")} - held.keys()
    assert held.keys() == theirs.state_dict().keys() - tied
    assert shapes(ours.config) == held


def test_each_conversation_of_a_row_is_read_as_it_is_read_alone(both):
    _, ours = both
    idx = batch()[0]
    segments = torch.tensor([[0] * 11 + [1] * 14 + [-1] * 5, [0] * 30])
    changed = idx.clone()
    changed[0, 3] = idx[0, 4] - 1 if idx[0, 4] else 1
    with torch.no_grad():
        packed = ours.hidden(idx, segments=segments)
        alone = ours.hidden(idx[:1, 11:25])
        assert torch.equal(packed[0, 11:25], alone[0])
        assert torch.equal(packed[0, 11:25], ours.hidden(changed, segments=segments)[0, 11:25])


@pytest.mark.parametrize(("name", "apart"), [("gemma", True), ("lfm2", False), ("mamba", False)])
def test_rows_are_read_whole_only_where_no_bit_crosses(name, apart, tmp_path):
    make(name, tmp_path)
    model = read(tmp_path)
    assert model.prove_packing(64) is apart
    assert model.packs is apart
    idx = batch()[0]
    segments = torch.tensor([[0] * 11 + [1] * 19, [0] * 20 + [1] * 10])
    positions = torch.tensor([[*range(11), *range(19)], [*range(20), *range(10)]])
    with torch.no_grad():
        whole = model.hidden(idx, positions=positions, segments=segments)
        model.packs = False
        single = model.hidden(idx, positions=positions, segments=segments)
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-4)


def test_tokens_are_those_that_transformers_generates(both):
    theirs, ours = both
    prompts = [batch()[0][0, :n].tolist() for n in (9, 4, 12)]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                row = theirs(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            ids.append(int(row.argmax()))
        expected.append(ids[len(prompt) :])
    assert generate_batch(ours, prompts, max_tokens=6) == expected
    until = expected[0].index(stop := expected[0][-1]) + 1
    assert generate(ours, prompts[0], max_tokens=6, stop_ids=[stop]) == expected[0][:until]


def test_of_a_wrapper_that_sees_too_the_text_part_is_read_and_learned(tmp_path):
    """As Gemma 3 of 4B comes: a text model and a vision tower under one config."""
    eye = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    torch.manual_seed(1)
    config = transformers.Gemma3Config(
        text_config=FAMILIES["gemma 3"][1], vision_config=eye, mm_tokens_per_image=4,
        image_token_index=VOCAB - 1, boi_token_index=VOCAB - 2, eoi_token_index=VOCAB - 3,
    )  # fmt: skip
    theirs = transformers.Gemma3ForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"model_type 'gemma3'.*--base transformers"):
        read_base(tmp_path)
    ours = read(tmp_path)
    idx, targets, mask = batch()
    idx, targets = idx.clamp(max=VOCAB - 4), targets.clamp(max=VOCAB - 4)
    labels = torch.where(mask.bool(), targets, -100)
    with torch.no_grad():
        logits = theirs(input_ids=idx, use_cache=False).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    found = ours.train().loss(idx, targets, mask).mean
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    seeing = {n for n, p in ours.named_parameters() if p.grad is None}
    assert seeing == {n for n, p in ours.named_parameters() if not p.requires_grad}
    assert {n for n, _ in ours.named_parameters() if "vision" in n or "projector" in n} == seeing
    write_module(ours.config, dict(ours.named_parameters()), torch.float32, tmp_path / "out")
    held, back = (Tensors(folder) for folder in (tmp_path, tmp_path / "out"))
    assert held.held.keys() == back.held.keys()
    for name in held.held:
        torch.testing.assert_close(back.read(name), held.read(name), rtol=0, atol=0)


def test_tensors_that_are_not_all_of_the_module_are_refused(tmp_path):
    make("lfm2", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": VOCAB - 1}))
    with pytest.raises(CheckpointError, match="expected the tensors of Lfm2ForCausalLM"):
        read_foreign(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "none"}, "has no such model"),
        ({"num_hidden_layers": 1 << 20}, "num_hidden_layers 1048576: expected at most"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config 'fp8'"),
    ],
)
def test_what_transformers_has_not_is_refused_in_a_line(change, named, tmp_path):
    make("lfm2", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((ConfigError, CheckpointError), match=named):
        read_foreign(tmp_path)


def test_code_that_a_config_names_is_never_asked_for(tmp_path):
    make("lfm2", tmp_path)
    path = tmp_path / "config.json"
    said = {
        "auto_map": {"AutoModelForCausalLM": "modeling.Evil"},
        "_attn_implementation": "someone/kernel",
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    (tmp_path / "modeling.py").write_text("raise SystemExit('ran')\n")
    assert type(read(tmp_path).module).__name__ == "Lfm2ForCausalLM"


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch):
    make("lfm2", tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'mypt\[transformers\]'"):
        read_foreign(tmp_path)
