"""Any number of trainings one after the other, and what both forms of a pipeline come to."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple, Self

from pydantic import ConfigDict, Field, model_validator

from mypt.config.data import MaskPolicy, PrepareConfig
from mypt.config.training import Preset
from mypt.parsing import Frozen, own_first

STAGE_NAME = "[A-Za-z][A-Za-z0-9_-]{0,19}"
"""What can name a stage, or data beside them: a part of folders' names."""
_ELSEWHERE = ("hf:", "gguf:")
_OF_FIRST = ("tokenization", "tokenizer_from", "template")
"""Knobs of data that all stages have as the first one does."""


class StageGate(Frozen):
    """When a pipeline goes on after a stage; where it does not, it ends there."""

    forgets: float | None = Field(default=None, ge=0.0)
    """Most nats a token by which the loss on what the model before had learned may rise."""


class StageConfig(Preset):
    """One training of several: a preset, beside its data."""

    model_config = ConfigDict(json_schema_extra=own_first)

    name: str = Field(pattern=f"^{STAGE_NAME}$")
    """Last part of its dataset's and its model's name, which figures go by too."""
    data: PrepareConfig
    """What it learns from; the tokenizer is always the first stage's."""
    mask: MaskPolicy | None = None
    """Whose tokens it learns; null: every token, as of plain text."""
    replay: dict[str, float] = Field(default_factory=dict)
    """Rows of earlier stages that it reads again, by stage: their share of the training tokens."""
    gate: StageGate | None = None
    """Go on only with a model that is no worse on the stage's data than the one before, by the rule
    of the gate, or that surely moved pairs the right way; null: go on with any."""

    @model_validator(mode="after")
    def _data_fit_the_objective(self) -> Self:
        if self.data.pairs and not self.of_pairs:
            raise ValueError(f"data are pairs, objective {self.objective}; set dpo, ipo or simpo")
        if self.of_pairs and not self.data.pairs:
            raise ValueError(f"objective {self.objective} wants pairs; set pairs: true in a source")
        if self.of_pairs and self.mask is None:
            raise ValueError("pairs without a mask; add mask: {}, for the assistant's answers")
        if self.use_loss_mask and self.mask is None:
            raise ValueError("use_loss_mask without a mask; add mask: {}, for the assistant's")
        if not self.data.val_fraction:
            raise ValueError("data.val_fraction is 0, so nothing would be left to evaluate on")
        return self

    def preset(self) -> Preset:
        """Return the training alone; without a mask every token is learned."""
        said = Preset.model_fields.keys() & self.model_fields_set
        every = {"use_loss_mask": False} if self.mask is None else {}
        return Preset(**{key: getattr(self, key) for key in said} | every)


class PipelineStage(NamedTuple):
    """One training of a pipeline, resolved: both forms of its config come to these."""

    name: str
    """What the stage is called within the pipeline."""
    title: str
    """Prefix of its dataset's and its model's name."""
    label: str
    """What its figures are called by."""
    knobs: str
    """Where its training stands among the config's knobs."""
    what: str
    """What people call its data."""
    data: PrepareConfig
    mask: MaskPolicy | None
    """None where every token is learned."""
    train: Preset
    """As it is asked for; the architecture is that of the first."""
    checked: Preset
    """As it will be, as far as the config says, for checks of the data and for forecasts."""
    report: str
    """Prefix of the evaluation's folder."""
    replay: Mapping[str, float] = MappingProxyType({})
    """Shares of the training tokens that rows of earlier stages make up."""
    gate: StageGate | None = None

    @property
    def form(self) -> Literal["chat", "plain"]:
        """How its model is asked: as it learned to answer."""
        return "plain" if self.mask is None else "chat"


