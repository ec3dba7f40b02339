"""What stands in a text between tags, or in a field of a message, as the parts that it is.

Reasoning and calls of an assistant; documents and citations where their names are said.

A policy acts on parts, so what looks like one and stays text is counted.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

from mypt.config import Reading
from mypt.data.conversations import Conversation, Message, Part, PartKind, Row
from mypt.data.reading.formats.message import CONTENT, typed_parts
from mypt.data.reading.records import Tally, first_of

_CALL = "tool_call"
_OFF = "none"
_OTHERS = (
    "<thinking>", "<reasoning>", "<thought>", "<function_call>", "<functioncall>", "<tool_calls>",
    "<function=", "<invoke", "<parameter=", "<tool_response>", "<seed:think>", "<|python_tag|>",
    "<|channel|>", "<|tool_call|>", "<|tool_call_start|>", "<|tool_call_begin|>",
    "<|tool_calls_section_begin|>", "<\uff5ctool\u2581calls\u2581begin\uff5c>",
    "<\uff5ctool\u2581call\u2581begin\uff5c>", "[THINK]", "[/THINK]", "[TOOL_CALLS]",
    "[TOOL_RESULTS]", "<|begin_of_thought|>", "<|begin_of_solution|>", "<scratchpad>",
    "<reflection>", "\u25c1think\u25b7",
)  # fmt: skip
"""What begins reasoning, a call or a result elsewhere; it stays text."""
_DEFAULT = Reading().reasoning_tags
_SPEAKER = frozenset({"role", "from"})
_RAW = frozenset({*CONTENT, "tools", "tool_calls", "function_call"})
"""Fields of a message in which no other message lies."""


def mark_fields(value: Any, parts: str) -> Any:
    """Return a raw value in whose messages the fields named by ``parts`` are parts of the content.

    Documents stand before what a message says, citations behind it.
    """
    if isinstance(value, list):
        return [mark_fields(one, parts) for one in value]
    if not isinstance(value, dict):
        return value
    value = {key: one if key in _RAW else mark_fields(one, parts) for key, one in value.items()}
    kinds = {name: kind for name, kind in _kinds(parts).items() if value.get(name)}
    if not kinds or _SPEAKER.isdisjoint(value):
        return value
    fields = {key: one for key, one in value.items() if key not in kinds}
    said = first_of(fields, CONTENT)
    key = next((key for key in CONTENT if fields.get(key) is not None), "content")
    held = dict[str, list[Any]](context=[], cite=[])
    for name, kind in kinds.items():
        held[kind] += typed_parts(value[name], kind)
    texts = said if isinstance(said, list) else [] if said is None else typed_parts(said, "text")
    return fields | {key: [*held["context"], *texts, *held["cite"]]}


@lru_cache
def _kinds(parts: str) -> dict[str, PartKind]:
    """Return the kind of part that each name of a field or tag means."""
    pairs = (pair.partition("=") for pair in parts.split(",") if pair)
    return {name: cast(PartKind, kind) for kind, _, name in pairs}


def mark_parts(row: Row, tags: str, tally: Tally, parts: str = "") -> Row:
    """Return a row whose tagged texts are parts.

    ``<think>...</think>`` at the beginning of an assistant's message becomes reasoning, and
    ``<tool_call>{"name": ...}</tool_call>`` a call, as it is written. The line feeds around the
    tags are the tags', as templates write them.

    Args:
        row: A document stays as it is.
        tags: Names of the tags around reasoning, joined by commas; "none" leaves all of it text.
        tally: Counts what became a part, and tags that stay text.
        parts: Which other tags hold a document or, in an assistant's text, a citation.
    """
    if not isinstance(row, Conversation):
        return row
    if parts:
        row = replace(row, messages=tuple(mark_quoted(one, parts, tally) for one in row.messages))
    marked: list[Message] | None = None
    for index, message in enumerate(row.messages):
        if message.role != "assistant":
            continue
        for part in message.parts:
            text = part.text
            squared = "[" in text and ("[T" in text or "[/T" in text)
            if "<" in text or squared or "\u25c1" in text:
                marked = marked or list(row.messages)
                marked[index] = mark_message(message, tags, tally)
                break
    return row if marked is None else replace(row, messages=tuple(marked))


def mark_message(message: Message, tags: str, tally: Tally) -> Message:
    """Return one message of the assistant as :func:`mark_parts` does a row."""
    names, told = _names(tags)
    if not any(tag in part.text for part in message.parts for tag in told):
        return message
    parts = list(message.parts)
    if tags != _OFF:
        parts = _mark_reasoning(parts, names, tally)
        parts = [piece for part in parts for piece in _mark_calls(part, tally)]
    for tag in told:
        if any(part.kind == "text" and tag in part.text for part in parts):
            tally.notes[f"{tag} in the text of the assistant stays text"] += 1
    return message if parts == list(message.parts) else replace(message, parts=tuple(parts))


def mark_quoted(message: Message, parts: str, tally: Tally) -> Message:
    """Return a message whose documents and citations between tags are parts."""
    kinds = _kinds(parts)
    if message.role != "assistant":
        kinds = {name: kind for name, kind in kinds.items() if kind == "context"}
    if not any(f"</{name}>" in part.text for name in kinds for part in message.parts):
        return message
    found = [piece for part in message.parts for piece in _quoted(part, kinds, tally)]
    return replace(message, parts=tuple(found))


def _quoted(part: Part, kinds: dict[str, PartKind], tally: Tally) -> Iterator[Part]:
    """Yield what stands between tags and around them."""
    if part.kind != "text":
        yield part
        return
    done, text = 0, part.text
    for match in re.finditer(rf"<({'|'.join(kinds)})>(.*?)</\1>", text, re.DOTALL):
        kind = kinds[match[1]]
        if before := text[done : match.start()]:
            yield replace(part, text=before)
        yield replace(part, kind=kind, text=match[2].strip("\n"))
        tally.notes[f"text between <{match[1]}> tags read as {kind}"] += 1
        done = match.end()
        if kind == "context":
            done += len(text) - done - len(text[done:].lstrip("\n"))
    if rest := text[done:]:
        yield replace(part, text=rest)


@lru_cache
def _names(tags: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of tags around reasoning, and every tag that is looked for."""
    names = tuple((_DEFAULT if tags == _OFF else tags).split(","))
    told = (f"<{slash}{name}>" for name in (*names, _CALL) for slash in ("", "/"))
    return names, tuple(dict.fromkeys((*told, *_OTHERS)))


