"""One message as files spell it: its role, its parts, and whether the file decides its mask."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mypt.config import MOST_WEIGHT, Role
from mypt.data.conversations import Message, Part, PartKind, Train
from mypt.data.reading import strict_json
from mypt.data.reading.formats.calls import (
    CALL_IDS,
    CALLS,
    call_in,
    kind_of,
    spell_call,
    spell_text,
    verdicts_of,
)
from mypt.data.reading.records import MEANINGLESS, WEIGHTS, Dropped, Place, Tally, first_of, no_text
from mypt.errors import DataError
from mypt.text import names, shown

ROLE_NAMES: dict[str, Role] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "ai": "assistant",
    "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
    "tool_response": "tool", "tool_result": "tool", "ipython": "tool",
}  # fmt: skip
"""What the roles of known formats mean, in any case; the text of a call is a tool call."""
_CALLERS = frozenset({"function_call", "tool_call"})

_PART_KINDS: dict[str, PartKind] = {
    "text": "text", "input_text": "text", "output_text": "text", "refusal": "text",
    "reasoning": "reasoning", "thinking": "reasoning",
    "reasoning.text": "reasoning", "reasoning.summary": "reasoning",
    "context": "context", "document": "context", "cite": "cite", "citation": "cite",
}  # fmt: skip
_SEALED = frozenset({"redacted_thinking", "reasoning.encrypted"})
"""Types of parts whose reasoning nobody but its maker can read."""
CONTENT = ("content", "value", "text", "parts")
_REASONING = (
    "reasoning_content", "thinking", "reasoning", "reasoning_text", "thought",
    "reasoning_details", "thinking_blocks",
)  # fmt: skip
_THOUGHT = frozenset(_REASONING)
_SAID = frozenset(CONTENT)
OF_MESSAGES = (*WEIGHTS, "loss", "loss_scale")
"""Besides, how ms-swift says it of a message; of a row these would be something measured."""
_SAID_OF_TRAIN = frozenset(OF_MESSAGES)
_DETAILS = ("train_detail", "training_detail")
_SPEAKER = ("role", "from")
_BOTH = frozenset(_SPEAKER)
_UNSAID = {None}
MESSAGE = frozenset(
    {
        *("refusal", "tool_calls", "function_call", *_SPEAKER, *MEANINGLESS),
        *(*CONTENT, *_REASONING, *OF_MESSAGES, *_DETAILS),
    }
)
"""Fields that are read of every message, or need not be."""
_MORE = MESSAGE - MEANINGLESS - {"role", "content"}
"""Fields by which a message says more than one text."""
RESULT = MESSAGE | {"name", *CALL_IDS}
"""And of what a tool gives back, whose links are read."""
_HELD = ("value", "content", "text", "summary")
_PART = frozenset({"type", "format", "thought", "call_id", *_HELD, *WEIGHTS})
"""Fields that are read of every part, besides the one named like its type."""


class UnknownRoleError(DataError):
    """The name of a role means nothing here; whoever knows the row says how it is read."""


def read_message(
    fields: Any, place: Place, tally: Tally, beside: frozenset[str] = frozenset()
) -> Message:
    """Return one message of a conversation.

    Args:
        fields: ``role`` (or ``from``) and ``content`` (or ``value``, ``text``, ``parts``): a
            string or a list of parts. Besides, if present: reasoning under one of its names,
            ``refusal``, ``tool_calls``, ``train`` or a weight, also of a part, and
            ``train_detail``. What else holds something is counted.
        place: The row, for errors.
        tally: Counts what is not read.
        beside: Fields that the caller reads.

    Raises:
        DataError: If it is no message, or asks for a weight that is none.
        Dropped: If it says nothing: no text and no tool call. Tools may return nothing.
    """
    if not isinstance(fields, dict):
        raise DataError(f"{place}: found {shown(fields)}; expected a message with role and content")
    name = first_of(fields, _SPEAKER)
    if name is None:
        raise DataError(
            f"{place}: a message without a role; found the fields {names(fields)}; expected role"
            " and content, or name the fields with format 'mapping'"
        )
    role = read_role(name, place)
    content = first_of(fields, CONTENT)
    is_plain = len(fields) == 2
    if not is_plain:
        read = MESSAGE
        if role == "tool":
            verdicts = verdicts_of(fields)
            read = RESULT.union(verdicts) if verdicts else RESULT
        tally.check_fields(fields, read | beside if beside else read, place, "a message")
        is_plain = _MORE.isdisjoint(fields)
    if is_plain and isinstance(content, str):  # as most are
        if content and not content.isspace() and name not in _CALLERS:
            return Message(role, (Part("text", content),))
        parts = [Part("text", content)]
    else:
        parts = list(_parts(fields, role, content, place, tally))
    if name.lower() in _CALLERS:
        parts = [
            Part("tool_call", call, part.train)
            for part in parts
            for call in (
                spell_text(part.text, place, tally) if part.kind == "text" else [part.text]
            )
        ]
    return to_message(role, parts, read_train(fields, place, OF_MESSAGES))


def to_message(role: Role, parts: Iterable[Part], train: Train = None) -> Message:
    """Return a message whose texts in a row are one text, as a tokenizer must see them.

    Texts that differ in what they say about the mask stay apart; what all parts say is said of
    the whole message, so that nobody learns to end a turn of which nothing is learned.

    Raises:
        Dropped: If no part holds more than white space; what a tool returns may be empty.
    """
    told = [part for part in parts if part.text]
    said = {part.train for part in told}
    if said and said != _UNSAID:
        if train is None and len(said) == 1:
            train = said.pop()
        told = [replace(part, train=None) if part.train == train else part for part in told]
    joined: list[Part] = []
    for part in told:
        before = joined[-1] if joined else None
        if before and part.kind == before.kind == "text" and part.train == before.train:
            joined[-1] = Part("text", before.text + part.text, part.train)
        else:
            joined.append(part)
    if not any(part.text.strip() for part in joined) and role != "tool":
        raise Dropped(f"a message of the {role} without text")
    return Message(role, tuple(joined) or (Part("text", ""),), train)


def read_role(name: Any, place: Place) -> Role:
    """Return what the name of a role means.

    Raises:
        UnknownRoleError: If it means nothing here, with the nearest name that does.
    """
    role = ROLE_NAMES.get(name) or ROLE_NAMES.get(name.lower()) if isinstance(name, str) else None
    if role is not None:
        return role
    near = difflib.get_close_matches(str(name)[:40].lower(), ROLE_NAMES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(ROLE_NAMES)}"
    raise UnknownRoleError(f"{place}: unknown role {shown(name)}; {hint}")


def read_train(
    fields: Mapping[str, Any], place: Place, keys: Iterable[str] = WEIGHTS
) -> bool | float | None:
    """Return what ``train``, ``weight`` or ``loss_weight`` say; None if none is given.

    A switch that is on leaves how much to a number beside it.

    Raises:
        DataError: For a weight that is no number from 0 to 1,000, or if two of them disagree.
    """
    if _SAID_OF_TRAIN.isdisjoint(fields):
        return None
    switches, numbers = set[bool](), set[float]()
    for key in keys:
        value = fields.get(key)
        if value is None:
            continue
        if isinstance(value, bool):
            switches.add(value)
        elif isinstance(value, int | float) and 0 <= value <= MOST_WEIGHT and key != "loss":
            numbers.add(float(value))
        else:
            expected = "true or false" if key == "loss" else f"0 to {MOST_WEIGHT:g}, true or false"
            raise DataError(f"{place}: {key} is {shown(value)}; expected {expected}")
    said = switches | {number > 0 for number in numbers}
    if len(said) > 1 or len(numbers) > 1:
        raise DataError(f"{place}: {', '.join(keys)} disagree; keep one of them")
    if numbers - {0.0, 1.0}:
        return numbers.pop()
    return said.pop() if said else None


def fields_of(row: Any, place: Place) -> dict[str, Any]:
    """Return a row that must be an object.

    Raises:
        DataError: If it is something else.
    """
    if not isinstance(row, dict):
        raise DataError(f"{place}: found {shown(row)}; expected an object with named fields")
    return row


def read_text(fields: Mapping[str, Any], key: str, place: Place) -> str:
    """Return a field that must be a string.

    Raises:
        DataError: If it is missing or something else.
    """
    value = fields.get(key)
    if key not in fields:
        raise DataError(
            f"{place}: {key} is no text; found only the fields {names(fields)}; expected a string;"
            " mend or remove the row"
        )
    if not isinstance(value, str):
        raise no_text(place, key, value)
    return value


def typed_parts(value: Any, kind: str) -> list[dict[str, Any]]:
    """Return documents or citations, a text or object or a list of them, as parts of a content."""
    given = value if isinstance(value, list) else [value]
    return [(one if isinstance(one, dict) else {"text": one}) | {"type": kind} for one in given]


def _parts(
    fields: dict[str, Any], role: Role, content: Any, place: Place, tally: Tally
) -> Iterator[Part]:
    reasoning = _reasoning(fields, place, tally)
    calls = [*_listed(fields, "tool_calls", place), fields.get("function_call")]
    calls = [call for call in calls if call is not None]
    refusal = fields.get("refusal")
    if content is None and not calls and reasoning is None and refusal is None:
        named = not _SAID.isdisjoint(fields)
        raise DataError(
            f"{place}: a message {'whose content is null' if named else 'without content'}; found"
            f" the fields {names(fields)}; expected role and content; write what it says, or remove"
            " the row"
        )
    told = list(_content(content, role, fields, place, tally))
    thought = "".join([part.text for part in told if part.kind == "reasoning"])
    if thought and reasoning and thought.strip() != reasoning.strip():
        raise DataError(
            f"{place}: reasoning stands both beside the content and in its parts, and differs;"
            " keep one of them"
        )
    if reasoning and not thought:
        yield Part("reasoning", reasoning)
    yield from told
    if refusal is not None:
        yield Part("text", _as_text(refusal, "refusal", place))
    spelled = [spell_call(call, place, tally) for call in calls]
    if fields.get("function_call") is not None and spelled[-1] in spelled[:-1]:
        spelled.pop()  # the older name of the same call
    for call, text in zip(calls, spelled, strict=False):
        yield Part("tool_call", text, read_train(call, place))
    if len(_SAID & fields.keys()) > 1 or fields.keys() >= _BOTH:
        _check_doubled(fields, place, tally)


def _content(
    content: Any, role: Role, fields: dict[str, Any], place: Place, tally: Tally
) -> Iterator[Part]:
    details = first_of(fields, _DETAILS)
    if details is not None:
        yield from _cut(_as_text(content, "content", place), details, place)
    elif isinstance(content, list):
        for one in content:
            if isinstance(one, dict) and len(one) == 2 and one.get("type") == "text":
                yield Part("text", _as_text(first_of(one, _HELD), "content", place))
            else:
                yield from _read_part(one, place, tally)
    elif role == "tool" and isinstance(content, dict | int | float):
        yield Part("text", strict_json.spell(content, place))
    elif content is not None:
        yield Part("text", _as_text(content, "content", place))


def _reasoning(fields: dict[str, Any], place: Place, tally: Tally) -> str | None:
    """Return the reasoning that stands beside the content, under whichever names."""
    if _THOUGHT.isdisjoint(fields):
        return None
    found: dict[str, str] = {}
    for key in _REASONING:
        value = fields.get(key)
        if isinstance(value, list):
            value = "".join(
                part.text for one in value for part in _read_part(one, place, tally, "reasoning")
            )
        if value is not None:
            found[key] = _as_text(value, key, place)
    told = {text.strip() for text in found.values() if text.strip()}
    if len(told) > 1:
        raise DataError(
            f"{place}: the reasoning in {' and '.join(found)} differs; keep one of them"
        )
    return max(found.values(), key=len, default=None)


def _check_doubled(fields: dict[str, Any], place: Place, tally: Tally) -> None:
    """Count a second role or content that says something else than the one that was read."""
    for keys in (_SPEAKER, CONTENT):
        held = {key: fields[key] for key in keys if fields.get(key) is not None}
        if len(held) > 1:
            first, *others = held.values()
            if any(other != first for other in others):
                tally.check_fields(held, {next(iter(held))}, place, "a message")


def _read_part(
    part: Any, place: Place, tally: Tally, only: PartKind | None = None
) -> Iterator[Part]:
    kind = kind_of(part) or ""
    if kind in _SEALED:
        tally.notes["reasoning that is encrypted left out"] += 1
        return
    is_call = kind in CALLS and only is None
    if not is_call and (kind not in _PART_KINDS or only not in (None, _PART_KINDS[kind])):
        named = isinstance(part, dict) and part.get("type") is not None
        found = f"type {shown(part['type'])}" if named else shown(part)
        raise DataError(
            f"{place}: a part of the content is {found}; expected type text, reasoning, context,"
            " cite or tool_call, since only text can be learned here; write what it shows as a"
            " text, or remove the row"
        )
    train = read_train(part, place)
    value = call_in(part, kind) if is_call else first_of(part, (*_HELD, kind))
    if value is not part and (len(part) > 2 or "type" not in part):
        unread = {
            key
            for key in (*_HELD, "thought", kind)
            if key in part and part[key] != value and not isinstance(part[key], bool)
        }
        if unread or not part.keys() <= _PART:
            tally.check_fields(part, (_PART | {kind}) - unread, place, "a part of the content")
    if is_call and isinstance(value, dict):
        yield Part("tool_call", spell_call(value, place, tally), train)
    elif is_call:
        for call in spell_text(_as_text(value, "content", place), place, tally):
            yield Part("tool_call", call, train)
    else:
        yield Part(_PART_KINDS[kind], _as_text(value, "content", place), train)


def _cut(text: str, details: Any, place: Place) -> Iterator[Part]:
    """Yield the stretches of a content that axolotl's ``train_detail`` tells apart.

    Both ends of a stretch belong to it; what stands in none is context.
    """
    done = 0
    for detail in details if isinstance(details, list) else [details]:
        values = detail if isinstance(detail, dict) else {}
        begin, end = (values.get(key) for key in ("begin_offset", "end_offset"))
        train = values.get("train")
        if not (
            type(begin) is int
            and type(end) is int
            and isinstance(train, bool)
            and done <= begin <= end < len(text)
        ):
            raise DataError(
                f"{place}: train_detail holds {shown(detail)}; expected begin_offset, end_offset"
                f" and train, in order, within the {len(text)} characters of the content, the end"
                " being the last character itself"
            )
        yield Part("text", text[done:begin], False)
        yield Part("text", text[begin : end + 1], train)
        done = end + 1
    yield Part("text", text[done:], False)


def _as_text(value: Any, name: str, place: Place) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{place}: {name} is {shown(value)}; expected a string or a list of parts"
            f"{'; put it into quotes' if isinstance(value, int | float) else ''}"
        )
    return value


def _listed(fields: dict[str, Any], key: str, place: Place) -> list[Any]:
    value = fields.get(key)
    if value is not None and not isinstance(value, list):
        raise DataError(f"{place}: {key} is {shown(value)}; expected a list")
    return value or []