def check_stages(stages: Sequence[StageConfig], began: str) -> None:
    """Refuse stages that do not follow from each other.

    Args:
        stages: In order.
        began: What the first begins with; empty: random weights.

    Raises:
        ValueError: In one line, naming the stage.
    """
    first, *others = stages
    if not began:
        _check_first(first, alone=not others)
    elif "block_size" not in first.model_fields_set:
        raise ValueError(f"stages.{first.name}.block_size is missing; say how long its rows are")
    elif first.gate and first.gate.forgets is not None and began.startswith(_ELSEWHERE):
        raise ValueError(f"stages.{first.name}.gate.forgets: the data of {began} are not here")
    earlier: dict[str, StageConfig] = {}
    for stage in stages:
        if stage.name in earlier:
            raise ValueError(f"stages: two are called {stage.name}; give each a name of its own")
        _check_replay(stage, earlier)
        earlier[stage.name] = stage
    for stage in others:
        for key in _OF_FIRST:
            if (said := getattr(stage.data, key)) != getattr(first.data, key) and (
                key in stage.data.model_fields_set
            ):
                raise ValueError(
                    f"stages.{stage.name}.data.{key} {said}: all stages read the tokens of"
                    f" {first.name}; leave it out"
                )


def _check_first(first: StageConfig, *, alone: bool) -> None:
    """Refuse what wants a model before it, where there is none."""
    wants = {
        f"objective {first.objective}": first.of_pairs,
        "gate": first.gate is not None,
        "lora": first.lora is not None,
        f"kl_base {first.kl_base:g}": bool(first.kl_base),
    }
    if found := next((name for name, wanted in wants.items() if wanted), None):
        raise ValueError(
            f"stages.{first.name}: {found} wants a model to begin with, and the first stage has"
            " none; name one by init_from_model, or say it in a later stage"
        )
    if alone:
        raise ValueError(
            f"stages: {first.name} alone, from random weights, leaves nothing to compare it with;"
            " add a stage, name a model by init_from_model, or take 'mypt train'"
        )


def _check_replay(stage: StageConfig, earlier: dict[str, StageConfig]) -> None:
    where = f"stages.{stage.name}.replay"
    if unknown := next((name for name in stage.replay if name not in earlier), None):
        known = ", ".join(earlier) or "none, it is the first"
        raise ValueError(f"{where}: {unknown} is no stage before it; expected of {known}")
    paired = (stage, *(earlier[name] for name in stage.replay))
    if stage.replay and any(one.of_pairs for one in paired):
        raise ValueError(f"{where}: preference pairs are not mixed with other rows; leave it out")
    if stage.replay and not (min(stage.replay.values()) > 0 and sum(stage.replay.values()) < 1):
        raise ValueError(f"{where}: expected shares above 0, and of all less than 1")


def chain_of(stages: Sequence[StageConfig], pipeline: str, began: str) -> tuple[PipelineStage, ...]:
    """Return stages resolved: each has the architecture of the first, and rows as long as before.

    Args:
        stages: As asked for.
        pipeline: Its name.
        began: What the first begins with.
    """
    found: list[PipelineStage] = []
    for stage in stages:
        train, title = stage.preset(), f"{pipeline}-{stage.name}"
        held = dict(found[-1].checked.architecture()) if found else {}
        if "block_size" in train.model_fields_set:
            held.pop("block_size", None)
        masked = stage.mask is not None and train.use_loss_mask is not False
        data = stage.data if found else _begun_data(stage.data, began)
        found.append(
            PipelineStage(
                name=stage.name,
                title=title,
                label=stage.name,
                knobs=f"stages.{stage.name}",
                what=_called(stage, first=not found),
                data=data,
                mask=stage.mask,
                train=train,
                checked=train.model_copy(update=held | {"use_loss_mask": masked}),
                report=title,
                replay=stage.replay,
                gate=stage.gate,
            )
        )
    return tuple(found)


def _begun_data(data: PrepareConfig, began: str) -> PrepareConfig:
    """Return the first stage's data with the tokenizer of what it begins with, unless said."""
    if not began or {"tokenization", "tokenizer_from"} & data.model_fields_set:
        return data
    key = "tokenization" if began.startswith(_ELSEWHERE) else "tokenizer_from"
    return data.model_copy(update={key: began})


def _called(stage: StageConfig, *, first: bool) -> str:
    if stage.mask is not None:
        return "preference pairs" if stage.of_pairs else "chat data"
    return "base corpus" if first else "text"
