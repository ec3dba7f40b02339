"""What flow runs are called: a model and what it is made from, as people look for them."""

from inspect import signature
from pathlib import Path
from typing import Any

from prefect.context import FlowRunContext

from mypt.config import PipelineConfig, PrepareConfig, load_pipeline
from mypt.data.reading.sources import source_name
from mypt.errors import MyptError

_LONGEST = 80


def pipeline_run_name() -> str:
    """Return the name of a run of the whole pipeline, such as ``demo on chitchat, questions``."""
    config: PipelineConfig | str = _asked()["config"]
    if isinstance(config, str):
        try:
            config = load_pipeline(config)
        except MyptError:  # the flow meets the same error, and raises it
            return Path(str(config)).stem
    return _named(config.name, _sources(config.chat))


def prepare_run_name() -> str:
    """Return the name of a run that prepares data, such as ``chats from chats.jsonl``."""
    parameters = _asked()
    return _named(parameters["name"], _sources(parameters["config"]), "from")


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


def _sources(config: PrepareConfig) -> str:
    return ", ".join(source_name(source) for source in config.sources)
