"""Talks between people, as Discord and Telegram write them out, and what all such talks share.

No role is named there: who of them is the assistant is for the user to say, and everybody else
is the user. What one person says in a row is one turn.
"""

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any, Final, NamedTuple

from mypt.config import Format, Reading
from mypt.data.conversations import Conversation, Message, Part, Train
from mypt.data.reading.formats.assistants import fields_named, listed
from mypt.data.reading.formats.message import fields_of
from mypt.data.reading.raw import Limits
from mypt.data.reading.records import Dropped, Place, Tally
from mypt.errors import DataError
from mypt.text import names, shown


class Said(NamedTuple):
    """What one person said at a time."""

    speaker: str
    """What tells this one from all others."""
    names: tuple[str, ...]
    """All that the speaker is called; by the first people know them."""
    text: str
    place: Place
    order: float = 0.0
    """When; equal ones stay as they stand."""
    thread: float = 0.0
    """When the message was said that this one answers apart from the others; 0: none."""
    train: Train = None
    """False where it was said in another conversation already, and is context here."""


class Talk:
    """What is said in one conversation, as far as it is read."""

    def __init__(self, tally: Tally, limits: Limits) -> None:
        """Count speakers, and what is left out, in ``tally``."""
        self.said: list[Said] = []
        self.tally = tally
        self._most = self._left = limits.row_bytes

    def add(self, one: Said) -> None:
        """Add what was said next.

        Raises:
            DataError: If the conversation is longer than the limits allow.
        """
        self._left -= len(one.text)
        if self._left < 0:
            raise DataError(
                f"{one.place}: a conversation of more than {self._most:,} characters; expected at"
                " most as many; export a shorter range of dates at a time"
            )
        self.tally.speakers[one.names[0]] += 1
        self.said.append(one)


class _Program(NamedTuple):
    """How a program spells a message in JSON."""

    kind: str
    """Field that says what sort of message it is."""
    spoken: frozenset[str]
    """Its values for what somebody says; all others are joins, leaves and the like."""
    speaker: tuple[str, ...]
    """Fields that tell speakers apart, the first that is there; ``a.b`` is b inside a."""
    called: tuple[str, ...]
    """Fields of names."""
    text: str
    read: frozenset[str]
    """Fields that are read, or say nothing a model could learn."""


_PROGRAMS: Final[dict[Format, _Program]] = {
    "slack": _Program(
        "subtype",
        frozenset({"", "bot_message", "thread_broadcast", "file_share", "me_message"}),
        ("user", "bot_id", "username"),
        ("user_profile.display_name", "user_profile.name", "user_profile.real_name", "username"),
        "text",
        fields_named(
            "type subtype user bot_id username text thread_ts user_profile bot_profile blocks team"
            " user_team source_team client_msg_id app_id reactions edited reply_count"
            " reply_users_count latest_reply reply_users replies parent_user_id subscribed"
            " last_read is_locked display_as_bot icons upload root"
        ),
    ),
    "discord": _Program(
        "type",
        frozenset({"Default", "Reply", "ChatInputCommand", "ContextMenuCommand", "20", "23"}),
        ("author.id", "author.name"),
        ("author.name", "author.nickname"),
        "content",
        fields_named(
            "type content author timestampEdited callEndedTimestamp isPinned reactions mentions"
            " reference inlineEmojis interaction"
        ),
    ),
    "telegram": _Program(
        "type",
        frozenset({"message"}),
        ("from_id", "from"),
        ("from",),
        "text",
        fields_named(
            "type from from_id text text_entities date_unixtime edited edited_unixtime reactions"
            " reply_to_message_id reply_to_peer_id width height mime_type file_size photo_file_size"
            " duration_seconds thumbnail thumbnail_file_size inline_bot_buttons"
        ),
    ),
}


_STRETCH: Final = fields_named("type text user_id document_id collapsed")
_BESIDE: Final = fields_named("name type guild channel dateRange exportedAt messageCount")
"""Fields of a channel or chat that have no meaning for a model."""
FORMATS: Final[frozenset[Format]] = frozenset({*_PROGRAMS, "whatsapp"})
"""Formats in which nobody is named the assistant."""


def identify(fields: dict[str, Any]) -> Format | None:
    """Return which program wrote a row by its fields; None if it is none of these."""
    if fields.get("type") == "message" and "ts" in fields:
        return "slack"
    if {"guild", "channel"} <= fields.keys():
        return "discord"
    chats, turns = fields.get("chats"), fields.get("messages")
    if isinstance(chats, dict) and isinstance(chats.get("list"), list):
        return "telegram"
    first = turns[0] if isinstance(turns, list) and turns else {}
    if not {"type", "id", "messages"} <= fields.keys() or not isinstance(first, dict):
        return None
    empty = turns == [] and "name" in fields
    return "telegram" if empty or first.get("type") in ("message", "service") else None


