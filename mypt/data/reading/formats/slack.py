"""An export of Slack's: a folder a channel, a file a day, the people's names in a file above."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from mypt.config import Reading
from mypt.data.conversations import Conversation
from mypt.data.reading import strict_json
from mypt.data.reading.formats.message import fields_of
from mypt.data.reading.formats.people import Said, Talk, add_message, converse, field_at, identify
from mypt.data.reading.json_items import items
from mypt.data.reading.raw import RawFile
from mypt.data.reading.records import Place, Tally

_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d\.json")
_NAMES: Final = "users.json"
_LINK: Final = re.compile(r"<([^<>|]+)(?:\|([^<>]*))?>")
_ESCAPE: Final = re.compile("&(?:lt|gt|amp);")
_ESCAPED: Final = {"&lt;": "<", "&gt;": ">", "&amp;": "&"}
_Users = dict[str, tuple[str, ...]]


def read_slack(raws: Sequence[RawFile], how: Reading, tally: Tally) -> Iterator[Conversation]:
    """Yield the conversation of a channel from the files of its days, then those of its threads.

    A thread is a conversation of its own, which begins with the message that it answers, as
    context. Names come from ``users.json`` in the folder above.

    Args:
        raws: The files of one folder.
        how: Says who is the assistant.
        tally: Counts what was left out or joined.

    Raises:
        DataError: If a message is of an unknown form, the channel is longer than the limits
            allow, or two speakers are called as the assistant is.
    """
    days = [raw for raw in raws if is_day(raw.path)]
    aside = sum(raw.path.name != _NAMES for raw in raws) - len(days)
    if aside:
        tally.notes["file of a Slack export without messages left aside"] += aside
    if not days:
        return
    users, talk = _users(days[0]), Talk(tally, days[0].limits)
    for raw in days:
        for message, place in _values(raw):
            add_message(talk, message, "slack", place, users)
    said = [one._replace(text=_as_seen(one.text, users)) for one in talk.said]
    said.sort(key=lambda one: one.order)
    for part in _threads(said):
        yield from converse(part, (part or said)[0].place if said else days[0].place(1), tally, how)


def is_day(path: Path) -> bool:
    """Return whether a file is named as a day of a channel is."""
    return _DAY.fullmatch(path.name) is not None


def is_export(raws: Sequence[RawFile]) -> bool:
    """Return whether the first message in the files that are named as days is one of Slack's.

    Raises:
        DataError: If it cannot be read.
    """
    for raw in raws:
        first = next(items(raw), None) if is_day(raw.path) else None
        if first is not None:
            found = None if first.keyed else next(_values(raw))[0]
            return isinstance(found, dict) and identify(found) == "slack"
    return False


def names_beside(paths: Sequence[Path]) -> list[Path]:
    """Return the files above these days with people's names, as far as they are not among them."""
    beside = {path.parent.parent / _NAMES for path in paths if is_day(path)} - set(paths)
    return sorted(path for path in beside if path.is_file())


def _values(raw: RawFile) -> Iterator[tuple[Any, Place]]:
    for item in items(raw):
        place = raw.place(item.number, "item")
        yield strict_json.parse(item.data, item.offset, place, raw.limits), place


def _users(day: RawFile) -> _Users:
    path = day.path.parent.parent / _NAMES
    if not path.is_file():
        return {}
    found: _Users = {}
    for value, place in _values(RawFile(path, day.index, day.limits)):
        user = fields_of(value, place)
        called = (field_at(user, at) for at in ("name", "profile.display_name", "real_name"))
        found[str(user.get("id"))] = tuple(str(name) for name in called if name)
    return found


def _threads(said: list[Said]) -> Iterator[list[Said]]:
    """Yield what was said in the channel, then each thread under the message it answers."""
    times = {one.order: one for one in said}
    threads: dict[float, list[Said]] = {}
    channel: list[Said] = []
    for one in said:
        if one.thread in (0.0, one.order):
            channel.append(one)
            continue
        root = times.get(one.thread)
        first = [] if root is None else [root._replace(train=False)]
        threads.setdefault(one.thread, first).append(one)
    if channel or not threads:
        yield channel
    yield from threads.values()


def _as_seen(text: str, users: _Users) -> str:
    """Return a text as people see it: names for ids, links, and no escapes."""

    def seen(found: re.Match[str]) -> str:
        target, label = found[1], found[2]
        if target[0] == "@":
            return f"@{label or next(iter(users.get(target[1:], ())), target[1:])}"
        if target[0] in "#!":
            return f"{'#' if target[0] == '#' else '@'}{label or target[1:]}"
        return target if not label or label in target else f"{label} ({target})"

    return _ESCAPE.sub(lambda found: _ESCAPED[found[0]], _LINK.sub(seen, text))
