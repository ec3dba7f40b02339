"""What a person talked about with an assistant, as ChatGPT, Claude and Gemini write it out.

The roles are named there, so nobody has to say who is the assistant; talks between people are
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
from mypt.data.reading.raw import Limits
from mypt.data.reading.records import WEIGHTS, Dropped, Place, Tally, first_of
from mypt.errors import DataError
from mypt.text import shown


def fields_named(text: str) -> frozenset[str]:
    """Return the words of a text, which is how a list of fields is written here."""
    return frozenset(text.split())


# Fields that are read, or that say nothing a model could learn, by whose they are.
_CHATGPT: Final = fields_named("mapping current_node")
_BESIDE_CHATGPT: Final = fields_named(
    "title conversation_id conversation_template_id default_model_slug"
    " is_archived is_starred is_read_only is_study_mode is_do_not_remember moderation_results"
    " safe_urls blocked_urls gizmo_id gizmo_type plugin_ids disabled_tool_ids voice async_status"
    " conversation_origin memory_scope sugar_item_id sugar_item_visible pinned_time owner"
)
_NODE: Final = fields_named("author content metadata recipient status weight end_turn channel")
_CLAUDE: Final = fields_named("chat_messages current_leaf_message_uuid")
_BESIDE_CLAUDE: Final = fields_named("name account")
_TURN: Final = fields_named(
    "sender text content parent_message_uuid stop_reason input_mode truncated"
)
_BLOCK: Final = fields_named(
    "type text thinking name input content tool_use_id is_error flags start_timestamp"
    " stop_timestamp summaries cut_off message integration_name integration_icon_url"
    " display_content approval_key approval_options"
)
_GEMINI: Final = fields_named(
    "contents systemInstruction system_instruction tools train training weight loss_weight"
)
_BESIDE_GEMINI: Final = fields_named(
    "generationConfig generation_config safetySettings safety_settings"
)
_PARTS: Final = fields_named(
    "text functioncall functionresponse executablecode codeexecutionresult"
)
"""Fields of a part of Gemini's, in either spelling, that hold what it says."""
_RUN: Final = "code_execution"


class _Piece(NamedTuple):
    """Something that one message says; several may make one turn."""

    role: Role
    parts: list[Part]
    train: Train = None
    links: tuple[dict[str, Any], ...] = ()
    """Id and name of each call that it makes; of a result, those of the call that it answers."""


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


def read_chatgpt(row: Any, place: Place, tally: Tally) -> Iterator[Conversation]:
    """Yield the branch of a ChatGPT conversation that ends in its ``current_node``.

    Messages of other branches, hidden and empty ones are left out and counted, and so are parts
    that are no text, by their type. Code that was run, and whatever else went to a tool, is a
    tool call; thoughts are reasoning.

    Raises:
        DataError: If the tree has no such branch, or a message is of an unknown form.
        Dropped: If nothing is said.
    """
    fields = fields_of(row, place)
    tally.check_fields(fields, _CHATGPT, place, "a conversation", _BESIDE_CHATGPT)
    nodes = fields_of(fields.get("mapping"), place)
    path = _branch(nodes, _end(nodes, fields.get("current_node"), place), place)
    said = sum(isinstance(n, dict) and n.get("message") is not None for n in nodes.values())
    messages = [node["message"] for node in path if node.get("message") is not None]
    _count(tally, "message of another branch left out", said - len(messages))
    pieces = [piece for message in messages for piece in _of_node(message, place, tally)]
    yield Conversation(_turns(pieces, place, tally), place.origin)


def _end(nodes: dict[str, Any], current: Any, place: Place) -> str:
    """Return the last node of the branch to be read; where none is said, the only leaf."""
    if isinstance(current, str) and current in nodes:
        return current
    parents = {str(node.get("parent")) for node in nodes.values() if isinstance(node, dict)}
    leaves = [name for name in nodes if name not in parents]
    if current is None and len(leaves) == 1:
        return leaves[0]
    raise DataError(
        f"{place}: current_node is {shown(current)} in a tree with {len(leaves)} ends; expected"
        " the name of its last message; export it again, or remove the conversation"
    )


def _branch(nodes: dict[str, Any], name: str | None, place: Place) -> list[dict[str, Any]]:
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


