"""Conversations as lists of messages (messages, sharegpt, chat) or trees of them (OASST)."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import repeat
from typing import Any, Final

from mypt.data.conversations import Conversation, Message, Part, Train, say
from mypt.data.reading import strict_json
from mypt.data.reading.formats.calls import LOST_ERROR, Turn, has_failed, link_results, unfold
from mypt.data.reading.formats.message import (
    ROLE_NAMES,
    UnknownRoleError,
    fields_of,
    read_message,
    read_text,
    read_train,
    to_message,
)
from mypt.data.reading.raw import Limits
from mypt.data.reading.records import (
    BLANK,
    MEANINGLESS,
    WEIGHTS,
    Dropped,
    Place,
    Record,
    Tally,
    Within,
    first_of,
    verdict_of,
)
from mypt.errors import DataError
from mypt.text import names, shown

LISTS: Final = ("messages", "conversations", "conversation", "contents")
"""Fields of a row that hold its messages; the first that holds any is read."""
_SYSTEMS: Final = ("system", "system_prompt", "systemInstruction", "system_instruction")
_TOOLS: Final = ("tools", "functions")
ROW: Final = frozenset({*_SYSTEMS, *_TOOLS, *WEIGHTS})
"""Fields of a row that :func:`frame` hears."""
IDS: Final = frozenset({"conversation_id", "message_tree_id", "message_id", "parent_id", "user_id"})
"""Fields that place a message or a row among others, where nesting has done so already."""
_READ: Final = {key: ROW | IDS | MEANINGLESS | {key} for key in LISTS}
_NODE: Final = frozenset({"replies", *IDS})


def read_messages(row: Any, place: Place, tally: Tally) -> Iterator[Conversation]:
    """Yield the conversation of a row that holds a list of messages.

    The list is the row's ``messages``, ``conversations``, ``conversation`` or ``contents``, or
    the row itself. Its ``system`` (or ``system_prompt``) and ``tools`` (or ``functions``) become
    the system message; its ``train`` or ``weight`` holds for every turn of the assistant that
    has none of its own. What else it holds is counted.

    Raises:
        DataError: If there is no message, or one that cannot be read.
        Dropped: If one of them says nothing.
    """
    fields = {"messages": row} if isinstance(row, list) else fields_of(row, place)
    key = list_of(fields)
    turns = fields.get(key)
    if isinstance(turns, str):
        turns = strict_json.parse_text(turns, place)
    if not isinstance(turns, list):
        found = f"the fields {names(fields)}" if turns is None else shown(turns)
        raise DataError(f"{place}: found {found}; expected a list 'messages' or 'conversations'")
    if not turns:
        raise DataError(f"{place}: an empty conversation; expected at least one message")
    try:
        messages = read_list(zip(turns, repeat(place)), tally)
    except UnknownRoleError as error:
        raise DataError(f"{error}{_cure(turns, key if fields is row else None)}") from None
    if len(fields) > 1:
        read = _READ[key]
        if "prompt" in fields and fields["prompt"] == _asked(messages):
            read |= {"prompt"}
        tally.check_fields(fields, read, place)
        fields = _with_system_text(fields, place, tally)
    yield Conversation(frame(messages, fields, place), place.origin)


def list_of(fields: Mapping[str, Any]) -> str:
    """Return the field of a row that holds its messages; "messages" where none does."""
    for key in LISTS:
        if fields.get(key):
            return key
    return next((key for key in LISTS if fields.get(key) is not None), LISTS[0])


def read_list(turns: Iterable[tuple[Any, Place]], tally: Tally) -> list[Message]:
    """Return the messages of one conversation, each result behind the call that it answers.

    Raises:
        DataError: If one cannot be read, or a result answers no call.
        Dropped: If one says nothing.
    """
    found: list[tuple[dict[str, Any], Message, Place]] = []
    has_results = False
    for value, place in turns:
        for fields in unfold(value):
            try:
                message = read_message(fields, place, tally)
            except Dropped:
                if not is_empty_system(fields):
                    raise
                tally.notes["empty system message left out"] += 1
                continue
            has_results = has_results or message.role == "tool"
            found.append((fields, message, place))
    if has_results:
        return link_results([Turn(*one) for one in found], tally)
    return [message for _, message, _ in found]


def _asked(messages: list[Message]) -> str | None:
    return next((message.text for message in messages if message.role == "user"), None)


def _cure(turns: list[Any], key: str | None) -> str:
    """Return how a row is read whose roles are not all known; empty where it has no fields."""
    named = [first_of(one, ("role", "from")) if isinstance(one, dict) else None for one in turns]
    said = [role for role in named if isinstance(role, str) and role.isprintable()]
    if key is None or len(said) < len(turns):
        return ""
    known = {role: ROLE_NAMES.get(role.lower()) for role in said}
    # Nobody is taken for the assistant beside one who is.
    other = "user" if "assistant" in known.values() else "assistant"
    roles = {role: ours or other for role, ours in known.items()}
    role_field = "role" if "role" in turns[0] else "from"
    text_field = next((name for name in ("content", "value", "text") if name in turns[0]), "")
    meant = ",".join(f"{theirs}={ours}" for theirs, ours in roles.items())
    return (
        f"; or say what each means: --format mapping --turns_field {key} --role_field {role_field}"
        f" --text_field {text_field} --role_names {shlex.quote(meant)}"
    )


def _with_system_text(fields: dict[str, Any], place: Place, tally: Tally) -> dict[str, Any]:
    """Return a row whose system message, where it is written in blocks, is one text."""
    if ROW.isdisjoint(fields):
        return fields
    blocks = {key: fields[key] for key in _SYSTEMS if isinstance(fields.get(key), list | dict)}
    for key, value in blocks.items():
        as_message = value if isinstance(value, dict) else {"content": value}
        try:
            said = read_message({"role": "system"} | as_message, place, tally).text
        except Dropped:
            said = ""
            tally.notes["empty system message left out"] += 1
        blocks[key] = said
    return fields | blocks if blocks else fields


def frame(messages: list[Message], row: dict[str, Any], place: Place) -> tuple[Message, ...]:
    """Return the messages of a row under what the row itself says about all of them.

    Args:
        messages: As they stand in the row.
        row: Its ``system``, ``system_prompt``, ``tools``, ``functions``, ``train`` and
            ``weight`` are heard.
        place: The row, for errors.

    Raises:
        DataError: If nothing is left, or there are two system messages to begin with.
    """
    if not messages:
        raise DataError(f"{place}: an empty conversation; expected at least one message")
    if ROW.isdisjoint(row):
        return tuple(messages)
    opens = messages[0] if messages[0].role == "system" else None
    told = [read_text(row, key, place) for key in _SYSTEMS if row.get(key) is not None]
    said = {text for text in told if text.strip()} - {opens.text if opens else ""}
    if len(said) > (0 if opens else 1):
        found = [key for key in _SYSTEMS if row.get(key) is not None]
        also = " and a system message" if opens else ""
        raise DataError(
            f"{place}: {' and '.join(map(repr, found))}{also} that differ; keep one of them"
        )
    if said:
        messages = [say("system", said.pop()), *messages]
    tools = {text for key in _TOOLS if (text := _spell_tools(row.get(key), place))}
    if len(tools) > 1:
        raise DataError(f"{place}: {' and '.join(map(repr, _TOOLS))} differ; keep one of them")
    if tools:
        messages = _list_tools(messages, tools.pop())
    train = read_train(row, place)
    if train is not None:
        messages = [_by_default(message, train) for message in messages]
    return tuple(messages)


def _list_tools(messages: list[Message], tools: str) -> list[Message]:
    """Return the messages with the tools in the system's, unless it names them already."""
    listed = f"Tools:\n{tools}"
    if messages[0].role != "system":
        return [say("system", listed), *messages]
    first, *rest = messages
    if "".join(tools.split()) in "".join(first.text.split()):
        return messages
    parts = [*first.parts, Part("text", f"\n\n{listed}")]
    return [to_message("system", parts, first.train), *rest]


