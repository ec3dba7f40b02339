"""Events as lines: how the processes that train speak to the one that started them."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from mypt import errors
from mypt.training import events
from mypt.training.events import Event


@dataclass(frozen=True, slots=True)
class Failed:
    """A process ended with an error that another start would only repeat."""

    kind: str
    """Name of the class in :mod:`mypt.errors`."""
    text: str

    def error(self) -> errors.MyptError:
        """Return the error as it was raised."""
        kind: type[errors.MyptError] = getattr(errors, self.kind, errors.TrainingError)
        return kind(self.text)


def to_line(said: Event | Failed) -> str:
    """Return an event as one line; floats come back to the bit, nan too."""
    name = type(said).__name__
    return json.dumps({"event": name} | _form(name).dump_python(said))


def from_line(line: str) -> Event | Failed | None:
    """Return what :func:`to_line` was given; None for half a line, of a process that was killed."""
    try:
        values = json.loads(line)
        name = values.pop("event")
    except (ValueError, AttributeError, KeyError, TypeError):
        return None
    said: Event | Failed = _form(name).validate_python(values)
    return said


@cache
def _form(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(Failed if name == Failed.__name__ else getattr(events, name))
