"""One checkpoint: a step folder that is whole or not there, verified before it is used."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mypt import files, home
from mypt.config import GPTConfig, Preset
from mypt.data.manifest import TOKENIZER_STATE
from mypt.data.tokenizer import Tokenizer, load_tokenizer
from mypt.errors import CheckpointError, TrainingError
from mypt.model.gpt import GPT
from mypt.model.lora import BESIDE, merged
from mypt.model.parameters import make_model, shapes
from mypt.references import CheckpointRef
from mypt.training.checkpoints.state import HISTORY, STATE, History, TrainerState, write_history
from mypt.training.lineage import (
    LINEAGE,
    Lineage,
    ParentRecord,
    read_lineage,
    verify_folder,
    write_lineage,
)
from mypt.training.optim import moments_of, put_moments

OPTIMIZER = "optimizer.safetensors"
CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory; the optimizer is read only where training goes on."""

    path: Path
    ref: CheckpointRef
    config: GPTConfig
    preset: Preset
    state: TrainerState
    weights: dict[str, Tensor]
    """Every parameter once, by name, on the CPU: float32, or bfloat16 where training kept it so."""
    tokenizer: Tokenizer
    lineage: Lineage


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a checkpoint will hold, copied, so that training can go on beside the writing."""

    state: TrainerState
    weights: dict[str, Tensor]
    """Every parameter that is learned once, a tied one under its first name."""
    moments: dict[str, Tensor]
    """AdamW's moments and step counts as ``PARAMETER.exp_avg`` and so on."""
    history: History
    tokenizer_state: bytes
    """The dataset's ``tokenizer_state.json``."""
    lineage: Lineage
    """Without the digests of the files."""


def take_snapshot(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainerState,
    history: History,
    tokenizer_state: bytes,
    lineage: Lineage,
    copy: Callable[[Tensor], Tensor],
) -> Snapshot:
    """Copy what a checkpoint of ``state.step`` holds to the CPU, tensors by ``copy``."""
    return Snapshot(
        state=state,
        weights={name: copy(p) for name, p in kept_of(model).items()},
        moments={name: copy(tensor) for name, tensor in moments_of(model, optimizer).items()},
        history=history.copy(),
        tokenizer_state=tokenizer_state,
        lineage=lineage.model_copy(
            update={"step": state.step, "tokens": state.tokens, "supervised": state.supervised}
        ),
    )


def save_checkpoint(folder: Path, snapshot: Snapshot) -> CheckpointRef:
    """Write a checkpoint below ``folder``, the model's, with ``lineage.json`` last.

    Raises:
        TrainingError: If a weight is not finite, so that nobody could go on from it.
        CheckpointError: If the disk refuses; nothing is left under the checkpoint's name then.
        FileExistsError: If there is a checkpoint of that step.
    """
    state, lineage = snapshot.state, snapshot.lineage
    path = folder / home.step_folder(state.step)
    _check_finite(path, snapshot)
    try:
        with files.new_folder(path) as new:
            save_file(snapshot.weights, new / lineage.weights_file)
            save_file(snapshot.moments, new / OPTIMIZER)
            write_history(new / HISTORY, snapshot.history)
            files.write_json(new / CONFIG, lineage.config.model_dump(mode="json"))
            files.write_json(new / STATE, state.model_dump(mode="json"))
            files.write_bytes(new / TOKENIZER_STATE, snapshot.tokenizer_state)
            digest = write_lineage(new, lineage)
    except FileExistsError:
        raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be written: {_first_line(error)}; the checkpoint before it is whole;"
            " make room and run the same again"
        ) from error
    return CheckpointRef(path=str(path), digest=digest, step=state.step)


