"""Rows of single messages: conversations parted by an empty line, or by a column that names them.

Rows that name their conversation (or, as OASST's flat export, the message that they answer) are
brought together while they are read: about ``WINDOW_BYTES`` of unfinished conversations are held,
so rows of one conversation may lie apart within that; one that comes back later is refused.
"""

import hashlib
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import chain, islice
from operator import itemgetter
from typing import Any, Final, NamedTuple

import numpy as np

from mypt.data.conversations import Conversation
from mypt.data.reading.formats.chats import read_chat, read_tree
from mypt.data.reading.formats.message import MESSAGE, RESULT, fields_of
from mypt.data.reading.raw import Limits
from mypt.data.reading.records import BLANK, Dropped, Place, Record, Tally, first_of
from mypt.errors import DataError
from mypt.text import names, shown

WINDOW_BYTES: Final = 16 << 20
"""How much of unfinished conversations is held."""
GROUPS: Final = (
    "conversation_id", "conversation", "conv_id", "convo_id", "dialogue_id", "dialog_id",
    "chat_id", "session_id", "session", "message_tree_id", "tree_id", "thread_id", "thread",
    "thread_ts", "conversation_hash",
)  # fmt: skip
"""Columns that say which conversation a message belongs to; the first that is there counts."""
_PARENTS: Final = ("parent_id", "parent_message_id", "parent", "reply_to")
_IDS: Final = ("message_id", "msg_id", "id", "uuid")
_ORDERS: Final = (
    "turn_index", "turn_idx", "turn_id", "turn_number", "turn", "message_index", "message_number",
    "msg_index", "position", "sequence", "seq", "order", "step", "index", "idx",
)  # fmt: skip
_TIMES: Final = (
    "created_at", "create_time", "created_date", "created", "timestamp", "time", "ts", "date",
)  # fmt: skip
_NAMES: Final = frozenset({"id", "ids", "_id", "uuid", "row_id", "hash", "key", "prompt_id"})
"""Columns that name something: a message or, where two roles share a name, a conversation."""
_DEEPEST: Final = 200
_ISO: Final = re.compile(r"\d{4}-\d\d-\d\d")
_FEW: Final = 10_000
_BETWEEN_WORDS: Final = str.maketrans("", "", "_- ")


class _Ended:
    """Names of conversations that were given away, in about eight bytes each.

    Two of a hundred million names have one digest with a chance of 1 in 3,000.
    """

    def __init__(self) -> None:
        self._new: set[int] = set()
        self._sorted = np.empty(0, np.uint64)

    def add(self, name: str) -> None:
        self._new.add(_digest(name))
        if len(self._new) > max(_FEW, len(self._sorted) // 8):
            found = np.fromiter(self._new, np.uint64, len(self._new))
            self._sorted = np.union1d(self._sorted, found)
            self._new = set()

    def __contains__(self, name: str) -> bool:
        digest = _digest(name)
        at = int(np.searchsorted(self._sorted, np.uint64(digest)))
        return digest in self._new or bool(
            at < len(self._sorted) and self._sorted[at] == np.uint64(digest)
        )


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())


class _Links(NamedTuple):
    """The columns of a file that link its messages; empty where there is none."""

    group: str
    parent: str
    own: str
    orders: tuple[str, ...]
    """By which the messages of a conversation may be put in order, best first."""


def links_of(row: Any, group_by: str = "") -> _Links | None:
    """Return the columns by which a row of one message is linked to others; None if by none."""
    if not isinstance(row, dict) or (row.keys() <= MESSAGE and not group_by):
        return None
    keys = {
        _squeezed(key): key
        for key, value in row.items()
        if isinstance(value, str | int | float | None)
    }
    named = {key: name for key, name in keys.items() if row[name] not in (None, "")}
    group = group_by or next(_found(GROUPS, named), "")
    parent, own = (next(_found(known, keys), "") for known in (_PARENTS, _IDS))
    if not parent or not own:
        parent = own = ""
    if not group and not parent:
        return None
    return _Links(group, parent, own, tuple(_found((*_ORDERS, *_TIMES), keys)))


def _squeezed(name: str) -> str:
    """Return a column's name as ``conversation_id`` and ``conversationId`` have it alike."""
    return name.translate(_BETWEEN_WORDS).lower()


def _found(known: Iterable[str], keys: Mapping[str, str]) -> Iterator[str]:
    return (keys[name] for name in map(_squeezed, known) if name in keys)


