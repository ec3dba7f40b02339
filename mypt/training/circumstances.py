"""Program and machine of then and of now: what can make the last bits differ."""

from collections.abc import Iterator

from mypt.config import Preset
from mypt.data.dataset import Dataset
from mypt.errors import ConfigError
from mypt.training.checkpoint import Checkpoint
from mypt.training.compute import Compute, resolve
from mypt.training.lineage import CodeRecord, ComputeRecord, Lineage, Stretch
from mypt.training.provenance import record_code

_SAME_BITS_AS_TREE = {"processes", "parallel"}


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
    preset, code = preset_of_then(lineage), record_code()
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
    yield from between(f"until step {before.step}", before, record_code(), compute)


def between(
    who: str, then: Lineage | Stretch, code: CodeRecord, compute: ComputeRecord
) -> Iterator[str]:
    """Yield how a program and a machine differ from those of then, for each thing a line."""
    if then.code.digest != code.digest:
        old, new = (f"{c.version} {c.digest[:12]}" for c in (then.code, code))
        yield f"{who}: mypt {old} then, {new} now"
    before = then.code.libraries | then.compute.model_dump(mode="json")
    after = code.libraries | compute.model_dump(mode="json")
    for key, value in before.items():
        if after.get(key) != value:
            yield f"{who}: {key} {value} then, {after.get(key)} now"


def begin_notes(
    config: Preset, compute: Compute, dataset: Dataset, found: Checkpoint | None
) -> tuple[str, ...]:
    """Return what a run that begins or goes on should say, a line each."""
    notes = []
    if not dataset.manifest.tokens("val"):
        notes.append("no validation split: no validation loss, the last checkpoint is the one")
    if found is not None and found.lineage.compute != (now := compute.record()):
        before = found.lineage.compute
        notes += [
            f"{key}: {getattr(before, key)} until step {found.state.step}, {value} from here on;"
            " the last bits can differ from an undisturbed run"
            for key, value in now.model_dump().items()
            if value != getattr(before, key)
            and not (config.reduction == "tree" and key in _SAME_BITS_AS_TREE)
        ]
    return tuple(notes)