def _of_node(message: Any, place: Place, tally: Tally) -> Iterator[_Piece]:
    """Yield what a message of ChatGPT's says, if anything."""
    fields = fields_of(message, place)
    tally.check_fields(fields, _NODE, place, "a message")
    author, content = (
        fields_of(fields.get("author"), place),
        fields_of(fields.get("content"), place),
    )
    role = read_role(author.get("role"), place)
    about = fields_of(fields.get("metadata") or {}, place)
    if about.get("is_visually_hidden_from_conversation"):
        tally.notes["hidden message left out"] += 1
        return
    parts = list(_of_content(content, place, tally))
    if fields.get("recipient") not in (None, "all") and role == "assistant":
        text = "".join(part.text for part in parts if part.kind == "text")
        parts = [part for part in parts if part.kind != "text"]
        parts += [_call(fields["recipient"], _parsed(text, place), place)] if text.strip() else []
    if not any(part.text.strip() for part in parts) and role != "tool":
        tally.notes["empty message left out"] += 1
        return
    status = fields.get("status")
    if role == "assistant" and status not in (None, "finished_successfully"):
        tally.notes[f"answer with status {shown(status)}"] += 1
    # Every message has a weight there, of the user too: only 0 says something about a mask.
    yield _Piece(role, parts, False if read_train(fields, place) is False else None)


def _of_content(content: dict[str, Any], place: Place, tally: Tally) -> Iterator[Part]:
    """Yield the parts of one content, whatever its type keeps them in."""
    kind = content.get("content_type")
    if kind in ("text", "multimodal_text"):
        for part in listed(content, "parts", place):
            if isinstance(part, str):
                yield Part("text", part)
            elif isinstance(part, dict) and isinstance(part.get("text"), str):
                yield Part("text", part["text"])  # what was spoken, written down
            else:
                inner = part.get("content_type") if isinstance(part, dict) else part
                _leave(inner, place, tally)
    elif kind == "thoughts":
        thoughts = [fields_of(one, place) for one in listed(content, "thoughts", place)]
        yield Part("reasoning", "\n\n".join(read_text(one, "content", place) for one in thoughts))
    elif kind in ("code", "execution_output", "tether_quote"):
        yield Part("text", read_text(content, "text", place))
    elif kind == "tether_browsing_display":
        yield Part("text", read_text(content, "result", place))
    else:
        _leave(kind, place, tally)


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
    pieces: list[_Piece] = []
    branch = _last_branch(messages, fields.get("current_leaf_message_uuid"), place)
    _count(tally, "message of another branch left out", len(messages) - len(branch))
    for message in branch:
        tally.check_fields(message, _TURN, place, "a message")
        role = read_role(message.get("sender"), place)
        text = message.get("text")
        flat = [{"type": "text", "text": text}]
        blocks = listed(message, "content", place) if message.get("content") else flat
        parts = [_of_block(fields_of(block, place), role, place, tally) for block in blocks]
        said = _merged(filter(None, parts))
        told = "".join(str(block["text"]) for block in blocks if block.get("type") == "text")
        if isinstance(text, str) and "".join(text.split()) != "".join(told.split()):
            tally.notes["'text' of a message differs from its blocks, which are read"] += 1
        if not any(part.text.strip() for piece in said for part in piece.parts):
            tally.notes["empty message left out"] += 1
            continue
        pieces += said
    yield Conversation(_turns(pieces, place, tally), place.origin)


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
    return [node["message"] for node in _branch(nodes, end, place)]


def _of_block(block: dict[str, Any], role: Role, place: Place, tally: Tally) -> _Piece | None:
    """Return what a block of Claude's says; None where it is no text."""
    kind = block.get("type")
    tally.check_fields(block, _BLOCK, place, "a block")
    if kind == "text":
        return _Piece(role, [Part("text", read_text(block, "text", place))])
    if kind == "thinking":
        return _Piece(role, [Part("reasoning", read_text(block, "thinking", place))])
    if kind == "tool_use":
        call = _call(block.get("name"), block.get("input"), place)
        return _Piece(role, [call], None, (_link(block),))
    if kind == "tool_result":
        given = list(_of_result(block.get("content"), place, tally))
        return _Piece("tool", given, None, (_link(block),))
    _leave(kind, place, tally)
    return None


def _of_result(content: Any, place: Place, tally: Tally) -> Iterator[Part]:
    for block in content if isinstance(content, list) else [content]:
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            yield Part("text", block["text"])
        elif isinstance(block, str):
            yield Part("text", block)
        else:
            _leave(block.get("type") if isinstance(block, dict) else block, place, tally)


