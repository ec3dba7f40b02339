"""What a flow is asked for a config: the file that holds it, and what shall be otherwise.

A form whose knobs were filled in would run with what stood in it when it was opened, whatever
file is named beside it. So every knob is empty, which is "as in the file", and says what that is.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from mypt.config import PipelineConfig, Preset, load_config, load_pipeline
from mypt.errors import ConfigError, MyptError
from mypt.parsing import LENGTHS, Config, override, parse_config
from mypt.text import shorten

Values = dict[str, Any]
Models = dict[str, type[BaseModel] | None]
"""The config model of each parameter of a flow, None where it is a plain value."""
PIPELINE_FILE = "configs/demo.json"
BASE_FILE = "configs/tiny.json"
CHAT_FILE = "configs/tiny_sft.json"
AS_IN_FILE: Values = {}
"""Nothing is overridden."""
_SHOWN = 60
YES, NO = "yes", "no"
"""A switch is never empty, it would say no by itself; a choice is, and shows a no as chosen."""
_NEVER_EMPTY = ("default", "required", "anyOf", "$ref", "$defs")
"""What a knob that may be left empty does not say."""


class Knobs:
    """Describes to a form the knobs of ``model`` and their values in ``file``, where it is."""

    def __init__(self, model: type[BaseModel], load: Callable[[str], BaseModel], file: str) -> None:
        self._model, self._load, self._file = model, load, file

    def __get_pydantic_json_schema__(
        self, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the schema of an object of which everything may be left out."""
        schema = self._model.model_json_schema()
        form = _optional(schema, schema.get("$defs", {}))
        try:
            config = self._load(self._file)
        except MyptError:  # the flow says so where the file is needed
            return form
        return _valued(form, config, Path(self._file).name)


PipelineFile = Annotated[PipelineConfig | str, WithJsonSchema({"type": "string"})]
"""A form asks for the path; programs, and runs of earlier forms, may give the config itself."""
PresetFile = Annotated[Preset | str, WithJsonSchema({"type": "string"})]
"""Likewise a preset."""
PipelineKnobs = Annotated[Values, Knobs(PipelineConfig, load_pipeline, PIPELINE_FILE)]
BaseKnobs = Annotated[Values, Knobs(Preset, load_config, BASE_FILE)]
ChatKnobs = Annotated[Values, Knobs(Preset, load_config, CHAT_FILE)]


def asked_pipeline(
    config: PipelineConfig | str, overrides: Values, where: str = "overrides"
) -> PipelineConfig:
    """Return the pipeline that a flow was asked for.

    Args:
        config: Its file, or all of it.
        overrides: What shall be otherwise, as far as it is.
        where: Where the overrides were said, for errors.

    Raises:
        ConfigError: If the file or an override is wrong.
    """
    loaded = load_pipeline(config) if isinstance(config, str) else config
    return _overridden(loaded, overrides, where)


def asked_preset(config: Preset | str, overrides: Values, where: str = "overrides") -> Preset:
    """Return the preset that a flow was asked for; as :func:`asked_pipeline`."""
    loaded = load_config(config) if isinstance(config, str) else config
    return _overridden(loaded, overrides, where)


def _overridden(config: Config, overrides: Values, where: str) -> Config:
    if not overrides:
        return config
    values = _merged(written(config), _switched(overrides, type(config)))
    return parse_config(values, type(config), where)


def written(config: BaseModel) -> Values:
    """Return the knobs that a config says; what is left out may mean more than its default."""
    return config.model_dump(mode="json", exclude_unset=True)


def _switched(overrides: Values, model: type[BaseModel]) -> Values:
    """Return overrides with a form's choices as the switches that they stand for.

    A form that nobody touched sends some objects empty. That says nothing, unless the object may be
    missing: then it is one of defaults.
    """
    made: Values = {}
    for key, said in overrides.items():
        field = model.model_fields.get(key)
        kinds = (get_args(field.annotation) or (field.annotation,)) if field else ()
        inner = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if inner and isinstance(said, dict):
            within = _switched(said, inner)
            if within or (not said and field and field.default is None):
                made[key] = within
        elif inner and isinstance(said, list):
            made[key] = [_switched(row, inner) if isinstance(row, dict) else row for row in said]
        else:
            made[key] = said == YES if bool in kinds and said in (YES, NO) else said
    return made


def _merged(start: Any, overrides: Any) -> Any:
    """Return ``start`` with ``overrides`` in its place, object by object; lists are whole."""
    if isinstance(start, dict) and isinstance(overrides, dict):
        return override(start, {k: _merged(start.get(k), said) for k, said in overrides.items()})
    return overrides


def difference(values: Any, start: Any) -> Any:
    """Return the overrides that make ``values`` of ``start``."""
    if isinstance(values, dict):
        before = start if isinstance(start, dict) else {}
        changed = (key for key in values if key not in before or values[key] != before[key])
        return {key: difference(values[key], before.get(key)) for key in changed}
    return _word(values)


def _word(value: Any) -> Any:
    """Return a value as a form says it, that of each row of a list too."""
    if isinstance(value, list):
        return [_word(row) for row in value]
    if isinstance(value, dict):
        return {key: _word(said) for key, said in value.items()}
    return (NO, YES)[value] if isinstance(value, bool) else value


def changed_config(path: Path, changes: Sequence[str]) -> PipelineConfig:
    """Return a pipeline config with knobs changed, such as ``sft.max_iters=50``.

    Raises:
        ConfigError: If the file or a change is wrong.
    """
    models: Models = {"config": PipelineConfig, "overrides": None}
    values = changed({"config": str(path)}, changes, models, PIPELINE_FILE)
    return asked_pipeline(values["config"], values.get("overrides", AS_IN_FILE))


