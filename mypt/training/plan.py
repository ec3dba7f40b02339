"""What a run will do, resolved and checked before its first step."""

from pathlib import Path
from typing import Any, Literal

from mypt import files, home
from mypt.config import Architecture, Preset
from mypt.data.dataset import open_dataset
from mypt.data.manifest import Manifest, read_manifest
from mypt.data.packing.layout import default_policy
from mypt.data.policies import policy_in_force, policy_words
from mypt.data.tokenizer import load_tokenizer
from mypt.data.vocabularies.base_files import PREFIXES
from mypt.errors import ConfigError, MaskError
from mypt.parsing import Frozen, parse_config
from mypt.references import DatasetRef
from mypt.training.batches.order import check_pairs
from mypt.training.lineage import (
    IMPORTED,
    Lineage,
    ParentRecord,
    parent_of,
    read_lineage,
)

_LABELS = {"name"}
_CIRCUMSTANCES = {
    "parallel", "processes", "activation_checkpointing", "max_restarts", "step_timeout",
}  # fmt: skip
"""Who computes, and when they give up: a run may go on with others (DESIGN.md D90)."""

_SCRATCH = ("no base model: fine-tuning starts from random weights (parent: none)",)


class RunPlan(Frozen):
    """One run, resolved: written as ``run.json``, and what the same name must mean again."""

    model_name: str
    preset: Preset
    """Architecture of the base model where there is one, training values of the preset."""
    dataset: DatasetRef
    kind: Literal["text", "chat"]
    """Whether prompts are answered as chat turns or continued as text."""
    parent: ParentRecord | None
    """Checkpoint to begin with; None begins with random weights."""
    policy: str = ""
    """Whose tokens are learned, in words; empty where an older mypt planned."""
    inherited: tuple[str, ...] = ()
    """What came from the base model and what the preset changed, a line each."""

    @property
    def digest(self) -> str:
        """Digest of what decides the result; equal plans make equal weights."""
        return files.digest_json(self.identity())

    def identity(self) -> dict[str, Any]:
        """Return what decides the result: config, dataset and parent by content, no paths."""
        return self.preset.model_dump(mode="json", exclude=_LABELS | _CIRCUMSTANCES) | {
            "dataset": self.dataset.digest,
            "init_from_model": self.parent.weights if self.parent else None,
        }

    def differences(self, other: "RunPlan") -> tuple[str, ...]:
        """Return ``key OLD -> NEW`` for each key in which ``other`` would be another run."""
        ours, theirs = self.identity(), other.identity()
        return tuple(  # what is at its default may not be written
            f"{key} {_short(ours.get(key))} -> {_short(theirs.get(key))}"
            for key in ours | theirs
            if ours.get(key) != theirs.get(key)
        )

    def differences_of(self, lineage: Lineage) -> tuple[str, ...]:
        """Return in what a checkpoint is none of this run's; of one extended, earlier ones are."""
        length = {"max_iters": max(lineage.config.max_iters, self.preset.max_iters)}
        made = {
            "preset": lineage.config.model_copy(update=length),
            "dataset": DatasetRef(path=lineage.dataset.path, digest=lineage.dataset.digest),
            "parent": lineage.parent,
        }
        return self.differences(self.model_copy(update=made))


