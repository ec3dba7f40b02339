"""A model by its config, and the shapes of its parameters, for which no memory is taken."""

from typing import Any, Final

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mypt.config import GPTConfig, Lora
from mypt.model.foreign import ForeignGPT
from mypt.model.four_bits import FourBits
from mypt.model.gpt import GPT
from mypt.model.lora import adapt

_BLOCKS: Final = "transformer.h."


class _Unfilled(TorchFunctionMode):
    """Leaves new weights as they are: without memory, filling them loads torch's compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        said = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            return said["tensor"] if "tensor" in said else args[0]
        return func(*args, **said)


def make_model(config: GPTConfig) -> GPT:
    """Return a model with random weights: ours, or that of `transformers` if the config says so.

    Raises:
        ConfigError: If `transformers` is not installed, or has no such model.
    """
    return ForeignGPT(config) if config.base == "transformers" else GPT(config)


def n_parameters(model: nn.Module) -> int:
    """Return how many weights a model has: a tied one once, in four bits all they stand for."""
    packed = sum(part.shape.numel() for part in model.modules() if isinstance(part, FourBits))
    return packed + sum(parameter.numel() for parameter in model.parameters())


def shapes(config: GPTConfig, lora: Lora | None = None) -> dict[str, torch.Size]:
    """Return the shape of each parameter by its name; no memory is taken, whatever is claimed.

    Args:
        config: The model's.
        lora: Of whose adapter instead.
    """
    with torch.device("meta"), _Unfilled():
        first = make_model(config.model_copy(update={"n_layer": 1}))
        if lora is not None:
            adapt(first, config, lora)
    if isinstance(first, ForeignGPT):  # whose config is the base's own
        return {name: weight.shape for name, weight in first.named_parameters()}
    found = {name: w.shape for name, w in first.named_parameters() if w.requires_grad}
    block = {name: shape for name, shape in found.items() if name.startswith(f"{_BLOCKS}0.")}
    return found | {
        name.replace(f"{_BLOCKS}0.", f"{_BLOCKS}{number}.", 1): shape
        for number in range(config.n_layer)
        for name, shape in block.items()
    }


def on_weights(config: GPTConfig, base: GPT) -> GPT:
    """Return a model of its own whose weights are the tensors of another; none is copied.

    Args:
        config: The model's; its weights have the shapes of the other's.
        base: Without an adapter.
    """
    with _Unfilled():  # memory that nobody writes to is never taken
        model = make_model(config)
    model.load_state_dict(base.state_dict(keep_vars=True), assign=True)
    for name, table in base.named_buffers():
        place, _, own = name.rpartition(".")
        if torch.equal(model.get_buffer(name), table):
            setattr(model.get_submodule(place), own, table)
    model._turned = base._turned  # the vocabulary's, the other way round
    return model
