"""Several models in memory: adapters of one base share its weights, and answer as each alone."""

import pytest
import torch

from mypt import home
from mypt.inference.generation import generate
from mypt.model.compiling import compile_reading
from mypt.training.checkpoints.checkpoint import load_checkpoint, load_model
from mypt.training.checkpoints.several import load_models

LORA = {"rank": 3, "alpha": 6.0}


@pytest.fixture
def trained(plan, finish):
    """A base and two adapters of it."""
    finish(plan("base", max_iters=6, lora=None))
    finish(plan("tuned", init_from="base", lora=LORA))
    finish(plan("other", init_from="base", lora=LORA | {"targets": ["q_proj"]}, seed=5))
    return "base", "tuned", "other"


def held(models):
    """Bytes of all weights and tables, those in the same place once."""
    tensors = [one for model in models for one in (*model.parameters(), *model.buffers())]
    places = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return sum(places.values())


def answers(model, tokenizer):
    prompts = [tokenizer.encode(text).tolist() for text in ("say 7", "12 + 30", "a")]
    return [generate(model, prompt, max_tokens=9) for prompt in prompts]


@pytest.mark.parametrize("names", [("base", "tuned", "other"), ("other", "tuned")])
@pytest.mark.usefixtures("trained")
def test_adapters_add_their_own_size_and_nothing_more(names):
    models = [model for model, _, _ in load_models(names)]
    base, _, _ = load_model("base")
    adapters = sum(
        weight.numel() * weight.element_size()
        for name in names
        if name != "base"
        for weight in load_checkpoint(home.checkpoint_to_use(name), merge=False).weights.values()
    )
    assert held(models) == held([base]) + adapters


def test_each_answers_as_it_does_alone(trained):
    ids = torch.arange(32).reshape(2, 16)
    for name, (model, tokenizer, found) in zip(trained, load_models(trained), strict=True):
        alone, _, _ = load_model(name)
        assert found.lineage.model_name == name
        with torch.no_grad():
            assert (model(ids)[0] - alone(ids)[0]).abs().max() < 1e-5
        assert answers(model, tokenizer) == answers(alone, tokenizer)


def test_compiled_an_adapter_answers_as_before(trained):
    _, (model, tokenizer, _), _ = load_models(trained)
    before = answers(model, tokenizer)
    compile_reading(model, backend="eager")
    assert answers(model, tokenizer) == before


@pytest.mark.usefixtures("trained")
def test_an_answer_is_the_same_whatever_else_is_served():
    together = load_models(("base", "tuned", "other"))
    apart = load_models(("tuned", "other"))
    ids = torch.arange(16)[None]
    for one, other in zip(together[1:], apart, strict=True):
        assert torch.equal(one[0](ids)[0], other[0](ids)[0])


def test_frozen_weights_are_rounded_as_they_were_in_training(plan, finish):
    finish(plan("base", max_iters=6, lora=None))
    changes = {"init_from": "base", "lora": LORA, "weight_dtype": "bfloat16", "dtype": "bfloat16"}
    finish(plan("tuned", **changes))
    finish(plan("other", **changes, seed=5))
    names, ids = ("base", "tuned", "other"), torch.arange(16)[None]
    models = [model for model, _, _ in load_models(names)]
    for name, model in zip(names, models, strict=True):
        assert (model(ids)[0] - load_model(name)[0](ids)[0]).abs().max() < 1e-5
    matrix = "transformer.h.0.attn.c_attn.weight"
    base, tuned, other = (model.get_parameter(matrix) for model in models)
    assert tuned is other
    assert tuned is not base


def test_models_that_share_nothing_are_loaded_whole(plan, finish):
    finish(plan("base", max_iters=6, lora=None))
    finish(plan("tuned", init_from="base", lora=LORA))
    (model, _, found), *_ = load_models(["tuned"])
    assert not [name for name, _ in model.named_parameters() if "adapter" in name]
    assert found.weights == {}