def is_empty_system(turn: Any) -> bool:
    """Whether a message is of the system and blank, which is how files say there is none."""
    named = isinstance(turn, dict) and first_of(turn, ("role", "from")) == "system"
    content = first_of(turn, ("content", "value")) if named else None
    return isinstance(content, str) and not content.strip()


def read_chat(records: Iterable[Record], tally: Tally, limits: Limits) -> Iterator[Conversation]:
    """Yield conversations written one message a line, with an empty line between them.

    A conversation in which a message says nothing is dropped whole and counted.

    Raises:
        DataError: For a line that is no message, or a conversation that does not end.
    """
    for group in _between_blanks(records, limits):
        place = group[0].place
        try:
            messages = read_list([(value, place) for value, place, _ in group], tally)
        except Dropped as dropped:
            tally.dropped[str(dropped)] += 1
            continue
        yield Conversation(frame(messages, {}, place), place.origin)


def _between_blanks(records: Iterable[Record], limits: Limits) -> Iterator[list[Record]]:
    group: list[Record] = []
    n_bytes = 0
    for record in records:
        if record.value is not BLANK:
            group.append(record)
            n_bytes += record.n_bytes
            if n_bytes > limits.row_bytes:
                raise DataError(
                    f"{record.place}: the conversation that began at {group[0].place} has more than"
                    f" {limits.row_bytes:,} bytes; part conversations by an empty line"
                )
        elif group:
            yield group
            group, n_bytes = [], 0
    if group:
        yield group