def read_gemini(row: Any, place: Place, tally: Tally) -> Iterator[Conversation]:
    """Yield a conversation of Gemini's API: ``contents`` of ``parts``, and ``systemInstruction``.

    Raises:
        DataError: If there is no list of contents, or one is of an unknown form.
        Dropped: If nothing is said.
    """
    fields = fields_of(row, place)
    tally.check_fields(fields, _GEMINI, place, beside=_BESIDE_GEMINI)
    pieces: list[_Piece] = []
    for content in (fields_of(one, place) for one in listed(fields, "contents", place)):
        tally.check_fields(content, {"role", "parts", *WEIGHTS}, place, "a content")
        role = read_role(content.get("role") or "user", place)
        train = read_train(content, place)
        parts = [fields_of(part, place) for part in listed(content, "parts", place)]
        said = _merged(filter(None, (_of_part(part, role, place, tally) for part in parts)))
        pieces += [piece._replace(train=train) for piece in said]
    system = first_of(fields, ("systemInstruction", "system_instruction"))
    messages = list(_turns(pieces, place, tally))
    if system is not None:
        parts = listed(fields_of(system, place), "parts", place)
        text = "".join(read_text(fields_of(part, place), "text", place) for part in parts)
        messages = [say("system", text), *messages] if text.strip() else messages
    kept: dict[str, Any] = {key: fields.get(key) for key in ("tools", *WEIGHTS)}
    yield Conversation(frame(messages, kept, place), place.origin)


def _of_part(part: dict[str, Any], role: Role, place: Place, tally: Tally) -> _Piece | None:
    """Return what a part of Gemini's says; None where it is no text."""
    found = ((key, key.replace("_", "").lower()) for key in part if part[key] is not None)
    key, kind = next(((key, kind) for key, kind in found if kind in _PARTS), ("", ""))
    if not key:
        _leave(" and ".join(part) or "nothing", place, tally)
        return None
    tally.check_fields(part, {key, "thought"}, place, "a part of the content")
    if kind == "text":
        thinks = part.get("thought") is True
        return _Piece(role, [Part("reasoning" if thinks else "text", read_text(part, key, place))])
    held = fields_of(part[key], place)
    name = held.get("name") if kind.startswith("function") else _RUN
    link = _link(held) | {"name": name}
    if kind in ("functioncall", "executablecode"):
        arguments = held.get("args") if kind == "functioncall" else held
        return _Piece(role, [_call(name, arguments, place)], None, (link,))
    given = held.get("response") if kind == "functionresponse" else held.get("output") or ""
    text = given if isinstance(given, str) else strict_json.spell(given, place)
    return _Piece("tool", [Part("text", text)], None, (link,))


def _link(fields: dict[str, Any]) -> dict[str, Any]:
    """Return by what a call and its result, both as they are written, find each other."""
    key = first_of(fields, ("id", *CALL_IDS))
    return {"id": key, "tool_call_id": key, "name": fields.get("name")}


def _turns(pieces: Iterable[_Piece], place: Place, tally: Tally) -> tuple[Message, ...]:
    """Return messages, of which there must be one; pieces of one speaker in a row are one turn."""
    found = list(pieces)
    merged = _merged(found, "\n")
    if not merged:
        raise Dropped("a conversation without text")
    _count(tally, "message joined to the one before", len(found) - len(merged))
    turns = [to_message(one.role, one.parts, one.train) for one in merged]
    if not any(one.role == "tool" and one.links for one in merged):
        return tuple(turns)
    links = (one.links[0] if one.role == "tool" else {"tool_calls": one.links} for one in merged)
    told = zip(links, turns, strict=True)
    return tuple(link_results([Turn(fields, turn, place) for fields, turn in told], tally))


def _merged(pieces: Iterable[_Piece], between: str = "") -> list[_Piece]:
    """Return pieces of one speaker and weight as one; each result of a tool stays alone."""
    merged: list[_Piece] = []
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


def _call(name: Any, arguments: Any, place: Place) -> Part:
    call = {"name": name, "arguments": arguments or {}}
    return Part("tool_call", strict_json.spell(call, f"{place}: a tool call"))


def _parsed(text: str, place: Place) -> Any:
    """Return the JSON that was sent to a tool; code, which is none, as it stands."""
    try:
        found = strict_json.parse(text.encode(), 0, place, Limits())
    except DataError:
        return text
    return found if isinstance(found, dict) else text


def listed(fields: dict[str, Any], key: str, place: Place) -> list[Any]:
    """Return a field that must be a list.

    Raises:
        DataError: If it is missing or something else.
    """
    value = fields.get(key)
    if not isinstance(value, list):
        raise DataError(f"{place}: {key} is {shown(value)}; expected a list")
    return value


def _leave(kind: Any, place: Place, tally: Tally) -> None:
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


def _count(tally: Tally, note: str, n: int) -> None:
    if n:
        tally.notes[note] += n
