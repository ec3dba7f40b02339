"""How a file of JSON, or what was typed, becomes a frozen model, and what is said if it cannot."""

import ast
import difflib
import inspect
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_origin

import json5
from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails

from mypt import files
from mypt.errors import ConfigError
from mypt.text import shown

Config = TypeVar("Config", bound=BaseModel)
_COMMENTED = 1 << 17
"""Characters of JSON that may have comments; reading them takes seconds."""
LENGTHS = {"epochs": "max_iters", "max_iters": "epochs"}
"""Knobs of which one alone says how long to train; a change of one ends the other."""


class Frozen(BaseModel):
    """A value that crosses a file, a task or the command line: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Say of each field what stands below it in its class.

        Pydantic can read that too, but does when a class is made, for which every command waits.
        """
        form = handler(schema)
        fields = handler.resolve_ref_schema(form).get("properties", {})
        for model in cls.__mro__:
            if issubclass(model, Frozen):
                for name, text in _said_below(model):
                    if name in fields:
                        fields[name].setdefault("description", text)
        return form


def _said_below(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    (tree,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(tree, ast.ClassDef), "the source of a class"
    for line, below in pairwise(tree.body):
        match line, below:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                yield name, inspect.cleandoc(text)


def own_first(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Let a form ask for a model's own fields before those that it inherits."""
    fields = schema["properties"]
    schema["properties"] = {name: fields[name] for name in model.__annotations__} | fields


def read_config(path: Path, model: type[Config], example: str = "") -> Config:
    """Read ``path`` as ``model``; every error names the file and the nearest known key.

    Args:
        path: JSON, in which ``//`` comments may stand.
        model: What it holds.
        example: A file of the kind, for who names one that is not there.

    Raises:
        ConfigError: If the file is missing, is no JSON, or holds an unknown or wrong value.
    """
    return parse_config(read_json(path, example), model, str(path))


def parse_config(values: dict[str, Any], model: type[Config], where: str) -> Config:
    """Validate ``values`` as ``model``; ``where`` names their origin in errors.

    A number is a number: neither "1" nor true is taken for 1.

    Raises:
        ConfigError: One line for the first wrong key or value, with the count of the others.
    """
    try:
        return model.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # Of a list whose item is wrong, only the item is named.
        outer = {e["loc"][:n] for e in errors for n in range(len(e["loc"]))}
        found = [e for e in errors if e["loc"] not in outer]
        first, *others = sorted(found, key=lambda e: e["type"] != "extra_forbidden")
        more = f" (and {len(others)} more)" if others else ""
        raise ConfigError(f"{where}: {_describe(first, model)}{more}") from None


def read_json(path: Path, example: str = "") -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        ConfigError: If it is missing or is none.
    """
    try:
        return parse_json(files.read_bytes(path).decode(), str(path))
    except FileNotFoundError:
        beside = {one.name: one for one in path.parent.glob("*.json")}
        near = [
            beside[name] for name in difflib.get_close_matches(path.name, beside, n=1, cutoff=0.75)
        ]
        such = next(map(str, near), example)
        wanted = f"a file such as {such}" if such else "a file of one JSON object"
        raise ConfigError(f"{path}: no such file; expected {wanted}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: no UTF-8 ({error.reason}); expected one JSON object") from None
    except ValueError as error:  # a byte 0 in the name
        raise ConfigError(f"{path}: no file's name ({error}); expected a file") from None


def parse_json(text: str, where: str) -> dict[str, Any]:
    """Parse one JSON object, in which ``//`` comments may stand and no key stands twice.

    Args:
        text: The object.
        where: Its origin, for errors.

    Raises:
        ConfigError: If it is none.
    """
    try:
        values = _loads(text)
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply; expected one JSON object") from None
    except ValueError as error:
        said = re.sub(r"<string>:(\d+)", r"line \1:", " ".join(str(error).split()))
        raise ConfigError(f"{where}: no JSON ({said}); expected one JSON object") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: found {type(values).__name__}; expected one JSON object")
    return values


def _loads(text: str) -> Any:
    """Return the value of JSON, quickly where it has no comments."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("a key stands twice in one object")
        return values

    try:
        return json.loads(text, object_pairs_hook=once)
    except ValueError as error:
        if len(text) > _COMMENTED:
            raise ValueError(f"{error}; comments may stand in {_COMMENTED:,} characters") from None
        return json5.loads(text, allow_duplicate_keys=False)


def _describe(error: ErrorDetails, model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        *place, unknown = error["loc"]
        return f"unknown key {key!r}; {_hint(_model_at(model, place), unknown)}"
    if error["type"] == "missing":
        return f"{key} is missing; add it"
    named = f"{key}: " if key else ""
    if error["type"] == "value_error":
        return named + str(error["ctx"]["error"])
    if error["type"] == "json_invalid":
        return "half of a surrogate pair (\\ud800 to \\udfff) is no text; remove it"
    wanted = error["msg"].replace("Input should be", "expected")
    return f"{named}{wanted}, found {shown(error['input'])}"


def _hint(model: type[BaseModel], unknown: int | str) -> str:
    """Say which key was meant: a near one, else the same one further inside, else any."""
    known = sorted(model.model_fields)
    near = difflib.get_close_matches(str(unknown), known, n=1, cutoff=0.6)
    one = [key for key in known if get_origin(model.model_fields[key].annotation) is not tuple]
    inside = [f"{key}.{unknown}" for key in one if unknown in _inner(model, key).model_fields]
    if near or inside:
        return f"did you mean {' or '.join(map(repr, near or inside))}?"
    return f"known keys: {', '.join(known)}"


def _model_at(model: type[BaseModel], place: list[int | str]) -> type[BaseModel]:
    """Return what an object inside ``model`` is."""
    for step in place:
        if str(step) in model.model_fields:  # else a place in a list of what was found last
            model = _inner(model, str(step))
    return model


def _inner(model: type[BaseModel], key: str) -> type[BaseModel]:
    """Return the model that the field ``key`` holds, or ``model`` where it holds a plain value."""
    annotation = model.model_fields[key].annotation
    kinds = [annotation, *getattr(annotation, "__args__", ())]
    inner = (k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    return next(inner, model)


def override(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return knobs with some of them changed."""
    ended = {LENGTHS[key] for key in LENGTHS.keys() & changes.keys()}
    return {key: value for key, value in values.items() if key not in ended} | changes
