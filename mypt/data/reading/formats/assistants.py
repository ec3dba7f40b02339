"""What a person talked about with an assistant, as Claude and Gemini write it out.

ChatGPT's tree is read in :mod:`mypt.data.reading.formats.chatgpt`, by what all of them share. The
roles are named there, so nobody has to say who is the assistant; talks between people are
read in :mod:`mypt.data.reading.formats.people`.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from mypt.config import Format, Role
from mypt.data.conversations import Conversation, Message, Part, Train, say
from mypt.data.reading import strict_json
from mypt.data.reading.formats.calls import CALL_IDS, Turn, link_results
from mypt.data.reading.formats.chats import frame
from mypt.data.reading.formats.message import (
    fields_of,
    read_role,
    read_text,
    read_train,
    to_message,
)
from mypt.data.reading.records import WEIGHTS, Dropped, Place, Tally, Within, first_of
from mypt.errors import DataError
from mypt.text import shown


def fields_named(text: str) -> frozenset[str]:
    """Return the words of a text, which is how a list of fields is written here."""
    return frozenset(text.split())


# Fields that are read, or that say nothing a model could learn, by whose they are.
_CLAUDE: Final = fields_named("chat_messages current_leaf_message_uuid")
_BESIDE_CLAUDE: Final = fields_named("name account")
_TURN: Final = fields_named(
    "sender text content parent_message_uuid stop_reason input_mode truncated"
)
_BLOCKS: Final = {
    "text": fields_named("type text"),
    "thinking": fields_named("type thinking"),
    "tool_use": fields_named("type name input"),
    "tool_result": fields_named("type name content tool_use_id is_error"),
}
"""What is read of a block of Claude's by its type."""
_BESIDE_BLOCK: Final = fields_named(
    "is_error flags start_timestamp stop_timestamp summaries cut_off message integration_name"
    " integration_icon_url display_content approval_key approval_options"
)
_GEMINI: Final = fields_named(
    "contents systemInstruction system_instruction tools train training weight loss_weight"
)
_BESIDE_GEMINI: Final = fields_named(
    "generationConfig generation_config safetySettings safety_settings"
)
_PARTS: Final = {
    "text": fields_named(""),
    "functioncall": fields_named("id name args"),
    "functionresponse": fields_named("id name response"),
    "executablecode": fields_named(""),
    "codeexecutionresult": fields_named("outcome output"),
}
"""Fields of a part of Gemini's, in either spelling, that hold what it says, and which of their
fields are read; where none are named, all are."""
_RUN: Final = "code_execution"


class Spoken(NamedTuple):
    """Something that one message says; several may make one turn."""

    role: Role
    parts: list[Part]
    train: Train = None
    links: tuple[dict[str, Any], ...] = ()
    """Id and name of each call that it makes; of a result, those of the call that it
    answers, and what marks it as an error."""


def identify(fields: dict[str, Any]) -> Format | None:
    """Return whose conversation a row is by its fields; None if it is nobody's here."""
    nodes, contents = fields.get("mapping"), fields.get("contents")
    if isinstance(nodes, dict) and (
        "current_node" in fields
        or any(
            isinstance(node, dict) and {"message", "parent"} <= node.keys()
            for node in nodes.values()
        )
    ):
        return "chatgpt"
    if isinstance(fields.get("chat_messages"), list):
        return "claude"
    first = contents[0] if isinstance(contents, list) and contents else None
    return "gemini" if isinstance(first, dict) and "parts" in first else None


def branch_to(nodes: dict[str, Any], name: str | None, place: Place) -> list[dict[str, Any]]:
    """Return the nodes from the root to the one of this name."""
    path: list[dict[str, Any]] = []
    seen: set[str] = set()
    while name is not None:
        if name in seen or not isinstance(nodes.get(name), dict):
            found = "its own ancestor" if name in seen else "not in the tree"
            raise DataError(
                f"{place}: node {shown(name)} is {found}; expected a tree of messages; export it"
                " again, or remove the conversation"
            )
        seen.add(name)
        path.append(nodes[name])
        parent = nodes[name].get("parent")
        name = parent if parent is None or isinstance(parent, str) else str(parent)
    return path[::-1]


