"""torch.compile for training, around attention, and for generation: few graphs for all sizes."""

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor

from mypt.errors import ConfigError
from mypt.model.cache import KVCache
from mypt.model.foreign import ForeignGPT
from mypt.model.gpt import GPT

T = TypeVar("T")
PARTS = ("before", "before_at", "after")
"""What is compiled of a block. Attention stays outside: which conversations a batch packs differs
from batch to batch, and its kernels are compiled already."""


def compile_blocks(model: GPT, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the parts of each block, to the same results within rounding.

    Sizes are symbols in the graphs, so that another number of rows, places or supervised tokens
    needs no other graph, and all blocks share them.
    """
    for block in model.transformer.h:
        for part in PARTS:
            setattr(block, part, _compiled(getattr(block, part), backend))


def compile_training(model: GPT) -> tuple[str, ...]:
    """Compile the blocks where this machine can; return a line where it cannot."""
    if missing := missing_compiler(model.lm_head.weight.device):
        return (f"compile: {missing} is not on this machine, so that nothing is compiled",)
    compile_blocks(model)
    return ()


def compile_reading(model: GPT, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile what a model does with each row's one new token, to the same within rounding.

    A few graphs serve every number of rows, of tokens before and of room: a single row has its
    own. Prompts of several tokens are read without.

    Raises:
        ConfigError: If the model is a module of transformers.
    """
    if isinstance(model, ForeignGPT):
        raise ConfigError("--compile: a model of base transformers is not compiled; leave it out")
    plain = model.read
    compiled = _compiled(plain, backend)

    def read(ids: Tensor, cache: KVCache, positions: Tensor, visible: Tensor) -> Tensor:
        return (compiled if ids.shape[1] == 1 else plain)(ids, cache, positions, visible)

    model.read = read  # type: ignore[method-assign]


def _compiled(work: Callable[..., T], backend: str | Callable[..., Any]) -> Callable[..., T]:
    """Compile ``work`` for all sizes, and let a compiler that fails say so in one line.

    Raises (on a call):
        ConfigError: If it could not be compiled.
    """
    from torch._dynamo.exc import BackendCompilerFailed  # seconds, which only who compiles pays

    compiled = torch.compile(work, dynamic=True, backend=backend)

    def call(*given: Any) -> T:
        try:
            return compiled(*given)
        except BackendCompilerFailed as failed:
            said = str(failed).splitlines()
            line = next((line for line in said if "error: " in line), said[0]).strip()
            raise ConfigError(
                f"torch.compile could not compile the model: {line}; mend the compiler, or set"
                " compile: false and leave --compile out"
            ) from failed

    return call


def missing_compiler(device: torch.device) -> str:
    """Return what torch.compile needs for ``device`` and this machine has not, or nothing."""
    if device.type == "cpu":
        named = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        return "" if shutil.which(named) else f"a C++ compiler ({named or 'CXX'})"
    if device.type == "cuda":
        return "" if find_spec("triton") else "triton"
    return f"a backend for {device.type}"
