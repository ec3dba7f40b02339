"""Each stage as a flow of its own, for those who run them on different days or machines."""

from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from prefect import flow
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from flows.ending import leave_if_prefect_is_away
from flows.forms import (
    AS_IN_FILE,
    BaseKnobs,
    ChatKnobs,
    PresetFile,
    asked_pipeline,
    asked_preset,
)
from mypt.config import (
    EvaluateConfig,
    MaskPolicy,
    PipelineConfig,
    Preparation,
    PrepareConfig,
    Preset,
)
from mypt.data.manifest import reference
from mypt.data.reading.sources import source_names
from mypt.errors import MyptError
from mypt.evaluation.scores import Summary
from mypt.references import CheckpointRef, DatasetRef
from mypt.training.checkpoints.folder import checkpoint_ref
from tasks import evaluation, training
from tasks.evaluation import NOT_ASKED, gate
from tasks.masking import mask as mask_task
from tasks.reporting.pipelines import report_gate, stage_run
from tasks.stages import tell
from tasks.stopping import stoppable
from tasks.tokenization import tokenize
from tasks.tracking.mirror import mirror_champion
from tasks.validation import validate

_LONGEST = 80
Result = TypeVar("Result", DatasetRef, CheckpointRef, Summary)


def pipeline_run_name() -> str:
    """Return the name of a run of the whole pipeline, such as ``demo on chitchat, questions``.

    One that another run asked for by a name has that, and has it as its tag.
    """
    if flow_run.name in flow_run.tags:
        return str(flow_run.name)
    asked = _asked()
    try:
        config = asked_pipeline(asked["config"], asked["overrides"])
    except MyptError:  # the flow meets the same error, and raises it
        return Path(str(asked["config"])).stem
    return _named(config.name, source_names(config.tuned.data.sources))


def sweep_run_name() -> str:
    """Return the name of a run of a sweep, such as ``sweep of demo over mask.policy``."""
    asked = _asked()
    config = asked["config"]
    name = config.name if isinstance(config, PipelineConfig) else Path(str(config)).stem
    knobs = [text.partition("=")[0] for text in asked["over"]] or ["seeds"]
    return _named(f"sweep of {name}", ", ".join(knobs), "over")


def prepare_run_name() -> str:
    """Return the name of a run that prepares data, such as ``chats from chats.jsonl``."""
    parameters = _asked()
    return _named(parameters["name"], source_names(parameters["config"].sources), "from")


def training_run_name() -> str:
    """Return the name of a run that trains or evaluates, such as ``base on corpus``."""
    parameters = _asked()
    return _named(parameters["name"], Path(parameters["dataset"]).name)


def _asked() -> dict[str, Any]:
    """Return what the flow run was given, defaults included, which Prefect leaves out."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow is not None
    given = signature(context.flow.fn).bind_partial(**context.parameters or {})
    given.apply_defaults()
    return given.arguments


def _named(model: str, data: str, word: str = "on") -> str:
    name = f"{model} {word} {data}"
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


@flow(name="prepare", flow_run_name=prepare_run_name, persist_result=False)
@stoppable
def prepare(
    config: PrepareConfig,
    name: str = "data",
    mask: MaskPolicy | None = MaskPolicy(),
    preset: PresetFile = "",
    preparation: Preparation = Preparation(),
) -> DatasetRef:
    """Turn raw files into a dataset, mask it and check it.

    Args:
        config: What to read and how.
        name: Prefix of the dataset's folder.
        mask: Whose tokens are supervised; null makes a dataset without masks, for pretraining.
        preset: The file of what will be trained on it, or nothing for a preset of defaults: what
            its context would drop or cut is checked too.
        preparation: Who reads and encodes; the dataset is the same.
    """
    preset = asked_preset(preset, AS_IN_FILE) if preset else Preset()
    with stage_run(config, name):
        made = tokenize(config, name, "data", preparation=preparation)
        if mask is not None:
            made = mask_task(made, mask, name, "data")
        made = validate(made, preset, name, "data")
    return _ended(made)


@flow(name="pretrain", flow_run_name=training_run_name, persist_result=False)
@stoppable
def pretrain(
    config: PresetFile,
    dataset: str,
    name: str = "base",
    overrides: BaseKnobs = AS_IN_FILE,
) -> CheckpointRef:
    """Train a model from random weights.

    Args:
        config: The file of architecture and training values, such as configs/tiny.json.
        dataset: The folder of a prepared dataset.
        name: Prefix of the model's name.
        overrides: Knobs that shall not be as in the file; what is left empty is, and a list
            stands for the whole of the file's.
    """
    config = asked_preset(config, overrides)
    data = _dataset(dataset)
    with stage_run(training.planned(config, name, data).preset, name):
        made = training.pretrain(config, name, data)
    return _ended(made)


@flow(name="sft", flow_run_name=training_run_name, persist_result=False)
@stoppable
def sft(
    config: PresetFile,
    dataset: str,
    base: str,
    name: str = "chat",
    overrides: ChatKnobs = AS_IN_FILE,
) -> CheckpointRef:
    """Fine-tune a base model on the supervised tokens of conversations.

    Args:
        config: The file of training values, such as configs/tiny_sft.json; the architecture is
            the base model's, and the masks are used unless it says otherwise.
        dataset: The folder of a prepared and masked dataset.
        base: The base model: its name, its folder, or one of its step folders.
        name: Prefix of the model's name.
        overrides: Knobs that shall not be as in the file; what is left empty is, and a list
            stands for the whole of the file's.
    """
    config = asked_preset(config, overrides)
    data, began = _dataset(dataset), checkpoint_ref(Path(base))
    with stage_run(training.planned(config, name, data, began).preset, name):
        made = training.sft(config, name, data, base=began)
    return _ended(made)


@flow(name="evaluate", flow_run_name=training_run_name, persist_result=False)
@stoppable
def evaluate(
    base: str,
    chat: str,
    dataset: str,
    config: EvaluateConfig = EvaluateConfig(),
    name: str = "evaluation",
) -> Summary:
    """Ask a base model and its fine-tuned one the same, and show what fine-tuning changed.

    Args:
        base: The base model: its name, its folder, or one of its step folders.
        chat: What fine-tuning made of it, named likewise.
        dataset: The folder of the dataset whose validation split both are scored on.
        config: How much to score and to ask.
        name: Prefix of the report's folder.
    """
    before, after = (checkpoint_ref(Path(model)) for model in (base, chat))
    data = _dataset(dataset)
    with stage_run(config, name) as run:
        summary = evaluation.evaluate(before, after, data, config, name)
        report_gate(run, gate(after, data, config, name) if config.gate else NOT_ASKED)
    if config.gate:
        mirror_champion()
    return _ended(summary)


def _dataset(folder: str) -> DatasetRef:
    return reference(Path(folder).absolute())


def _ended(result: Result) -> Result:
    place = result.evaluation if isinstance(result, Summary) else result.path
    leave_if_prefect_is_away(lambda: tell(f"made: {place}"))
    return result
