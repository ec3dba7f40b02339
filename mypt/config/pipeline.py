"""The stages together, what both models are asked, and the file that says it all."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from mypt.config.data import MaskPolicy, Preparation, PrepareConfig, later
from mypt.config.training import Preset
from mypt.parsing import Frozen, override, parse_config, read_json


class EvaluateConfig(Frozen):
    """How checkpoints are compared."""

    exercises: int = Field(default=200, ge=0)
    """Held-out generated questions asked of each model, over all tasks; 0 asks none."""
    exercises_seed: int = 0
    """Seed of the exercises; the same as the sources'."""
    questions: str = ""
    """File of questions and their answers, in any format of data, asked as a chat; empty: none."""
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
    """One whole run: base corpus, chat data, two trainings, an evaluation; perhaps pairs."""

    name: str = Field(default="pipeline", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")
    """Prefix of the datasets' and models' names, which are names of folders."""
    base: PrepareConfig
    """Plain text for pretraining."""
    chat: PrepareConfig
    """Conversations for fine-tuning; its tokenizer is always the base's."""
    mask: MaskPolicy = MaskPolicy()
    """Whose tokens the fine-tuning learns."""
    pretrain: Preset
    """Architecture and training of the base model."""
    sft: Preset
    """Training of the chat model; the architecture is the base model's."""
    prefer: PreferConfig | None = later(None)
    """Preference pairs that the chat model learns from last; null: none."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is asked of both models."""
    preparation: Preparation = Preparation()
    """Who prepares the data of both."""
    tracking: Tracking = Tracking()
    """What MLflow holds of the run."""

    @model_validator(mode="after")
    def _evaluation_has_data(self) -> Self:
        for name in ("base", "chat"):
            if not getattr(self, name).val_fraction:
                raise ValueError(
                    f"{name}.val_fraction is 0, so nothing would be left to evaluate on; expected"
                    " a share above 0, such as 0.1"
                )
        return self

    def tuning(self) -> Preset:
        """Return what fine-tuning has: own values, the base's architecture, masks by default."""
        masked = {"use_loss_mask": self.sft.use_loss_mask is not False}
        return self.sft.model_copy(update=dict(self.pretrain.architecture()) | masked)


def load_pipeline(path: str | Path) -> PipelineConfig:
    """Read a pipeline config; ``"preset": "FILE"`` in a stage starts from that preset.

    Raises:
        ConfigError: As :func:`load_config`.
    """
    path = Path(path)
    values = read_json(path, "configs/demo.json")
    stages = [(values, "pretrain"), (values, "sft"), (values.get("prefer"), "train")]
    for section, stage in stages:
        inner = section.get(stage) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(inner, dict) and "preset" in inner:
            base = read_json(path.parent / str(inner["preset"]), "configs/tiny_sft.json")
            section[stage] = override(base, {k: v for k, v in inner.items() if k != "preset"})
    return parse_config(values, PipelineConfig, str(path))