def load_checkpoint(path: Path, *, verify: bool = True, merge: bool = True) -> Checkpoint:
    """Read a step folder.

    Args:
        path: The step folder.
        verify: Hash every file first; without it a changed byte goes unseen.
        merge: Return of an adapter the weights that it makes of its base's; else itself.

    Raises:
        CheckpointError: If a file is missing, changed or senseless; named, before any is used. Or
            if an adapter's base is gone or changed.
    """
    lineage = verify_folder(path) if verify else read_lineage(path)
    try:
        preset = Preset.model_validate_json(files.read_bytes(path / CONFIG))
        state = TrainerState.model_validate_json(files.read_bytes(path / STATE))
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"{path}: cannot be read: {_first_line(error)}") from None
    weights = _read_tensors(path / lineage.weights_file)
    _check_shapes(shapes(preset.gpt(), preset.lora), weights, path)
    if merge and preset.lora and lineage.parent:
        base = load_checkpoint(find_base(path, lineage.parent), verify=verify).weights
        weights = merged(preset, preset.lora, base, weights, preset.weight_dtype)
    return Checkpoint(
        path=path,
        ref=CheckpointRef(path=str(path), digest=lineage.digest, step=lineage.step),
        config=preset.gpt(),
        preset=preset,
        state=state,
        weights=weights,
        tokenizer=load_tokenizer(path),
        lineage=lineage,
    )


def find_base(path: Path, base: ParentRecord) -> Path:
    """Return where the base of the adapter at ``path`` lies: as recorded, or in these models."""
    name = Path(base.model_name, home.step_folder(base.step))
    places = Path(base.path), path.absolute().parent.parent / name, home.models_dir() / name
    for place in places:
        if home.exists(place / LINEAGE) and read_lineage(place).weights == base.weights:
            return place
    raise CheckpointError(
        f"{path}: an adapter of {base.model_name} step {base.step}, weights {base.weights[:12]},"
        f" which are not at {places[0]}, nor at {places[1]}; put that checkpoint back"
    )


def load_model(name_or_path: str | Path, device: str = "cpu") -> tuple[GPT, Tokenizer, Checkpoint]:
    """Return a verified model ready to answer, its tokenizer and where it came from.

    Args:
        name_or_path: A name (its best checkpoint by validation loss, else its latest), a model
            folder likewise, or a step folder.
        device: Where the weights go.

    Raises:
        CheckpointError: As :func:`load_checkpoint`.
    """
    checkpoint = load_checkpoint(home.checkpoint_to_use(name_or_path))
    model = make_model(checkpoint.config)
    load_weights(model, checkpoint.weights, checkpoint.path)
    return model.to(device).eval(), checkpoint.tokenizer, checkpoint


def kept_of(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters of a checkpoint by name: an adapter's alone, where there is one."""
    named = dict(model.named_parameters())
    adapted = [name for name in named if f".{BESIDE}." in name]
    return {name: named[name] for name in adapted or named}


def load_weights(model: torch.nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Copy ``weights`` into the parameters that :func:`kept_of` tells.

    Raises:
        CheckpointError: If a parameter is missing, left over or of another shape.
    """
    parameters = kept_of(model)
    _check_shapes({name: p.shape for name, p in parameters.items()}, weights, path)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def _check_shapes(expected: dict[str, torch.Size], weights: dict[str, Tensor], path: Path) -> None:
    odd = sorted(expected.keys() ^ weights.keys())
    odd += [n for n, shape in expected.items() if n in weights and weights[n].shape != shape]
    if odd:
        raise CheckpointError(
            f"{path}: its file of weights does not fit the architecture in {CONFIG}: {odd[0]}"
            f" (and {len(odd) - 1} more); the folder mixes two models"
        )


def load_optimizer(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the moments of the checkpoint at ``path`` into ``optimizer``, bit for bit.

    Raises:
        CheckpointError: If it knows a parameter that the model has not.
    """
    put_moments(_read_tensors(path / OPTIMIZER), path / OPTIMIZER, model, optimizer)


def _check_finite(path: Path, snapshot: Snapshot) -> None:
    # By NumPy: torch would give the thread that writes checkpoints a second team of threads, and
    # with more threads than cores OpenMP lets all of them sleep after every product (D60).
    odd = [name for name, tensor in snapshot.weights.items() if not _is_finite(tensor)]
    if odd:
        raise TrainingError(
            f"{path}: not written, {odd[0]} (and {len(odd) - 1} more) holds inf or nan; the"
            " checkpoint before it is good; lower learning_rate under another model name"
        )


def _is_finite(tensor: Tensor) -> bool:
    if tensor.dtype != torch.bfloat16:  # which NumPy has not
        return bool(np.isfinite(tensor.numpy()).all())
    return bool((tensor.view(torch.int16).numpy() & 0x7F80 != 0x7F80).all())  # the exponent's bits


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
