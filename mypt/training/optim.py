"""AdamW, its learning rate, and its moments by the names of the parameters.

Of weights in bfloat16 an update is often less than half of what separates two neighbours, and
rounding to the nearer would lose it. So the update is made in float32 and rounded up or down by
chance, as often as it is far from the other: the mean over steps is the float32 one.

Moments of eight bits are codes of a map of 256 values, each block of 256 with the largest of them
as its scale (Dettmers et al. 2022).
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from mypt.config import TrainConfig
from mypt.errors import CheckpointError, ConfigError
from mypt.model.four_bits import bitsandbytes
from mypt.model.gpt import GPT
from mypt.model.lora import Linear
from mypt.training.distributed import part_of

FUSED_DEVICES = ("cpu", "cuda", "mps")
"""Where torch has AdamW as one kernel, several times quicker than a loop over tensors."""
EIGHT_BIT_FROM = 4096
"""Numbers that a matrix has at least, for moments of eight bits."""
EIGHT_BIT_BLOCK = 256
"""Numbers that share a scale then; bitsandbytes has no other number."""
_MOMENTS = ("exp_avg", "exp_avg_sq")
_SCALE = "_scale"
"""How the scales of a moment's blocks are called, after the moment."""


def make_optimizer(model: GPT, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over ``model``, in two groups: matrices decay, vectors do not.

    Biases and norm gains are few and already near where they belong; pulling them to zero
    helps nothing. The learning rate is set for step 0 of the schedule.

    Raises:
        ConfigError: If moments are to have eight bits and this machine cannot.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    settings: dict[str, Any] = {
        "lr": learning_rate_at(0, config),
        "betas": (config.beta1, config.beta2),
        "fused": weights[0].device.type in FUSED_DEVICES,
    }
    eight = config.optimizer == "adamw8bit"
    if eight or any(weight.dtype == torch.bfloat16 for weight in weights):
        codes = EightBit(model, weights[0].device) if eight else None
        return LowAdamW(config.seed, codes, groups, **settings)
    return torch.optim.AdamW(groups, **settings)


def narrow(model: GPT, weight_dtype: str) -> GPT:
    """Return ``model``, its matrices of products in ``weight_dtype``.

    Their gradients stay float32, so that micro-batches add up as ever. Norms, biases and tables
    that are only read (positions, an embedding with a head beside it) are few or no product's.
    In nf4, whose matrices are frozen, the vocabulary's stays float32 too.

    Raises:
        ConfigError: If nf4 is wanted and this machine has none.
    """
    if weight_dtype == "nf4":
        for part in model.transformer.h.modules():
            if isinstance(part, Linear):
                part.pack()
    if weight_dtype == "bfloat16":
        for part in model.modules():
            if isinstance(part, nn.Linear):
                part.weight.data = part.weight.data.bfloat16()
                part.weight.grad_dtype = torch.float32
    return model


class EightBit:
    """AdamW's update with moments of eight bits, by `bitsandbytes`, and of which weights.

    Those of embeddings stay float32, as that library's authors advise, and those of few numbers.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """Look for the library's kernels, and try them.

        Raises:
            ConfigError: If there are none for ``device``, or they do not run.
        """
        library = bitsandbytes("optimizer adamw8bit", "optimizer adamw", device)
        self._whole = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
        try:
            self._update = torch.ops.bitsandbytes.optimizer_update_8bit_blockwise
            self._maps = [library.create_dynamic_map(signed=s).to(device) for s in (True, False)]
            tried = torch.zeros(EIGHT_BIT_FROM, 1, device=device)
            group = {"betas": (0.9, 0.9), "eps": 1e-8, "lr": 0.0, "weight_decay": 0.0}
            self.update(tried, tried.clone(), {"step": torch.zeros(()), **self.begin(tried)}, group)
        except (RuntimeError, OSError, AttributeError) as error:
            raise ConfigError(
                f"optimizer adamw8bit: bitsandbytes does not run on {device.type}:"
                f" {str(error).splitlines()[0]}; set optimizer adamw"
            ) from None

    def begin(self, weight: Tensor) -> dict[str, Tensor]:
        """Return the moments of a weight before its first step; none where they stay float32."""
        if weight.dim() < 2 or weight.numel() < EIGHT_BIT_FROM or weight in self._whole:
            return {}
        blocks = -(-weight.numel() // EIGHT_BIT_BLOCK)
        made: dict[str, Tensor] = {}
        for part in _MOMENTS:
            made[part] = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
            made[part + _SCALE] = torch.zeros(blocks, device=weight.device)
        return made

    def update(
        self, precise: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        """Make one step of a weight in float32, in place."""
        state["step"] += 1
        self._update(
            "adam", grad.contiguous(), precise, state["exp_avg"], state["exp_avg_sq"],
            *group["betas"], 0.0, 0.0, group["eps"], int(state["step"].item()), group["lr"],
            *self._maps, state["exp_avg" + _SCALE], state["exp_avg_sq" + _SCALE],
            group["weight_decay"], 1.0, False,
        )  # fmt: skip


class LowAdamW(torch.optim.AdamW):
    """AdamW in float32 over weights, and with moments, that may be kept in fewer bits.

    Weights in bfloat16 are rounded by chance, which is a function of the seed and of how many
    steps were made, so that a resumed run has the same.
    """

    def __init__(self, seed: int, codes: EightBit | None, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._seed, self._codes = seed, codes

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update every weight that has a gradient."""
        chance: torch.Generator | None = None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight] or self._begin(weight)
                if weight.dtype == torch.bfloat16 and chance is None:
                    chance = self._chance(weight.device, int(state["step"].item()))
                precise = weight.float()  # itself, where it is
                self._update(precise, weight.grad, state, group)
                if chance is not None and weight.dtype == torch.bfloat16:
                    weight.copy_(rounded(precise, chance))

    def _begin(self, weight: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        state["step"] = weight.new_zeros((), dtype=torch.float32)
        state |= (self._codes and self._codes.begin(weight)) or {
            part: torch.zeros_like(weight, dtype=torch.float32) for part in _MOMENTS
        }
        return state

    def _update(
        self, precise: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        if self._codes and state["exp_avg"].dtype == torch.uint8:
            self._codes.update(precise, grad, state, group)
            return
        adamw(
            [precise], [grad], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]],
            fused=group["fused"], amsgrad=False, maximize=False, beta1=group["betas"][0],
            beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"],
            eps=group["eps"],
        )  # fmt: skip

    def _chance(self, device: torch.device, step: int) -> torch.Generator:
        key = np.random.SeedSequence((self._seed, step)).generate_state(1, np.uint64)[0]
        return torch.Generator(device).manual_seed(int(key))


def rounded(values: Tensor, chance: torch.Generator) -> Tensor:
    """Return float32 ``values``, which are overwritten, as one of their neighbours in bfloat16.

    The sixteen bits that bfloat16 has not are a fraction of the way from one neighbour to the
    next: a random number is added to them and what they carry over decides.

    Args:
        values: Finite, on the generator's device.
        chance: Where random bits come from.
    """
    bits = values.view(torch.int32)
    more = torch.randint(
        1 << 16, bits.shape, generator=chance, device=bits.device, dtype=torch.int32
    )
    return bits.add_(more).bitwise_and_(-1 << 16).view(torch.float32)


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
    parameters = dict(model.named_parameters())
    for key, tensor in found.items():
        name, _, part = key.rpartition(".")
        if name not in parameters:
            raise CheckpointError(f"{path}: holds {name}, which the model has not")
        weight = parameters[name]  # load_state_dict would give moments the weight's own type
        optimizer.state[weight][part] = part_of(tensor, weight).to(weight.device)


def _names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the parameters' names in the optimizer's order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