def read_talk(
    row: Any, place: Place, tally: Tally, how: Reading, limits: Limits
) -> Iterator[Conversation]:
    """Yield the conversation of a Discord channel or Telegram chat, or of all chats of an account.

    Raises:
        DataError: If there is no list of messages, one is of an unknown form, the conversation
            is longer than the limits allow, or two speakers are called as the assistant is.
    """
    fields = fields_of(row, place)
    accounts = {key: fields[key] for key in ("chats", "left_chats") if key in fields}
    chats = [fields]
    if isinstance(accounts.get("chats"), dict):
        tally.check_fields(fields, accounts.keys() | {"about"}, place, "an account")
        chats = [chat for one in accounts.values() for chat in _chats_of(one, place, tally)]
    for chat in chats:
        tally.check_fields(chat, {"messages"}, place, "a chat", _BESIDE)
        talk = Talk(tally, limits)
        for turn in listed(chat, "messages", place):
            add_message(talk, turn, how.format, place)
        if how.format == "discord":  # some are written newest first; ids count up with time
            talk.said.sort(key=lambda one: one.order)
        yield from converse(talk.said, place, tally, how)


def _chats_of(account: Any, place: Place, tally: Tally) -> list[dict[str, Any]]:
    fields = fields_of(account, place)
    tally.check_fields(fields, {"list", "about"}, place, "an account")
    return [fields_of(chat, place) for chat in listed(fields, "list", place)]


def add_message(
    talk: Talk,
    message: Any,
    program: Format,
    place: Place,
    users: dict[str, tuple[str, ...]] | None = None,
) -> None:
    """Add what a message says to a talk, if somebody says something.

    Args:
        talk: Where it was said.
        message: As the program writes it.
        program: Slack, Discord or Telegram, as their formats are named.
        place: The message, for errors and lineage.
        users: Names of people by their id, where a file beside says them.

    Raises:
        DataError: If it is of an unknown form.
    """
    fields, spelled = fields_of(message, place), _PROGRAMS[program]
    kind = str(fields.get(spelled.kind) or "")
    if program == "slack" and fields.get("type") != "message":
        kind = str(fields.get("type") or "of no type")
    if kind not in spelled.spoken:
        talk.tally.notes[f"service message {shown(fields.get('action') or kind)} left out"] += 1
        return
    talk.tally.check_fields(fields, spelled.read, place, "a message")
    text = _plain(fields.get(spelled.text), place, talk.tally)
    if not text.strip():
        talk.tally.notes["message without text left out"] += 1
        return
    found = [str(at) for path in spelled.speaker if (at := field_at(fields, path))]
    if not found:
        raise DataError(
            f"{place}: a message of nobody; found the fields {names(fields)}; expected"
            f" {spelled.speaker[0]}; remove the message"
        )
    called = [*(users or {}).get(found[0], ()), *(field_at(fields, at) for at in spelled.called)]
    given = dict.fromkeys(str(name) for name in [*called, found[0]] if name)
    order = _number(fields.get("ts", fields.get("id")), place)
    thread = _number(fields.get("thread_ts"), place)
    talk.add(Said(found[0], tuple(given), text, place, order, thread))


def _plain(text: Any, place: Place, tally: Tally) -> str:
    """Return a text that may be a list of stretches in bold and the like."""
    stretches = text if isinstance(text, list) else ["" if text is None else text]
    found: list[str] = []
    for one in stretches:
        value = one
        if isinstance(one, dict):
            tally.check_fields(one, _STRETCH, place, "a stretch of text")
            value = one.get("text")
        if not isinstance(value, str):
            raise DataError(f"{place}: the text of a message is {shown(value)}; expected a string")
        found.append(value)
    return "".join(found)


def field_at(fields: dict[str, Any], path: str) -> Any:
    """Return what a path of dots leads to, ``a.b`` being b inside a; None if it leads nowhere."""
    value: Any = fields
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _number(value: Any, place: Place) -> float:
    try:
        number = float(value or 0)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{place}: the time or id of a message is {shown(value)}; expected a number"
        )
    return number


def converse(said: list[Said], place: Place, tally: Tally, how: Reading) -> Iterator[Conversation]:
    """Yield what was said as turns of the user and the assistant, or count why it is dropped.

    Args:
        said: In order.
        place: Of the conversation, for errors.
        tally: Counts what was dropped or joined.
        how: Says who is the assistant.

    Raises:
        DataError: If two speakers are called as the assistant is.
    """
    try:
        assistant = _assistant({one.speaker: one.names for one in said}, place, how)
    except Dropped as dropped:
        tally.dropped[str(dropped)] += 1
        return
    messages: list[Message] = []
    for (speaker, train), turn in groupby(said, lambda one: (one.speaker, one.train)):
        texts = [one.text for one in turn]
        if len(texts) > 1:
            tally.notes["message joined to the one before"] += len(texts) - 1
        part = Part("text", "\n".join(texts))
        messages.append(Message("assistant" if speaker == assistant else "user", (part,), train))
    yield Conversation(tuple(messages), said[0].place.origin)


def _assistant(speakers: dict[str, tuple[str, ...]], place: Place, how: Reading) -> str:
    """Return which of the speakers is the assistant."""
    if not speakers:
        raise Dropped("a conversation without text")
    if not how.assistant:
        raise Dropped("a conversation of people, of whom none is said to be the assistant")
    meant = [speaker for speaker, called in speakers.items() if how.assistant in called]
    if len(meant) > 1:
        raise DataError(
            f"{place}: {len(meant)} speakers are called {shown(how.assistant)}; expected one; say"
            f" which by its id, such as --assistant {meant[0]}"
        )
    if not meant:
        raise Dropped(f"a conversation in which {shown(how.assistant)} says nothing")
    if len(speakers) == 1:
        raise Dropped(f"a conversation in which only {shown(how.assistant)} speaks")
    return meant[0]
