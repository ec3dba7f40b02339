"""AdamW and its learning rate."""

import math

import torch

from mypt.config import TrainConfig
from mypt.model.gpt import GPT

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