def read_claude(row: Any, place: Place, tally: Tally) -> Iterator[Conversation]:
    """Yield a conversation of Claude's export, from its ``chat_messages``.

    Where messages name their parents, the branch is read that ends in the last one. What a tool
    gave back stands within the assistant's message there and becomes a message of the tool.

    Raises:
        DataError: If there is no list of messages, or one is of an unknown form.
        Dropped: If nothing is said.
    """
    fields = fields_of(row, place)
    tally.check_fields(fields, _CLAUDE, place, "a conversation", _BESIDE_CLAUDE)
    messages = [fields_of(one, place) for one in listed(fields, "chat_messages", place)]
    pieces: list[Spoken] = []
    branch = _last_branch(messages, fields.get("current_leaf_message_uuid"), place)
    count(tally, "message of another branch left out", len(messages) - len(branch))
    for message in branch:
        tally.check_fields(message, _TURN, place, "a message")
        role = read_role(message.get("sender"), place)
        text = message.get("text")
        flat = [{"type": "text", "text": text}]
        blocks = listed(message, "content", place) if message.get("content") else flat
        parts = [_of_block(fields_of(block, place), role, place, tally) for block in blocks]
        said = _merged(filter(None, parts))
        told = "".join(str(block["text"]) for block in blocks if block.get("type") == "text")
        beside = text if isinstance(text, str | None) else str(text)
        if beside is not None and "".join(beside.split()) != "".join(told.split()):
            tally.notes["'text' of a message differs from its blocks, which are read"] += 1
        if not any(part.text.strip() for piece in said for part in piece.parts):
            tally.notes["empty message left out"] += 1
            continue
        pieces += said
    yield Conversation(turns_of(pieces, place, tally), place.origin)


def _last_branch(messages: list[dict[str, Any]], last: Any, place: Place) -> list[dict[str, Any]]:
    by_name = {str(message.get("uuid")): message for message in messages}
    if not messages or not all("parent_message_uuid" in message for message in messages):
        return messages
    nodes = {
        name: {"message": message, "parent": parent if parent in by_name else None}
        for name, message in by_name.items()
        for parent in [str(message["parent_message_uuid"])]
    }
    end = str(last) if str(last) in by_name else str(messages[-1].get("uuid"))
    return [node["message"] for node in branch_to(nodes, end, place)]


def _of_block(block: dict[str, Any], role: Role, place: Place, tally: Tally) -> Spoken | None:
    """Return what a block of Claude's says; None where it is no text."""
    kind = block.get("type")
    if not isinstance(kind, str) or kind not in _BLOCKS:
        leave_out(kind, place, tally)
        return None
    tally.check_fields(block, _BLOCKS[kind], place, "a block", _BESIDE_BLOCK)
    if kind == "text":
        return Spoken(role, [Part("text", read_text(block, "text", place))])
    if kind == "thinking":
        return Spoken(role, [Part("reasoning", read_text(block, "thinking", place))])
    if kind == "tool_use":
        call = call_part(block.get("name"), block.get("input"), place)
        return Spoken(role, [call], None, (_link(block),))
    given = list(_of_result(block.get("content"), place, tally))
    return Spoken("tool", given, None, (_link(block) | {"is_error": block.get("is_error")},))


def _of_result(content: Any, place: Place, tally: Tally) -> Iterator[Part]:
    for block in content if isinstance(content, list) else [content]:
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            tally.check_fields(block, _BLOCKS["text"], place, "a result", _BESIDE_BLOCK)
            yield Part("text", block["text"])
        elif isinstance(block, str):
            yield Part("text", block)
        else:
            leave_out(block.get("type") if isinstance(block, dict) else block, place, tally)


def read_gemini(row: Any, place: Place, tally: Tally) -> Iterator[Conversation]:
    """Yield a conversation of Gemini's API: ``contents`` of ``parts``, and ``systemInstruction``.

    Raises:
        DataError: If there is no list of contents, or one is of an unknown form.
        Dropped: If nothing is said.
    """
    fields = fields_of(row, place)
    tally.check_fields(fields, _GEMINI, place, beside=_BESIDE_GEMINI)
    pieces: list[Spoken] = []
    for content in (fields_of(one, place) for one in listed(fields, "contents", place)):
        tally.check_fields(content, {"role", "parts", *WEIGHTS}, place, "a content")
        role = read_role(content.get("role") or "user", place)
        train = read_train(content, place)
        parts = [fields_of(part, place) for part in listed(content, "parts", place)]
        said = _merged(filter(None, (_of_part(part, role, place, tally) for part in parts)))
        pieces += [piece._replace(train=train) for piece in said]
    system = first_of(fields, ("systemInstruction", "system_instruction"))
    messages = list(turns_of(pieces, place, tally))
    if system is not None:
        told = fields_of(system, place)
        tally.check_fields(told, {"role", "parts"}, place, "the system instruction")
        parts = [fields_of(part, place) for part in listed(told, "parts", place)]
        for part in parts:
            tally.check_fields(part, {"text"}, place, "the system instruction")
        text = "".join(read_text(part, "text", place) for part in parts)
        messages = [say("system", text), *messages] if text.strip() else messages
    kept: dict[str, Any] = {key: fields.get(key) for key in ("tools", *WEIGHTS)}
    yield Conversation(frame(messages, kept, place), place.origin)


