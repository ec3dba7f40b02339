"""What a lineage records of dataset, program and machine, and how those of now differ.

Another program or machine is what can make the last bits differ.
"""

import hashlib
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mypt
from mypt.config import Preset
from mypt.data.dataset import Dataset
from mypt.data.manifest import Manifest
from mypt.errors import ConfigError
from mypt.training.checkpoints.checkpoint import Checkpoint
from mypt.training.compute import Compute, resolve
from mypt.training.lineage import (
    CodeRecord,
    ComputeRecord,
    DatasetRecord,
    EarlierSteps,
    EpochRecord,
    Extension,
    Lineage,
    ParentRecord,
    RunContext,
)
from mypt.training.loader import Epoch
from mypt.training.optim import learning_rate_at

_LIBRARIES = (
    "torch", "numpy", "safetensors", "tiktoken", "rustbpe", "pyarrow", "pydantic", "blake3",
)  # fmt: skip
_ASKED = (
    ("transformers", "base", "transformers"),
    ("bitsandbytes", "optimizer", "adamw8bit"),
    ("bitsandbytes", "weight_dtype", "nf4"),
)
"""Libraries that compute something where a knob says so, that knob, and what it says."""
_UNKNOWN = ("isa", "")
"""What an older mypt has not written differs from nothing."""
_SAME_BITS_AS_TREE = {"processes", "parallel"}


def record_dataset(path: Path, manifest: Manifest) -> DatasetRecord:
    """Return what a checkpoint must remember of the dataset at ``path``."""
    return DatasetRecord(
        path=str(path.absolute()),
        digest=manifest.digest,
        parent=manifest.parent,
        kind=manifest.kind,
        tokens={"train": manifest.tokens("train"), "val": manifest.tokens("val")},
        tokenizer_name=manifest.tokenizer_name,
        tokenizer=manifest.tokenizer.digest,
        template=manifest.template,
        mask=manifest.mask,
        sources=manifest.sources,
        pairs=manifest.pairs,
        making=manifest.making,
    )


def record_code(config: Preset) -> CodeRecord:
    """Return which program is running, down to the bytes of its files.

    Args:
        config: What it trains, whose arithmetic may be another library's.
    """
    package = Path(mypt.__file__).parent
    hasher = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        hasher.update(f"{path.relative_to(package).as_posix()}\0".encode())
        hasher.update(hashlib.sha256(path.read_bytes()).digest())
    commit, dirty = _checkout(package)
    return CodeRecord(
        version=mypt.__version__,
        digest=hasher.hexdigest(),
        commit=commit,
        dirty=dirty,
        libraries={"python": platform.python_version()} | _versions(config),
    )


def record_earlier(
    before: Lineage, code: CodeRecord, compute: ComputeRecord, context: RunContext
) -> tuple[EarlierSteps, ...]:
    """Return who made the steps up to ``before``, if it was not who goes on from there."""
    last = EarlierSteps(
        until=before.step, code=before.code, compute=before.compute, context=before.context
    )
    same = last.made_by(code, compute, context)
    return before.earlier if same else (*before.earlier, last)


def _versions(config: Preset) -> dict[str, str]:
    asked = (name for name, knob, word in _ASKED if getattr(config, knob) == word)
    found = {}
    for name in (*_LIBRARIES, *asked):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a build that carries no metadata
            found[name] = "unknown"
    return found


def _checkout(package: Path) -> tuple[str | None, bool | None]:
    """Return commit and dirtiness, or None twice where git does not track the package."""
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True, text=True, timeout=10, check=False,
            start_new_session=True,  # a Ctrl-C that a training hears must not take its commit away
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def preset_of_then(lineage: Lineage) -> Preset:
    """Return what was trained with, every ``auto`` as it was resolved then if it can be.

    In one process, however many there were: with reduction tree that gives the same bits.
    """
    then = lineage.compute
    values = {"device": then.device, "dtype": then.dtype, "threads": then.threads}
    values |= {"parallel": "none", "processes": 1}
    preset = Preset.model_validate(lineage.config.model_dump() | values)
    try:
        resolve(preset, preset.gpt())
    except ConfigError:
        return preset.model_copy(update={"device": "auto"})
    return preset


