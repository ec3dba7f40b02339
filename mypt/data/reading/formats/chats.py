"""Conversations as lists of messages (messages, sharegpt, chat) or trees of them (OASST)."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from mypt.data.conversations import Conversation, Message, Part, say
from mypt.data.reading import strict_json
from mypt.data.reading.formats.message import (
    fields_of,
    first_of,
    read_message,
    read_text,
    read_train,
)
from mypt.data.reading.raw import Limits
from mypt.data.reading.records import BLANK, Dropped, Place, Record, Tally
from mypt.errors import DataError
from mypt.text import names, shown


def read_messages(row: Any, place: Place, tally: Tally) -> Iterator[Conversation]:
    """Yield the conversation of a row that holds a list of messages.

    The list is the row's ``messages`` or ``conversations``, or the row itself. Its ``system``
    and ``tools`` become the system message; its ``train`` or ``weight`` holds for every turn
    of the assistant that has none of its own.

    Raises:
        DataError: If there is no message, or one that cannot be read.
        Dropped: If one of them says nothing.
    """
    fields = {"messages": row} if isinstance(row, list) else fields_of(row, place)
    turns = first_of(fields, ("messages", "conversations"))
    if isinstance(turns, str):
        turns = strict_json.parse_text(turns, place)
    if not isinstance(turns, list):
        found = f"the fields {names(fields)}" if turns is None else shown(turns)
        raise DataError(f"{place}: found {found}; expected a list 'messages' or 'conversations'")
    if not turns:
        raise DataError(f"{place}: an empty conversation; expected at least one message")
    messages = list(_messages([Record(turn, place, 0) for turn in turns], tally))
    yield Conversation(frame(messages, fields, place), place.origin)


def frame(messages: list[Message], row: dict[str, Any], place: Place) -> tuple[Message, ...]:
    """Return the messages of a row under what the row itself says about all of them.

    Args:
        messages: As they stand in the row.
        row: Its ``system``, ``tools``, ``train`` and ``weight`` are heard.
        place: The row, for errors.

    Raises:
        DataError: If nothing is left, or there are two system messages to begin with.
    """
    system = read_text(row, "system", place) if row.get("system") is not None else ""
    tools = _spell_tools(row.get("tools"), place)
    if system.strip():
        if messages and messages[0].role == "system":
            raise DataError(f"{place}: a field 'system' and a system message; keep one of them")
        messages = [say("system", system), *messages]
    if tools:
        listed = f"Tools:\n{tools}"
        if messages and messages[0].role == "system":
            first, *rest = messages
            text = f"{first.text}\n\n{listed}"
            messages = [Message("system", (Part("text", text),), first.train), *rest]
        else:
            messages = [say("system", listed), *messages]
    train = read_train(row, place)
    if train is not None:
        messages = [_by_default(message, train) for message in messages]
    if not messages:
        raise DataError(f"{place}: an empty conversation; expected at least one message")
    return tuple(messages)


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
            messages = list(_messages(group, tally))
        except Dropped as dropped:
            tally.dropped[str(dropped)] += 1
            continue
        yield Conversation(frame(messages, {}, place), place.origin)


def _messages(group: Iterable[Record], tally: Tally) -> Iterator[Message]:
    for record in group:
        if is_empty_system(record.value):
            tally.notes["empty system message left out"] += 1
        else:
            yield read_message(record.value, record.place)


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


def _by_default(message: Message, train: bool) -> Message:
    if message.role != "assistant" or message.train is not None:
        return message
    return Message(message.role, message.parts, train)


def _spell_tools(tools: Any, place: Place) -> str:
    """Return tools as JSON; text that is none, such as a list in prose, as it stands."""
    if isinstance(tools, str) and not tools.lstrip().startswith(("[", "{", "null")):
        return tools if tools.strip() else ""
    named = f"{place}: tools"
    value = strict_json.parse_text(tools, named) if isinstance(tools, str) else tools
    return strict_json.spell(value, named) if value else ""


def read_tree(row: Any, place: Place, tally: Tally) -> Iterator[Conversation]:
    """Yield every path from the root to a leaf, with each message supervised at most once.

    A message that an earlier path of the tree has shown stands in later ones as context
    (``train`` is False). Replies that were deleted, and those that say nothing, are left out
    with all that follows them, and counted.

    Args:
        row: The root message, or an object whose ``prompt`` it is; a message's ``replies``
            are its children.
        place: The row, for errors.
        tally: Counts what was left out.

    Raises:
        DataError: If it is no tree of messages.
    """
    fields = fields_of(row, place)
    root = fields["prompt"] if isinstance(fields.get("prompt"), dict) else fields
    if not isinstance(root.get("replies"), list):
        raise DataError(
            f"{place}: a message without replies; expected the root of a tree, with its replies as"
            " a list, or an object whose prompt it is; name the right --format"
        )
    seen: set[int] = set()
    for path in _paths(root, [], place, tally):
        messages = tuple(
            replace(message, train=False) if node in seen else message for node, message in path
        )
        seen.update(node for node, _ in path)
        yield Conversation(messages, place.origin)
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
    try:
        path = [*before, (id(node), read_message(fields, place))]
    except Dropped as dropped:
        tally.notes[f"reply left out: {dropped}"] += 1
        return
    if fields.get("deleted") is True:
        tally.notes["reply left out: deleted"] += 1
        return
    is_leaf = True
    for reply in replies:
        for found in _paths(reply, path, place, tally):
            is_leaf = False
            yield found
    if is_leaf:
        yield path