def changed(
    values: Values, changes: Sequence[str], models: Models, file: str | None = None
) -> Values:
    """Return the parameters of a flow with some changed, each checked by its model.

    Args:
        values: Parameters so far.
        changes: ``NAME=VALUE``, the value as JSON or else as text. A dotted name reaches into a
            parameter; one that is no parameter is a knob of ``config``, and overrides it where
            that is a file.
        models: The parameters.
        file: The config of a flow that reads one from a file, unless another is named.

    Raises:
        ConfigError: If there is no such knob, or it cannot have that value.
    """
    values = json.loads(json.dumps(values))
    knobs: list[tuple[list[str], str]] = []
    for text in changes:
        name, equals, _ = text.partition("=")
        if not name or not equals:
            raise ConfigError(f"--param {text!r}: expected NAME=VALUE, such as sft.max_iters=50")
        first, *rest = parts = name.split(".")
        if first in models and not (rest and first in ("config", "overrides")):
            put(values, parts, *_said(text))
        else:
            knobs.append((rest if first in models else parts, text))
    if file is not None:
        checked = knobs or any(text.startswith("config=") for text in changes)
        return values | (_overrides(values, knobs, models, file) if checked else {})
    for parts, text in knobs:
        put(values, ["config", *parts], *_said(text))
    for name, value in values.items():
        model = models.get(name)
        if isinstance(value, dict) and model is not None:
            values[name] = parse_config(value, model, f"--param {name}").model_dump(
                mode="json", exclude_unset=True
            )
    return values


def _overrides(
    values: Values, knobs: Sequence[tuple[list[str], str]], models: Models, file: str
) -> Values:
    """Return the config's overrides with ``knobs`` among them, as a parameter of the flow."""
    asked = asked_pipeline if models["config"] is PipelineConfig else asked_preset
    file = values.get("config", file)
    if not isinstance(file, str):
        raise ConfigError("the deployment's config is no file's path; deploy it again")
    start, whole = (
        written(asked(file, overrides))
        for overrides in (AS_IN_FILE, values.get("overrides", AS_IN_FILE))
    )
    for parts, text in knobs:
        put(whole, parts, *_said(text))
    overrides = difference(whole, start)
    asked(file, overrides, "--param")
    return {"overrides": overrides}


def read_value(text: str) -> Any:
    """Return the value of a knob as it was typed: JSON, or else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _said(change: str) -> tuple[Any, str]:
    return read_value(change.partition("=")[2]), f"--param {change!r}"


def put(place: Any, path: Sequence[str], value: Any, where: str) -> None:
    """Set what ``path`` leads to, through objects by name, through lists by number or by a name.

    Raises:
        ConfigError: If it leads nowhere; ``where`` says who named it.
    """
    first, *rest = path
    if isinstance(place, list) and rest:  # stages have names
        named = [
            n for n, one in enumerate(place) if isinstance(one, dict) and one.get("name") == first
        ]
        first = str(named[0]) if named else first
    listed = isinstance(place, list) and first.isdecimal() and int(first) < len(place)
    if not listed and not isinstance(place, dict):
        raise ConfigError(
            f"{where}: there is no {first!r} in {json.dumps(place)[:_SHOWN]}; expected a knob by"
            " its dotted name"
        )
    key: Any = int(first) if listed else first
    if not rest:
        place[key] = value
        if key in LENGTHS:
            place.pop(LENGTHS[key], None)
        return
    if isinstance(place, dict):
        place.setdefault(key, {})
    put(place[key], rest, value, where)


def _optional(
    part: JsonSchemaValue, definitions: JsonSchemaValue, *, listed: bool = False
) -> JsonSchemaValue:
    """Return the schema of a knob, and of those in it, that may be left empty."""
    kind: JsonSchemaValue = next(
        (kind for kind in part.get("anyOf", ()) if kind != {"type": "null"}), {}
    )
    name = (kind | part).get("$ref", "").rpartition("/")[2]
    whole = definitions.get(name, {}) | kind | part
    made = {key: value for key, value in whole.items() if key not in _NEVER_EMPTY}
    if listed and kind and "properties" in whole:  # a row is whole, where {} is not nothing
        return part | {"anyOf": [_optional(k, definitions, listed=True) for k in part["anyOf"]]}
    if made.get("type") == "boolean":
        words = [other["const"] for other in part.get("anyOf", ()) if "const" in other]
        made |= {"type": "string", "enum": [YES, NO, *words]}
    if "properties" in made:
        made["properties"] = {
            key: _optional(knob, definitions, listed=listed) | {"title": key}
            for key, knob in made["properties"].items()
        }
    for rows in ("items", "additionalProperties"):
        if isinstance(made.get(rows), dict):
            made[rows] = _optional(made[rows], definitions, listed=True)
    return made


def _valued(form: JsonSchemaValue, config: BaseModel | None, file: str) -> JsonSchemaValue:
    """Return the form with what each knob is in ``file``, or where it is left out there."""
    fields = type(config).model_fields if config else {}
    values = {key: field.default for key, field in fields.items()}  # a dump may leave them out
    values |= config.model_dump(mode="json") if config else {}
    said_there, knobs = config.model_fields_set if config else set(), {}
    for key, knob in form["properties"].items():
        if "properties" in knob:
            knobs[key] = _valued(knob, getattr(config, key, None), file)
        elif "properties" in knob.get("items", {}):
            knobs[key] = knob
        else:
            value = shorten(json.dumps(_word(values.get(key)), ensure_ascii=False), _SHOWN)
            left_out = f"Left out in {file}, default"
            said = f"{f'In {file}' if key in said_there else left_out}: {value}"
            knobs[key] = knob | {"description": f"{knob['description']} {said}"}
    return form | {"properties": knobs}
