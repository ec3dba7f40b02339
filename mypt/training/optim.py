"""AdamW, its learning rate, and its moments by the names of the parameters."""

import math
from pathlib import Path

import torch
from torch import Tensor

from mypt.config import TrainConfig
from mypt.errors import CheckpointError
from mypt.model.gpt import GPT
from mypt.training.distributed import part_of

FUSED_DEVICES = ("cpu", "cuda", "mps")
"""Where torch has AdamW as one kernel, several times quicker than a loop over tensors."""


def make_optimizer(model: GPT, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over ``model``, in two groups: matrices decay, vectors do not.

    Biases and norm gains are few and already near where they belong; pulling them to zero
    helps nothing. The learning rate is set for step 0 of the schedule.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=learning_rate_at(0, config),
        betas=(config.beta1, config.beta2),
        fused=weights[0].device.type in FUSED_DEVICES,
    )


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Return the learning rate of the step that follows ``step`` finished ones.

    It rises linearly over warmup_iters steps and reaches learning_rate on the next one. A cosine
    falls from there to min_lr_ratio of it on the last of max_iters steps; a trapezoid stays and
    falls in a straight line to the same end.
    """
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    falling = max(1, config.max_iters - 1 - config.warmup_iters)
    done = min(1.0, (step - config.warmup_iters) / falling)
    if config.schedule == "trapezoid":
        fall = max(1, min(falling, round(config.cooldown * config.max_iters)))
        left = max(0, config.max_iters - 1 - step)
        share = config.min_lr_ratio + (1 - config.min_lr_ratio) * min(1.0, left / fall)
        return config.learning_rate * share
    share = config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * share


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