def _by_default(message: Message, train: Train) -> Message:
    if message.role != "assistant" or message.train is not None:
        return message
    return Message(message.role, message.parts, train)


def _spell_tools(tools: Any, place: Place) -> str:
    """Return tools as JSON; text that is none, such as a list in prose, as it stands."""
    if not tools:
        return ""
    if isinstance(tools, str) and not tools.lstrip().startswith(("[", "{", "null")):
        return tools if tools.strip() else ""
    named = Within(place, "tools")
    value = strict_json.parse_text(tools, named) if isinstance(tools, str) else tools
    return strict_json.spell(value, named) if value else ""


def read_tree(row: Any, place: Place, tally: Tally) -> Iterator[Conversation]:
    """Yield every path from the root to a leaf, with each message supervised at most once.

    A message that an earlier path of the tree has shown stands in later ones as context
    (``train`` is False). Replies that were deleted, and those that say nothing, are left out
    with all that follows them, and counted.

    Args:
        row: The root message, or an object whose ``prompt`` it is, with ``system``, ``tools``
            and ``train`` of all paths; a message's ``replies`` are its children.
        place: The row, for errors.
        tally: Counts what was left out.

    Raises:
        DataError: If it is no tree of messages.
    """
    fields = fields_of(row, place)
    root, outer = fields, dict[str, Any]()
    if isinstance(fields.get("prompt"), dict):
        tally.check_fields(fields, ROW | IDS | {"prompt"}, place)
        root, outer = fields["prompt"], _with_system_text(fields, place, tally)
    if not isinstance(root.get("replies"), list):
        raise DataError(
            f"{place}: a message without replies; expected the root of a tree, with its replies as"
            " a list, or an object whose prompt it is; name the right --format"
        )
    seen: set[int] = set()
    for path in _paths(root, [], place, tally):
        messages = [
            replace(message, train=False) if node in seen else message for node, message in path
        ]
        framed = frame(messages, outer, place)
        if seen and len(framed) > len(path):
            framed = (replace(framed[0], train=False), *framed[1:])
        seen.update(node for node, _ in path)
        yield Conversation(framed, place.origin)
    if not seen:
        raise Dropped("a tree whose root was deleted or has no text")


def _paths(
    node: Any, before: list[tuple[int, Message]], place: Place, tally: Tally
) -> Iterator[list[tuple[int, Message]]]:
    """Yield paths of (identity of the node, its message)."""
    fields = fields_of(node, place)
    replies = fields.get("replies") or []
    if not isinstance(replies, list):
        raise DataError(f"{place}: replies are {shown(replies)}; expected a list of messages")
    deleted = verdict_of(fields.get("deleted"))
    read = _NODE if deleted is None else _NODE | {"deleted"}
    try:
        path = [*before, (id(node), read_message(fields, place, tally, read))]
    except Dropped as dropped:
        tally.notes[f"reply left out: {dropped}"] += 1
        return
    if deleted:
        tally.notes["reply left out: deleted"] += 1
        return
    if path[-1][1].role == "tool" and has_failed(fields):
        tally.notes[LOST_ERROR] += 1
    is_leaf = True
    for reply in replies:
        for found in _paths(reply, path, place, tally):
            is_leaf = False
            yield found
    if is_leaf:
        yield path
