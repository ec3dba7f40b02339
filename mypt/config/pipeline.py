"""The stages together, what both models are asked, and the file that says it all."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mypt.config.data import MaskPolicy, Preparation, PrepareConfig, later
from mypt.config.stages import STAGE_NAME, PipelineStage, StageConfig, chain_of, check_stages
from mypt.config.training import Preset
from mypt.parsing import Frozen, override, parse_config, read_json
from mypt.text import shown


class EvaluateConfig(Frozen):
    """How checkpoints are compared."""

    exercises: int = Field(default=200, ge=0)
    """Held-out generated questions asked of each model, over all tasks; 0 asks none."""
    exercises_seed: int = 0
    """Seed of the exercises; the same as the sources'."""
    questions: str = ""
    """Questions and their answers, in any format of data, asked as a chat: a file; or a folder, of
    which each file is a task by its name; empty: none."""
    max_tokens: int = Field(default=32, ge=1)
    """Longest answer."""
    prompts: tuple[str, ...] = ()
    """Prompts whose answers are shown."""
    eval_iters: int = Field(default=50, ge=0)
    """Batches of 32 rows of the validation split to score; 0 scores all of it."""
    sets: dict[str, str] = Field(default_factory=dict)
    """Further datasets whose validation splits both models are scored on: folders by name."""
    harness: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness that each model is asked: names, or YAML files of tasks."""
    gate: bool | Literal["ask"] = False
    """Flows only: let the fine-tuned model become the champion where the gate finds it better, or,
    with ask, where a person says yes to its scores."""
    gate_first: Literal["promote", "refuse"] = "promote"
    """What becomes of a model whose pipeline has champions, but none that reads its tokenizer."""


class Tracking(Frozen):
    """What MLflow holds of a run."""

    upload: Literal["references", "weights"] = "references"
    """The weights of both models themselves, or only where they lie in MYPT_HOME."""


class PreferConfig(Frozen):
    """What is learned from preference pairs after fine-tuning."""

    pairs: PrepareConfig
    """Rows with a chosen and a rejected answer; the tokenizer is always the base's."""
    mask: MaskPolicy = MaskPolicy()
    """Which tokens of the answers count."""
    train: Preset
    """Objective dpo, ipo or simpo, and how it is trained; the architecture is the base model's."""

    @model_validator(mode="after")
    def _pairs_are_learned(self) -> Self:
        if not self.pairs.pairs:
            raise ValueError("pairs: its sources are read as single answers; set pairs: true")
        if not self.train.of_pairs:
            raise ValueError(f"train.objective {self.train.objective}; set dpo, ipo or simpo")
        if not self.pairs.val_fraction:
            raise ValueError("pairs.val_fraction is 0, so nothing would be left to evaluate on")
        return self


