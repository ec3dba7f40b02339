"""One message as files spell it: its role, its parts, and whether the file decides its mask."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mypt.config import Role
from mypt.data.conversations import Message, Part, PartKind
from mypt.data.reading import strict_json
from mypt.data.reading.records import Dropped, Place
from mypt.errors import DataError
from mypt.text import names, shown

ROLE_NAMES: dict[str, Role] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
"""What the roles of known formats mean; the text of a ``function_call`` is a tool call."""

_PART_KINDS: dict[str, PartKind] = {
    "text": "text", "input_text": "text", "output_text": "text",
    "reasoning": "reasoning", "thinking": "reasoning",
    "tool_call": "tool_call", "function_call": "tool_call",
}  # fmt: skip
_CONTENT = ("content", "value", "text")
_WEIGHTS = ("train", "weight", "loss_weight")


def read_message(fields: Any, place: Place) -> Message:
    """Return one message of a conversation.

    Args:
        fields: ``role`` (or ``from``) and ``content`` (or ``value`` or ``text``): a string or
            a list of parts. Besides, if present: ``reasoning_content``, ``tool_calls``,
            ``train``, ``weight``, ``loss_weight``.
        place: The row, for errors.

    Raises:
        DataError: If it is no message, or asks for a weight other than 0 or 1.
        Dropped: If it says nothing: no text and no tool call. Tools may return nothing.
    """
    if not isinstance(fields, dict):
        raise DataError(f"{place}: found {shown(fields)}; expected a message with role and content")
    name = first_of(fields, ("role", "from"))
    if name is None:
        raise DataError(
            f"{place}: a message without a role; found the fields {names(fields)}; expected role"
            " and content, or name the fields with format 'mapping'"
        )
    parts = list(_parts(fields, place))
    if name == "function_call":
        parts = [Part("tool_call", part.text) for part in parts]
    return to_message(read_role(name, place), parts, read_train(fields, place))


def to_message(role: Role, parts: Iterable[Part], train: bool | None = None) -> Message:
    """Return a message whose texts in a row are one text, as a tokenizer must see them.

    Raises:
        Dropped: If no part holds more than white space; what a tool returns may be empty.
    """
    joined: list[Part] = []
    for part in parts:
        if joined and part.kind == joined[-1].kind == "text":
            joined[-1] = Part("text", joined[-1].text + part.text)
        elif part.text:
            joined.append(part)
    if not any(part.text.strip() for part in joined) and role != "tool":
        raise Dropped(f"a message of the {role} without text")
    return Message(role, tuple(joined) or (Part("text", ""),), train)


def read_role(name: Any, place: Place) -> Role:
    """Return what the name of a role means.

    Raises:
        DataError: If it means nothing here, with the nearest name that does.
    """
    if isinstance(name, str) and name in ROLE_NAMES:
        return ROLE_NAMES[name]
    near = difflib.get_close_matches(str(name)[:40].lower(), ROLE_NAMES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(ROLE_NAMES)}"
    raise DataError(f"{place}: unknown role {shown(name)}; {hint}")


def read_train(fields: Mapping[str, Any], place: Place) -> bool | None:
    """Return what ``train``, ``weight`` or ``loss_weight`` say; None if none is given.

    Raises:
        DataError: For a weight that is neither 0 nor 1, or if two of them disagree.
    """
    said: set[bool] = set()
    for key in _WEIGHTS:
        value = fields.get(key)
        if value is None:
            continue
        if not isinstance(value, int | float) or value not in (0, 1):
            raise DataError(
                f"{place}: {key} is {shown(value)}; expected 0 or 1, since a token is supervised"
                " or not; to weigh rows put them into sources of different weight"
            )
        said.add(bool(value))
    if len(said) > 1:
        raise DataError(f"{place}: {', '.join(_WEIGHTS)} disagree; keep one of them")
    return said.pop() if said else None


def fields_of(row: Any, place: Place) -> dict[str, Any]:
    """Return a row that must be an object.

    Raises:
        DataError: If it is something else.
    """
    if not isinstance(row, dict):
        raise DataError(f"{place}: found {shown(row)}; expected an object with named fields")
    return row


def first_of(fields: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """Return the first of several fields that is there and not null, else None."""
    for key in keys:
        if (value := fields.get(key)) is not None:
            return value
    return None


def read_text(fields: Mapping[str, Any], key: str, place: Place) -> str:
    """Return a field that must be a string.

    Raises:
        DataError: If it is missing or something else.
    """
    value = fields.get(key)
    if not isinstance(value, str):
        found = shown(value) if key in fields else f"only the fields {names(fields)}"
        raise DataError(f"{place}: {key} is no text; found {found}; expected a string")
    return value


def _parts(fields: dict[str, Any], place: Place) -> Iterator[Part]:
    reasoning = first_of(fields, ("reasoning_content", "thinking"))
    if reasoning is not None:
        yield Part("reasoning", _as_text(reasoning, place))
    content = first_of(fields, _CONTENT)
    calls = [*_listed(fields, "tool_calls", place), fields.get("function_call")]
    calls = [call for call in calls if call is not None]
    if isinstance(content, list):
        yield from (_read_part(part, place) for part in content)
    elif content is not None:
        yield Part("text", _as_text(content, place))
    elif not calls and reasoning is None:
        raise DataError(
            f"{place}: a message without content; found the fields {names(fields)}; expected role"
            " and content"
        )
    yield from (Part("tool_call", _spell_call(call, place)) for call in calls)


def _read_part(part: Any, place: Place) -> Part:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in _PART_KINDS:
        found = f"type {shown(kind)}" if isinstance(part, dict) else shown(part)
        raise DataError(
            f"{place}: a part of the content is {found}; expected type text, reasoning or"
            " tool_call; only text can be learned here"
        )
    value = first_of(part, ("value", *_CONTENT, kind))
    if _PART_KINDS[kind] == "tool_call" and isinstance(value, dict):
        return Part("tool_call", _spell_call(value, place))
    return Part(_PART_KINDS[kind], _as_text(value, place))


def _as_text(value: Any, place: Place) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: content is {shown(value)}; expected a string or a list of parts")
    return value


def _listed(fields: dict[str, Any], key: str, place: Place) -> list[Any]:
    value = fields.get(key)
    if value is not None and not isinstance(value, list):
        raise DataError(f"{place}: {key} is {shown(value)}; expected a list")
    return value or []


def _spell_call(call: Any, place: Place) -> str:
    """Return a call as ``{"name": ..., "arguments": ...}``; as text or object, they are equal."""
    called = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(called, dict) or not isinstance(called.get("name"), str):
        raise DataError(f"{place}: a tool call is {shown(call)}; expected a name and arguments")
    named = f"{place}: arguments of {shown(called['name'])}"
    arguments = called.get("arguments")
    if isinstance(arguments, str):
        arguments = strict_json.parse_text(arguments, named) if arguments.strip() else None
    if not isinstance(arguments, dict | None):
        raise DataError(f"{named}: found {shown(arguments)}; expected an object with a field each")
    spelled = {"name": called["name"], "arguments": arguments or {}}
    return strict_json.spell(spelled, named)