def _mark_reasoning(parts: list[Part], names: Iterable[str], tally: Tally) -> list[Part]:
    first = next((index for index, part in enumerate(parts) if part.kind != "reasoning"), None)
    if first is None or parts[first].kind != "text":
        return parts
    before, text, after = parts[:first], parts[first], parts[first + 1 :]
    begin = text.text.lstrip()
    for name in names:
        head, tag, rest = begin.partition(f"</{name}>")
        if not (tag and head.startswith(f"<{name}>")):
            continue
        thought = replace(text, kind="reasoning", text=head.removeprefix(f"<{name}>").strip("\n"))
        if before and "".join(part.text for part in before).strip() != thought.text.strip():
            continue  # the file says otherwise what the reasoning is
        said = replace(text, text=rest.lstrip("\n"))
        tally.notes[f"text between <{name}> tags read as reasoning"] += 1
        return [*(before or [thought]), *([said] if said.text else []), *after]
    return parts


def _mark_calls(part: Part, tally: Tally) -> Iterator[Part]:
    """Yield the calls in a text and what stands around them."""
    opened, closed = f"<{_CALL}>", f"</{_CALL}>"
    text, at, done = part.text if part.kind == "text" else "", 0, 0
    while (end := text.find(closed, at)) >= 0:
        begin = text.rfind(opened, at, end)
        at = end + len(closed)
        call = text[begin + len(opened) : end] if begin >= 0 else ""
        if not _is_call(call):
            continue
        tally.notes[f"text between {opened} tags read as a call"] += 1
        if before := _between(text[done:begin]):
            yield replace(part, text=before)
        yield replace(part, kind="tool_call", text=call.strip())
        done = at
    if not done:
        yield part
    elif rest := _between(text[done:]):
        yield replace(part, text=rest)


def _between(text: str) -> str:
    return text.strip("\n") if text.strip() else ""


def _is_call(text: str) -> bool:
    try:
        call = json.loads(text, parse_constant=_refuse)
        json.dumps(call, allow_nan=False)
        named = isinstance(call, dict) and isinstance(call.get("name"), str)
        arguments = call.get("arguments") if named else None
        if isinstance(arguments, str) and arguments.strip():
            json.dumps(json.loads(arguments), allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return named


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
