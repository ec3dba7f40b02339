"""Trees of messages with branching replies, as OASST writes them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mypt.data.conversations import Conversation, Message
from mypt.data.formats.message import fields_of, read_message
from mypt.data.places import Place
from mypt.data.records import Dropped, Tally
from mypt.errors import DataError
from mypt.text import shown


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
