"""Parameters of flows as people type them, checked by the config models before a run exists."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from prefect import Flow
from pydantic import BaseModel

from flows.catalogue import FLOWS, PIPELINE
from mypt.config import PipelineConfig, Preset, load_config, load_pipeline
from mypt.errors import ConfigError
from mypt.parsing import parse_config

Values = dict[str, Any]
_SHOWN = 60
_LOADERS: dict[type[BaseModel] | None, Callable[[str], BaseModel]] = {
    PipelineConfig: load_pipeline,
    Preset: load_config,
}
"""What may be named by the path of its file."""


def changed_config(path: Path, changes: Sequence[str]) -> PipelineConfig:
    """Return a pipeline config with knobs changed, such as ``sft.max_iters=50``.

    Raises:
        ConfigError: If the file or a change is wrong.
    """
    if not changes:
        return load_pipeline(path)
    values = change({"config": str(path)}, changes, FLOWS[PIPELINE])
    return parse_config(values["config"], PipelineConfig, "--param")


def change(values: Values, changes: Sequence[str], flow: Flow[..., Any]) -> Values:
    """Return the parameters of a flow with some changed, each checked by its model.

    Args:
        values: Parameters so far.
        changes: ``NAME=VALUE``, the value as JSON or else as text. A dotted name reaches into a
            parameter; one that is no parameter is looked for in ``config``. A parameter that
            names a file is read before it is changed.
        flow: Whose parameters they are.

    Raises:
        ConfigError: If there is no such knob, or it cannot have that value.
    """
    models = _models(flow)
    values = json.loads(json.dumps(values))
    for text in changes:
        name, equals, said = text.partition("=")
        if not name or not equals:
            raise ConfigError(f"--param {text!r}: expected NAME=VALUE, such as sft.max_iters=50")
        first, *rest = parts = name.split(".")
        if first not in models:
            first, rest = "config", parts
        load = _LOADERS.get(models.get(first))
        if load and rest and isinstance(values.get(first), str):
            values[first] = load(values[first]).model_dump(mode="json")
        _put(values, [first, *rest], _value(said), text)
    for name, value in values.items():
        model = models.get(name)
        if isinstance(value, dict) and model is not None:
            values[name] = parse_config(value, model, f"--param {name}").model_dump(mode="json")
    return values


def _models(flow: Flow[..., Any]) -> dict[str, type[BaseModel] | None]:
    """Return the config model of each parameter of a flow, None where it is a plain value."""
    hints = get_type_hints(flow.fn)
    hints.pop("return", None)
    kinds = {name: get_args(hint) or (hint,) for name, hint in hints.items()}
    return {
        name: next((k for k in found if isinstance(k, type) and issubclass(k, BaseModel)), None)
        for name, found in kinds.items()
    }


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _put(place: Any, path: Sequence[str], value: Any, said: str) -> None:
    """Set what ``path`` leads to, through objects by name and through lists by number."""
    first, *rest = path
    listed = isinstance(place, list) and first.isdecimal() and int(first) < len(place)
    if not listed and not isinstance(place, dict):
        raise ConfigError(
            f"--param {said!r}: there is no {first!r} in {json.dumps(place)[:_SHOWN]}; expected a"
            " knob by its dotted name"
        )
    key: Any = int(first) if listed else first
    if not rest:
        place[key] = value
        return
    if isinstance(place, dict):
        place.setdefault(key, {})
    _put(place[key], rest, value, said)