def _of_part(part: dict[str, Any], role: Role, place: Place, tally: Tally) -> Spoken | None:
    """Return what a part of Gemini's says; None where it is no text."""
    found = ((key, key.replace("_", "").lower()) for key in part if part[key] is not None)
    key, kind = next(((key, kind) for key, kind in found if kind in _PARTS), ("", ""))
    if not key:
        leave_out(" and ".join(part) or "nothing", place, tally)
        return None
    read = {key, "thought"} if isinstance(part.get("thought"), bool) else {key}
    tally.check_fields(part, read, place, "a part of the content")
    if kind == "text":
        thinks = part.get("thought") is True
        return Spoken(role, [Part("reasoning" if thinks else "text", read_text(part, key, place))])
    held = fields_of(part[key], place)
    tally.check_fields(held, _PARTS[kind] or held.keys(), place, f"a {key}")
    name = held.get("name") if kind.startswith("function") else _RUN
    link = _link(held) | {"name": name}
    if kind in ("functioncall", "executablecode"):
        arguments = held.get("args") if kind == "functioncall" else held
        return Spoken(role, [call_part(name, arguments, place)], None, (link,))
    given = held.get("response" if kind == "functionresponse" else "output") or ""
    text = given if isinstance(given, str) else strict_json.spell(given, place)
    link |= {"outcome": held.get("outcome"), "content": given}
    return Spoken("tool", [Part("text", text)], None, (link,))


def _link(fields: dict[str, Any]) -> dict[str, Any]:
    """Return by what a call and its result, both as they are written, find each other."""
    key = first_of(fields, ("id", *CALL_IDS))
    return {"id": key, "tool_call_id": key, "name": fields.get("name")}


def turns_of(pieces: Iterable[Spoken], place: Place, tally: Tally) -> tuple[Message, ...]:
    """Return messages, of which there must be one; pieces of one speaker in a row are one turn."""
    found = list(pieces)
    merged = _merged(found, "\n")
    if not merged:
        raise Dropped("a conversation without text")
    count(tally, "message joined to the one before", len(found) - len(merged))
    turns = [to_message(one.role, one.parts, one.train) for one in merged]
    if not any(one.role == "tool" and one.links for one in merged):
        return tuple(turns)
    links = (
        next(iter(one.links), {}) if one.role == "tool" else {"tool_calls": one.links}
        for one in merged
    )
    told = zip(links, turns, strict=True)
    return tuple(link_results([Turn(fields, turn, place) for fields, turn in told], tally))


def _merged(pieces: Iterable[Spoken], between: str = "") -> list[Spoken]:
    """Return pieces of one speaker and weight as one; each result of a tool stays alone."""
    merged: list[Spoken] = []
    for piece in pieces:
        before = merged[-1] if merged and piece.role != "tool" else None
        if before is None or (before.role, before.train) != (piece.role, piece.train):
            merged.append(piece)
            continue
        is_text = before.parts[-1].kind == piece.parts[0].kind == "text"
        joint = [Part("text", between)] if between and is_text else []
        merged[-1] = before._replace(
            parts=[*before.parts, *joint, *piece.parts], links=before.links + piece.links
        )
    return merged


def call_part(name: Any, arguments: Any, place: Place) -> Part:
    """Return a call of a tool, spelled as all are.

    Raises:
        DataError: If JSON has no such value.
    """
    call = {"name": name, "arguments": arguments or {}}
    return Part("tool_call", strict_json.spell(call, Within(place, "a tool call")))


def listed(fields: dict[str, Any], key: str, place: Place) -> list[Any]:
    """Return a field that must be a list.

    Raises:
        DataError: If it is missing or something else.
    """
    value = fields.get(key)
    if not isinstance(value, list):
        raise DataError(f"{place}: {key} is {shown(value)}; expected a list")
    return value


def leave_out(kind: Any, place: Place, tally: Tally) -> None:
    """Count a part that is no text.

    Raises:
        DataError: If the reading is strict.
    """
    if tally.strict:
        raise DataError(
            f"{place}: a part of a message is {shown(kind)} and no text; expected text where"
            " reading is strict; remove the row, or leave strict out"
        )
    tally.notes[f"part {shown(kind)}, which is no text, left out"] += 1


def count(tally: Tally, note: str, n: int) -> None:
    """Note what happened so often, if it did."""
    if n:
        tally.notes[note] += n