def plan_run(
    preset: Preset,
    model_name: str,
    dataset_dir: str | Path,
    *,
    init_from: str | Path | None = None,
    dataset_digest: str | None = None,
    masks_by_default: bool | None = None,
) -> RunPlan:
    """Resolve and check a run; nothing but an imported base is written.

    Args:
        preset: Architecture and training values; with ``init_from`` the architecture is not used.
        model_name: Name under ``models/``.
        dataset_dir: The dataset's folder.
        init_from: Base model: a name, a model folder, a step folder, ``hf:`` and a folder in
            transformers' layout, or ``gguf:`` and a file, which is read into ``models/`` first.
        dataset_digest: Digest that the dataset must have; None takes it as it is.
        masks_by_default: Whether a preset that does not say uses masks; None refuses to guess
            where the dataset has some.

    Raises:
        ConfigError: If name, vocabulary, sizes or tokenizers do not go together.
        ManifestError: If the dataset is missing, damaged or another one.
        MaskError: If the preset wants masks that the dataset has not, or does not say whether
            those that it has are used.
        CheckpointError: If the base model is missing, or its lineage damaged.
    """
    home.check_name(model_name, "model name")
    folder = Path(dataset_dir).absolute()
    manifest = read_manifest(folder, dataset_digest)
    if init_from is None:
        _check_no_base(preset)
        fitted, length = fit_to_data(preset, folder, manifest, masks_by_default)
        parent, resolved, lines = None, fitted, _SCRATCH[: bool(fitted.use_loss_mask)]
    else:
        step_folder, news = begin_at(init_from, folder, preset.base)
        base = read_lineage(step_folder)  # whoever loads the rest compares it with this
        _check_tokenizer(step_folder, base, folder)
        parent = parent_of(step_folder, base)
        sized = preset.model_copy(update=dict(_fitted(base, preset, step_folder)))
        if preset.lora:
            from mypt.training.base_import import with_tokens  # loads torch

            sized = with_tokens(sized, base, open_dataset(folder, verify=False))
        resolved, length = fit_to_data(sized, folder, manifest, masks_by_default)
        lines = _inherited(base, preset, resolved) + news
    return RunPlan(
        model_name=model_name,
        preset=parse_config(resolved.model_dump(), Preset, "the preset on its base"),
        dataset=DatasetRef(path=str(folder), digest=manifest.digest),
        kind=manifest.kind,
        parent=parent,
        policy=policy_in_force(resolved.use_loss_mask, manifest.mask),
        inherited=lines + length,
    )


def _check_no_base(preset: Preset) -> None:
    """Refuse what wants a base model, where there is none."""
    said = f"{preset.keeps_base} holds a model to" * bool(preset.keeps_base)
    said = said or "lora adapts" * bool(preset.lora)
    if said := said or "base transformers is read from" * (preset.base == "transformers"):
        raise ConfigError(f"{said} its base, and there is none; name one with --init_from_model")


def fit_to_data(
    preset: Preset, folder: Path, manifest: Manifest, masks_by_default: bool | None = None
) -> tuple[Preset, tuple[str, ...]]:
    """Return a preset with its epochs as steps, and a line that says so; refuse a misfit.

    It says whether masks are used and what becomes of long conversations, too; :func:`plan_run`
    has the arguments.

    Raises:
        ConfigError: If vocabulary or splits do not do.
        MaskError: If the preset wants masks that the dataset has not.
    """
    check_pairs(preset, folder, manifest)
    masked = preset.of_pairs or _uses_masks(preset, folder, manifest, masks_by_default)
    policy = preset.length_policy or default_policy(folder, preset, preset.block_size)
    preset = preset.model_copy(update={"use_loss_mask": masked, "length_policy": policy})
    _check_sizes(preset, folder, manifest)
    if preset.epochs is None:
        return preset.with_steps(preset.max_iters), ()
    from mypt.training.loader import GPTDataLoader  # loads torch

    epoch = GPTDataLoader.of(preset, open_dataset(folder, verify=False)).epoch("train").steps
    steps = max(1, round(preset.epochs * epoch))
    line = f"epochs: {preset.epochs:g}, of {epoch} steps each: max_iters {steps}"
    return preset.with_steps(steps), (line,)


def begin_at(init_from: str | Path, dataset: Path, whose: str) -> tuple[Path, tuple[str, ...]]:
    """Return the step folder to begin with; what comes from elsewhere is read into one first.

    Args:
        init_from: As for :func:`plan_run`.
        dataset: What will be trained on.
        whose: Whose arithmetic what comes from elsewhere has, as ``base`` of a preset says.

    Returns:
        The folder, and a line about tokens that are new to the model.

    Raises:
        MyptError: As :func:`plan_run`.
    """
    if not str(init_from).startswith(PREFIXES):
        return home.checkpoint_to_use(init_from), ()
    from mypt.training.base_import import import_base  # loads torch

    return import_base(str(init_from), open_dataset(dataset, verify=False), whose)