def read_flat(
    records: Iterable[Record],
    tally: Tally,
    limits: Limits,
    group_by: str = "",
    table: bool = False,
    part: bool = False,
) -> Iterator[Conversation]:
    """Yield the conversations of rows that hold a message each.

    Args:
        records: The rows in order; an empty line parts conversations where no column does.
        tally: Counts what is left out, and what brought the messages together.
        limits: How long a conversation may be.
        group_by: The column that names the conversation; empty: a known one, if there is any.
        table: Whether the rows come from a table, in which nothing else could part them.
        part: Whether they are a part of a file, cut at an empty line.

    Raises:
        DataError: If nothing parts the rows of a table, or only a column that nothing is known
            of seems to part lines, if a conversation comes back too late, if a link leads
            nowhere, or for a row that is no message.
    """
    rows = iter(records)
    leading = next((record for record in rows if record.value is not BLANK), None)
    if leading is None:
        return
    rows = chain([leading], rows)
    links = links_of(leading.value, group_by)
    if links is None:
        rows = _unlinked(rows)
        rows = _parted(rows, limits) if table else rows if part else _alone(rows)
        yield from read_chat(rows, tally, limits)
        return
    for group in _groups(rows, links, limits):
        by = links.group or links.parent
        tally.notes[f"conversation brought together by {by!r}"] += 1
        yield from _read_group(group, links, tally, limits)


def _unlinked(rows: Iterable[Record]) -> Iterator[Record]:
    """Yield rows of which none may name its conversation, since the first did not."""
    for record in rows:
        links = record.value is not BLANK and links_of(record.value)
        if links:
            raise DataError(
                f"{record.place}: a message with {links.group or links.parent!r}, which the first"
                " one has not; expected its conversation in every row or in none; fill the column,"
                " or remove it"
            )
        yield record


def _parted(rows: Iterable[Record], limits: Limits) -> Iterator[Record]:
    """Yield the rows of a table once an empty line was met."""
    held: list[Record] = []
    n_bytes = 0
    rows = iter(rows)
    for record in rows:
        held.append(record)
        n_bytes += record.n_bytes
        if record.value is BLANK:
            yield from chain(held, rows)
            return
        if n_bytes > limits.row_bytes:
            break
    raise DataError(
        f"{held[0].place}: a table of single messages, in which nothing says where a conversation"
        f" ends; found {names(held[0].value)}; expected a column such as {', '.join(GROUPS[:1])}"
        " that names it; say which one does by --group_by COLUMN, or write each conversation as"
        " one row"
    )


def _alone(rows: Iterator[Record]) -> Iterator[Record]:
    """Yield rows that are one conversation, unless an empty line parts them.

    Raises:
        DataError: If they end, and a column that nothing is known of has several values, most of
            which are held by several roles, as the names of conversations would be.
    """
    said: dict[str, dict[str | int, set[str]]] | None = None
    for record in rows:
        yield record
        if record.value is BLANK:
            yield from rows
            return
        fields = record.value if isinstance(record.value, dict) else {}
        if len(fields) == 2 or said == {}:
            said = {}
            continue
        if said is None:
            said = {key: {} for key in fields if key not in RESULT or key.lower() in _NAMES}
        for key in list(said):
            value = fields.get(key)
            if isinstance(value, str | int):
                said[key].setdefault(value, set()).add(str(first_of(fields, ("role", "from"))))
            else:
                del said[key]
    for key, values in (said or {}).items():
        n_shared = sum(len(roles) > 1 for roles in values.values())
        if len(values) > 1 and 2 * n_shared > len(values):
            raise DataError(
                f"{record.place}: single messages whose {key!r} is {', then '.join(_some(values))},"
                f" and nothing says where a conversation ends; say --group_by {shlex.quote(key)}"
                ' if it names it, or write those of one conversation as a row, {"messages": [...]}'
            )


def _some(values: Iterable[Any]) -> list[str]:
    return [shown(value) for value in islice(values, 2)]


def _groups(rows: Iterable[Record], links: _Links, limits: Limits) -> Iterator[list[Record]]:
    """Yield the rows of each conversation, the one that grew longest ago first."""
    held: dict[str, tuple[list[Record], int]] = {}
    ended, roots = _Ended(), dict[str, str]()
    n_held = 0
    for record in rows:
        if record.value is BLANK:
            continue
        key = _group_key(record, links, roots)
        if key in ended:
            raise DataError(
                f"{record.place}: the conversation {shown(key)} comes back after more than"
                f" {WINDOW_BYTES:,} bytes of others; expected its messages nearer to each other;"
                f" sort the file by {links.group or links.parent}"
            )
        group, n_bytes = held.pop(key, ([], 0))
        group.append(record)
        held[key] = group, n_bytes + record.n_bytes
        n_held += record.n_bytes
        if n_bytes + record.n_bytes > limits.row_bytes:
            raise DataError(
                f"{record.place}: a conversation {shown(key)} of more than"
                f" {limits.row_bytes:,} bytes; expected a column that parts shorter ones"
            )
        while n_held > WINDOW_BYTES and len(held) > 1:
            oldest = next(iter(held))
            group, n_bytes = held.pop(oldest)
            n_held -= n_bytes
            if links.group:
                ended.add(oldest)
            else:  # whoever answers one of these later finds no root
                for name in (str(one.value[links.own]) for one in group):
                    if roots.get(name) == oldest:
                        del roots[name]
            yield group
    yield from (group for group, _ in held.values())


