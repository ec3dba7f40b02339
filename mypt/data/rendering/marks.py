"""Marks round the texts of a conversation, put in before rendering and taken out after it.

Each text gets two private-use characters round it, inside its white space. Where the rest is what
the template makes of the plain conversation, and each text stands there as it was and once, the
places are proved; otherwise the template rewrites the text.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from mypt.data.conversations import WRITTEN_AS, Message, Part

_FIRST: Final = 0x100000
_MARK: Final = re.compile("[\U00100000-\U0010fffb]")
_PRIVATE: Final = re.compile("[\U00100000-\U0010ffff]")
_MOST: Final = (0x10FFFB - _FIRST) // 2
_TOOLS: Final = re.compile(r"(?:\A|\n\n)Tools:\n(\[.*\])\Z", re.DOTALL)
_ORDER: Final = {"reasoning": 0, "text": 1, "tool_call": 2}


Leaf = tuple[int, str, str]
"""A message's index, the kind of one of its texts, and that text."""


Said = Sequence[dict[str, Any] | None]
"""Messages as ``transformers`` has them; None in place of one that only lists tools."""
Tools = list[dict[str, Any]] | None
"""Schemas of the tools that may be called."""


class Marked(NamedTuple):
    """A conversation in the form of ``transformers``."""

    plain: Said
    marked: Said
    """With marks round each text."""
    leaves: list[Leaf]
    """Whose each pair of marks is."""
    tools: Tools


class Unproved(Exception):  # noqa: N818 - no error: whoever asked decides what becomes of the row
    """The template cannot be proved for a conversation; its text is the reason."""


class Region(NamedTuple):
    """Where one of the texts stands in what was written."""

    start: int
    stop: int
    message: int
    kind: str


def marked_messages(turns: Sequence[Message]) -> Marked:
    """Return messages of ``transformers``, the same with marks, and whose each pair of marks is.

    What a first system message lists as readers list a row's tools is given as tools.

    Raises:
        Unproved: If a turn cannot be said in their form, or holds what stands for a mark.
    """
    plain: list[dict[str, Any] | None] = []
    marked: list[dict[str, Any] | None] = []
    leaves: list[Leaf] = []
    turns, tools = _without_tools(turns)
    for index, turn in enumerate(turns):
        kinds = [WRITTEN_AS[part.kind] for part in turn.parts]
        if not _ORDER.keys() >= set(kinds):
            raise Unproved("a base's own template has no form for quoted documents and citations")
        if sorted(kinds, key=_ORDER.__getitem__) != kinds:
            raise Unproved("a turn whose parts do not come as reasoning, text, tool calls")
        if any(_PRIVATE.search(part.text) for part in turn.parts):
            raise Unproved("a text with private characters from U+100000 on")
        if tools and not index and turn.role == "system" and not turn.text:
            plain.append(None)
            marked.append(None)
            continue
        calls = [
            _call(part.text, index, n)
            for n, part in enumerate(turn.parts)
            if WRITTEN_AS[part.kind] == "tool_call"
        ]
        one: dict[str, Any] = {"role": turn.role}
        other: dict[str, Any] = {"role": turn.role}
        for kind, keys in (
            ("reasoning", ("reasoning_content", "thinking")),
            ("text", ("content",)),
        ):
            said = "".join(part.text for part in turn.parts if part.kind == kind)
            if said.strip():
                leaves.append((index, kind, said))
            elif kind == "reasoning":
                continue
            for key in keys:
                one[key], other[key] = said, _wrapped(said, len(leaves) - 1)
        if calls:
            one["tool_calls"] = other["tool_calls"] = calls
        plain.append(one)
        marked.append(other)
    if len(leaves) > _MOST:
        raise Unproved(f"more than {_MOST} texts")
    return Marked(plain, marked, leaves, tools)


def _without_tools(turns: Sequence[Message]) -> tuple[Sequence[Message], Tools]:
    """Take what :func:`mypt.data.reading.formats.chats.frame` lists out of a system message."""
    first = turns[0] if turns else None
    listed = _TOOLS.search(first.text) if first is not None and first.role == "system" else None
    if first is None or listed is None:
        return turns, None
    try:
        tools = json.loads(listed[1])
    except (ValueError, RecursionError):
        return turns, None
    if not all(isinstance(tool, dict) for tool in tools):
        return turns, None
    text = first.text[: listed.start()]
    return (replace(first, parts=(Part("text", text),)), *turns[1:]), tools


def _call(text: str, message: int, number: int) -> dict[str, Any]:
    """Return a tool call as ``transformers`` has it; nine letters are what Mistral wants as id."""
    try:
        called = json.loads(text)
        name, arguments = called["name"], called["arguments"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Unproved("a tool call that is no JSON with name and arguments") from None
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": f"call{message:03d}{number:02d}"[:9], "function": function}


def spelled_json(value: Any) -> str:
    """Return JSON as templates spell it."""
    return json.dumps(value, ensure_ascii=False)


def _wrapped(text: str, leaf: int) -> str:
    core = text.strip()
    if not core:
        return text
    at = text.index(core)
    opens, closes = chr(_FIRST + 2 * leaf), chr(_FIRST + 2 * leaf + 1)
    return f"{text[:at]}{opens}{core}{closes}{text[at + len(core) :]}"


def find_regions(marked: str, text: str, leaves: Sequence[Leaf]) -> list[Region]:
    """Take the marks out again and return where they stood, in order.

    Raises:
        Unproved: If the rest is not ``text``, or a text is another one now, or stands twice.
    """
    found: list[Region] = []
    opened: tuple[int, int] | None = None
    for taken, mark in enumerate(_MARK.finditer(marked)):
        leaf, closes = divmod(ord(mark.group()) - _FIRST, 2)
        at = mark.start() - taken
        if closes and opened is not None and opened[0] == leaf:
            found.append(Region(opened[1], at, *leaves[leaf][:2]))
            opened = None
        elif closes or opened is not None or leaf >= len(leaves):
            raise Unproved("the template rewrites what a message says")
        else:
            opened = leaf, at
    if opened is not None or _MARK.sub("", marked) != text:
        raise Unproved("the template rewrites what a message says")
    said = {leaf[:2]: leaf[2].strip() for leaf in leaves}
    for one in found:
        core = said[one.message, one.kind]
        if text[one.start : one.stop] not in (core, spelled_json(core)[1:-1]):
            raise Unproved("the template rewrites what a message says")
    if len({(one.message, one.kind) for one in found}) < len(found):
        raise Unproved("the template repeats a message")
    if [one.message for one in found] != sorted(one.message for one in found):
        raise Unproved("the template writes messages in another order")
    return found


def widened(
    regions: Sequence[Region], leaves: Sequence[Leaf], text: str, begins: dict[int, int]
) -> list[Region]:
    """Give each text the white space round it back, where the template left it there."""
    said = {leaf[:2]: leaf[2] for leaf in leaves}
    wide: list[Region] = []
    for one, after in zip(regions, [*regions[1:], None], strict=True):
        own = said[one.message, one.kind]
        lead, rest = own[: len(own) - len(own.lstrip())], own[len(own.rstrip()) :]
        start, stop = one.start - len(lead), one.stop + len(rest)
        least = max(begins.get(one.message, 0), wide[-1].stop if wide else 0)
        most = after.start if after else len(text)
        wide.append(
            one._replace(
                start=start if start >= least and text[start : one.start] == lead else one.start,
                stop=stop if stop <= most and text[one.stop : stop] == rest else one.stop,
            )
        )
    return wide