def _fitted(base: Lineage, preset: Preset, folder: Path) -> Architecture:
    """Return the base's architecture with rows as long as the preset has them."""
    held = base.config.architecture()
    if preset.base != held.base and "base" in preset.model_fields_set:
        raise ConfigError(
            f"base {preset.base}: {base.model_name} in {folder} is {held.base}'s; leave base out"
        )
    said = "block_size" in preset.model_fields_set or base.dataset.kind == IMPORTED
    scaled = preset if "rope_scaling" in preset.model_fields_set else held
    rows = (preset if said else held).block_size
    return held.with_rows(rows, scaled.rope_scaling, f"{base.model_name} in {folder}")


def _uses_masks(preset: Preset, folder: Path, manifest: Manifest, default: bool | None) -> bool:
    said = default if preset.use_loss_mask is None else preset.use_loss_mask
    if said is None and manifest.mask is not None:
        raise MaskError(
            f"{folder}: has masks ({policy_words(manifest.mask.policy)}) and the config does not"
            " say whether they are used; write use_loss_mask: true (or --use_loss_mask) to learn"
            " what they supervise, or use_loss_mask: false (--use_loss_mask=false) to learn every"
            " token"
        )
    return bool(said)


def _inherited(base: Lineage, preset: Preset, resolved: Preset) -> tuple[str, ...]:
    """Say what the base model decides and which training values change against it."""
    kept = dict(resolved.architecture())
    own = resolved.architecture().model_dump(exclude_defaults=True, exclude={"base_config"})
    sizes = ", ".join(f"{key} {value}" for key, value in own.items())
    lines = [f"from {base.model_name} step {base.step}: weights and architecture ({sizes})"]
    lines += [
        f"{key}: {value} kept from the base model, the preset's {getattr(preset, key)} is not used"
        for key, value in kept.items()
        if key in preset.model_fields_set and getattr(preset, key) != value
    ]
    for key in Preset.model_fields:
        old, new = getattr(base.config, key), getattr(resolved, key)
        said = key in resolved.model_fields_set and getattr(preset, key) is not None
        origin = "preset" if said else "default"
        if new != old and key not in _LABELS | kept.keys():
            lines.append(f"{key}: {_short(old)} -> {_short(new)} ({origin})")
    return tuple(lines)


def _check_tokenizer(step_folder: Path, base: Lineage, dataset: Path) -> None:
    ours, theirs = load_tokenizer(step_folder), load_tokenizer(dataset)
    if ours.digest != theirs.digest:
        raise ConfigError(
            f"base model {base.model_name} reads tokenizer {ours.name} {ours.digest[:12]}, dataset"
            f" {dataset} was made with {theirs.name} {theirs.digest[:12]}; prepare the dataset"
            f" again with --tokenizer_from {step_folder}"
        )


def _check_sizes(preset: Preset, folder: Path, manifest: Manifest) -> None:
    if manifest.n_vocab > preset.vocab_size:
        raise ConfigError(
            f"{folder}: its tokenizer {manifest.tokenizer_name} has {manifest.n_vocab} tokens, the"
            f" model's vocab_size is {preset.vocab_size}; set vocab_size to {manifest.n_vocab} or"
            " more, or prepare the dataset with a smaller tokenizer"
        )
    if preset.use_loss_mask and manifest.mask is None:
        raise MaskError(
            f"{folder}: use_loss_mask is true and the dataset has no masks"
            " (train/shard_000_mask.bin and so on); make them with 'mypt mask', or train on every"
            " token with use_loss_mask: false"
        )
    if preset.patience and not manifest.tokens("val"):
        raise ConfigError(
            f"{folder}: patience {preset.patience} needs a validation split, and val is empty;"
            " prepare with val_fraction above 0, or set patience to 0"
        )


def _short(value: Any) -> str:
    """Return ``value`` as a diff shows it: digests by their first 12 digits."""
    text = "none" if value is None else str(value)
    return text[:12] if len(text) == 64 and text.isalnum() else text