class PipelineConfig(Frozen):
    """One whole run: two trainings by name, base corpus and chat data; or any number as stages."""

    name: str = Field(default="pipeline", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")
    """Prefix of the datasets' and models' names, which are names of folders."""
    base: PrepareConfig | None = later(None)
    """Plain text for pretraining."""
    chat: PrepareConfig | None = later(None)
    """Conversations for fine-tuning; its tokenizer is always the base's."""
    mask: MaskPolicy = MaskPolicy()
    """Whose tokens the fine-tuning learns."""
    pretrain: Preset | None = later(None)
    """Architecture and training of the base model."""
    sft: Preset | None = later(None)
    """Training of the chat model; the architecture is the base model's."""
    prefer: PreferConfig | None = later(None)
    """Preference pairs that the chat model learns from last; null: none."""
    stages: tuple[StageConfig, ...] = later(())
    """Trainings one after the other, instead of all of these: each begins with the model of the
    one before, and reads its tokens."""
    init_from_model: str = later("")
    """What the first stage begins with, as mypt train takes it: a model's name or folder, hf: and
    a folder, or gguf: and a file; empty: random weights."""
    held_out: dict[str, PrepareConfig] = later({})
    """Data that nothing learns from and both models are scored on, by a name such as that of a set;
    in the tokens of the tuning, and masked as it. So it shows what was forgotten of them."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is asked of each model and of the one before."""
    preparation: Preparation = Preparation()
    """Who prepares the data of all stages."""
    tracking: Tracking = Tracking()
    """What MLflow holds of the run."""

    @model_validator(mode="after")
    def _held_out_data_have_a_split(self) -> Self:
        for name, asked in self.held_out.items():
            if not re.fullmatch(STAGE_NAME, name):
                raise ValueError(f"held_out.{shown(name)} names a folder; expected {STAGE_NAME}")
            if any(name.lower() == stage.name.lower() for stage in self.stages):
                raise ValueError(f"held_out.{name} is the name of a stage too; take another")
            if not asked.val_fraction:
                raise ValueError(f"held_out.{name}.val_fraction is 0, so nothing would be scored")
            if name in self.evaluate.sets:
                raise ValueError(f"held_out.{name} is a name of evaluate.sets too; take another")
        return self

    @model_validator(mode="after")
    def _one_form_is_whole(self) -> Self:
        said = {"base", "chat", "pretrain", "sft", "prefer", "mask"} & self.model_fields_set
        if self.stages and said:
            raise ValueError(f"{min(said)} beside stages; say it as a stage, or leave stages out")
        if self.stages:
            check_stages(self.stages, self.init_from_model)
            return self
        if self.init_from_model:
            raise ValueError("init_from_model goes with stages; say the trainings as stages")
        for name in ("base", "chat", "pretrain", "sft"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is missing; add it")
        for name in ("base", "chat"):
            if not getattr(self, name).val_fraction:
                raise ValueError(
                    f"{name}.val_fraction is 0, so nothing would be left to evaluate on; expected"
                    " a share above 0, such as 0.1"
                )
        return self

    def tuning(self) -> Preset:
        """Return what fine-tuning has: own values, the base's architecture, masks by default."""
        assert self.sft, "said, where there are no stages"
        assert self.pretrain
        masked = {"use_loss_mask": self.sft.use_loss_mask is not False}
        return self.sft.model_copy(update=dict(self.pretrain.architecture()) | masked)

    @property
    def chain(self) -> tuple[PipelineStage, ...]:
        """The trainings in order, whichever way they are said."""
        if self.stages:
            return chain_of(self.stages, self.name, self.init_from_model)
        assert self.base, "said, where there are no stages"
        assert self.chat
        assert self.pretrain
        assert self.sft
        base, chat, last = (f"{self.name}-{name}" for name in ("base", "chat", "prefer"))
        found = (
            PipelineStage(
                "base", base, "pretrain", "pretrain", "base corpus", self.base, None,
                self.pretrain, self.pretrain, base,
            ),
            PipelineStage(
                "chat", chat, "sft", "sft", "chat data", self.chat, self.mask,
                self.sft, self.tuning(), self.name,
            ),
        )  # fmt: skip
        if (asked := self.prefer) is None:
            return found
        return (
            *found,
            PipelineStage(
                "prefer", last, "prefer", "prefer.train", "preference pairs", asked.pairs,
                asked.mask, asked.train, asked.train, last,
            ),
        )  # fmt: skip

    @property
    def tuned(self) -> PipelineStage:
        """The training that runs are named and compared by: the last that reads no pairs."""
        chain = self.chain
        return next((one for one in reversed(chain) if not one.train.of_pairs), chain[-1])


def load_pipeline(path: str | Path) -> PipelineConfig:
    """Read a pipeline config; ``"preset": "FILE"`` in a stage starts from that preset.

    Raises:
        ConfigError: As :func:`load_config`.
    """
    path = Path(path)
    values = read_json(path, "configs/demo.json")
    for section, key in ((values, "pretrain"), (values, "sft"), (values.get("prefer"), "train")):
        if isinstance(section, dict) and key in section:
            section[key] = _on_its_preset(section[key], path.parent)
    if isinstance(stages := values.get("stages"), list):
        values["stages"] = [_on_its_preset(one, path.parent, {"name"}) for one in stages]
    return parse_config(values, PipelineConfig, str(path))


def _on_its_preset(said: Any, folder: Path, own: set[str] | frozenset[str] = frozenset()) -> Any:
    """Return a training's knobs on those of the preset that it names, but for its ``own``."""
    if not isinstance(said, dict) or "preset" not in said:
        return said
    file = read_json(folder / str(said["preset"]), "configs/tiny_sft.json")
    start = {key: value for key, value in file.items() if key not in own}
    return override(start, {key: value for key, value in said.items() if key != "preset"})
