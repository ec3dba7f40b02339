"""AdamW's state by the names of the parameters, as checkpoints hold it."""

from pathlib import Path

import torch
from torch import Tensor

from mypt.errors import CheckpointError
from mypt.training.sharding import part_of


def moments_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return AdamW's moments and step counts as ``PARAMETER.exp_avg`` and so on, not copied."""
    moments = optimizer.state_dict()["state"]
    return {
        f"{name}.{part}": tensor
        for index, name in enumerate(_names(model, optimizer))
        for part, tensor in moments.get(index, {}).items()
    }


def put_moments(
    found: dict[str, Tensor],
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put what :func:`moments_of` once returned into ``optimizer``; of a shard, this rank's part.

    Raises:
        CheckpointError: If it knows a parameter that the model has not; ``path`` is named.
    """
    moments: dict[str, dict[str, Tensor]] = {}
    parameters = dict(model.named_parameters())
    for key, tensor in found.items():
        name, _, part = key.rpartition(".")
        if name not in parameters:
            raise CheckpointError(f"{path}: holds {name}, which the model has not")
        moments.setdefault(name, {})[part] = part_of(tensor, parameters[name])
    names = _names(model, optimizer)
    state = {index: moments[name] for index, name in enumerate(names) if name in moments}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the parameters' names in the optimizer's order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