def _group_key(record: Record, links: _Links, roots: dict[str, str]) -> str:
    """Return the name of a message's conversation; without one, its root's own name."""
    fields = fields_of(record.value, record.place)
    if links.group:
        value = fields.get(links.group)
        if value in (None, "") or not isinstance(value, str | int | float):
            raise DataError(
                f"{record.place}: {links.group} is {shown(value)}; expected the name of its"
                " conversation, as in the rows before"
            )
        return str(value)
    own, parent = _own(record, links), fields.get(links.parent)
    root = own if parent in (None, "") else roots.get(str(parent))
    if root is None:
        raise DataError(
            f"{record.place}: {links.parent} {shown(parent)} is no {links.own} of a row before;"
            f" expected a message behind the one that it answers, less than {WINDOW_BYTES:,} bytes"
            " of others between; sort the file so, or name a column of conversations by --group_by"
            " COLUMN"
        )
    roots[own] = root
    return root


def _own(record: Record, links: _Links) -> str:
    """Return a message's own name."""
    own = fields_of(record.value, record.place).get(links.own)
    if own is None:
        raise DataError(f"{record.place}: a message without {links.own}; expected it in every row")
    return str(own)


def _read_group(
    group: list[Record], links: _Links, tally: Tally, limits: Limits
) -> Iterator[Conversation]:
    if links.parent and any(record.value.get(links.parent) not in (None, "") for record in group):
        for place, root in _trees(group, links):
            try:
                yield from read_tree(root, place, tally)
            except Dropped as dropped:
                tally.dropped[str(dropped)] += 1
        return
    order, ordered = _in_order(group, links)
    if [record.place for record in ordered] != [record.place for record in group]:
        tally.notes[f"conversation put in order by {order!r}"] += 1
    if not order and links.orders and len(group) > 1:
        tally.notes[f"conversation left as it stands: {links.orders[0]!r} tells no order"] += 1
    read = {links.group, links.parent, links.own, order}
    yield from read_chat([_without(record, read) for record in ordered], tally, limits)


def _without(record: Record, read: set[str]) -> Record:
    fields = {key: value for key, value in record.value.items() if key not in read}
    return record._replace(value=fields)


def _in_order(group: list[Record], links: _Links) -> tuple[str, list[Record]]:
    """Return the first column that tells the order, and the rows by it; else as they stand."""
    for key in links.orders:
        ranks = [_rank(record.value.get(key)) for record in group]
        known = [rank for rank in ranks if rank is not None]
        if len(known) == len(group) and len({type(rank[0]) for rank in known}) == 1:
            by_rank = sorted(zip(known, group, strict=True), key=itemgetter(0))
            return key, [record for _, record in by_rank]
    return "", group


def _rank(value: Any) -> tuple[float | str | datetime] | None:
    """Return what a number or a date sorts by; None for what is neither."""
    if isinstance(value, str) and _ISO.match(value):
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            return (value,)
        return (time if time.tzinfo else time.replace(tzinfo=UTC),)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return (number,) if math.isfinite(number) else None


def _trees(group: list[Record], links: _Links) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield the root messages of a conversation, every message with those that answer it."""
    nodes: dict[str, dict[str, Any]] = {}
    places: dict[str, Place] = {}
    for record in group:
        name = _own(record, links)
        if name in nodes:
            raise DataError(f"{record.place}: {links.own} {shown(name)} stands twice; keep one row")
        if record.value.get("replies"):
            raise DataError(
                f"{record.place}: a message with replies in it and {links.parent!r} beside;"
                " expected one of them to tell the tree; remove the other"
            )
        fields = _without(record, {links.group, links.parent, links.own}).value
        nodes[name], places[name] = fields | {"replies": []}, record.place
    children: dict[str, list[str]] = {}
    roots = []
    for record in group:
        name, parent = str(record.value[links.own]), record.value.get(links.parent)
        if parent in (None, ""):
            roots.append(name)
        elif str(parent) not in nodes:
            raise DataError(
                f"{record.place}: {links.parent} {shown(parent)} is no {links.own} of its"
                " conversation; expected the message that it answers; add it, or remove the row"
            )
        else:
            children.setdefault(str(parent), []).append(name)
            nodes[str(parent)]["replies"].append(nodes[name])
    reached, level = 0, roots
    for _ in range(_DEEPEST):
        reached += len(level)
        level = [child for name in level for child in children.get(name, ())]
    if level or reached < len(group):
        what = f"more than {_DEEPEST} answers deep" if level else "in a circle"
        raise DataError(
            f"{group[0].place}: a conversation whose {links.parent} leads {what}; expected a tree;"
            " write it as a list of messages"
        )
    yield from ((places[root], nodes[root]) for root in roots)