def changes(lineage: Lineage) -> Iterator[str]:
    """Yield how the program and the machine differ from those that made a checkpoint."""
    preset = preset_of_then(lineage)
    code = record_code(preset)
    compute = resolve(preset, preset.gpt()).record()
    name = f"{lineage.model_name} step {lineage.step}"
    for before in lineage.earlier:
        yield from between(f"{name}, until {before.until}", before, code, compute)
    yield from between(name, lineage, code, compute)


def changes_on_resume(before: Lineage, preset: Preset) -> Iterator[str]:
    """Yield what is different for the steps that are made from here on.

    Args:
        before: Of the checkpoint that training goes on from.
        preset: What it is trained with now.
    """
    compute = resolve(preset, preset.gpt()).record()
    yield from between(f"until step {before.step}", before, record_code(preset), compute)


def between(
    who: str, then: Lineage | EarlierSteps, code: CodeRecord, compute: ComputeRecord
) -> Iterator[str]:
    """Yield how a program and a machine differ from those of then, for each thing a line."""
    if then.code.digest != code.digest:
        old, new = (f"{c.version} {c.digest[:12]}" for c in (then.code, code))
        yield f"{who}: mypt {old} then, {new} now"
    before = then.code.libraries | then.compute.model_dump(mode="json")
    after = code.libraries | compute.model_dump(mode="json")
    for key, value in before.items():
        if after.get(key) != value and (key, value) != _UNKNOWN:
            yield f"{who}: {key} {value} then, {after.get(key)} now"


def record_extended(before: Lineage, config: Preset) -> tuple[Extension, ...]:
    """Return what a training was planned for before it was made as long as ``config`` says."""
    length = before.config.max_iters
    if length == config.max_iters:
        return before.extended
    return (*before.extended, Extension(step=before.step, max_iters=length))


def _extension_note(before: Lineage, config: Preset) -> str:
    last, first = (
        learning_rate_at(before.step - 1, before.config),
        learning_rate_at(before.step, config),
    )
    return (
        f"extended at step {before.step}, from {before.config.max_iters} steps to"
        f" {config.max_iters}: AdamW's state is kept, the learning rate is that of the new length"
        f" from here on and jumps from {last:.3g} to {first:.3g}"
    )


def begin_lineage(
    model_name: str,
    config: Preset,
    parent: ParentRecord | None,
    dataset: Dataset,
    compute: Compute,
    epoch: Epoch,
    context: RunContext,
    found: Checkpoint | None,
) -> Lineage:
    """Return the lineage of a run's next checkpoint, but for its step and files."""
    maker = record_code(config), compute.record(), context
    return Lineage(
        model_name=model_name,
        step=0,
        tokens=0,
        supervised=0,
        parent=parent,
        dataset=record_dataset(dataset.path, dataset.manifest),
        epoch=EpochRecord(
            steps=epoch.steps, tokens=epoch.tokens, skipped=epoch.skipped, accounts=epoch.accounts
        ),
        config=config,
        code=maker[0],
        compute=maker[1],
        context=context,
        earlier=() if found is None else record_earlier(found.lineage, *maker),
        extended=() if found is None else record_extended(found.lineage, config),
    )


def begin_notes(
    config: Preset, compute: Compute, dataset: Dataset, found: Checkpoint | None
) -> tuple[str, ...]:
    """Return what a run that begins or goes on should say, a line each."""
    notes = []
    if not dataset.manifest.tokens("val"):
        notes.append("no validation split: no validation loss, the last checkpoint is the one")
    if found is not None and found.lineage.config.max_iters != config.max_iters:
        notes.append(_extension_note(found.lineage, config))
    if found is not None and found.lineage.compute != (now := compute.record()):
        before = found.lineage.compute
        notes += [
            f"{key}: {getattr(before, key)} until step {found.state.step}, {value} from here on;"
            " the last bits can differ from an undisturbed run"
            for key, value in now.model_dump().items()
            if value != getattr(before, key)
            and (key, getattr(before, key)) != _UNKNOWN
            and not (config.reduction == "tree" and key in _SAME_BITS_AS_TREE)
        ]
    return tuple(notes)
