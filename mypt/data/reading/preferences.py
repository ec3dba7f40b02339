"""Preference rows read whole: both answers to one prompt, as two conversations."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mypt.config import Reading
from mypt.data.conversations import Conversation, Message, Side
from mypt.data.pairs import SIDES, n_shared
from mypt.data.reading.formats.columns import read_columns
from mypt.data.reading.formats.message import fields_of
from mypt.data.reading.formats.shapes import at_path, find_guarded, parse_turns
from mypt.data.reading.records import Dropped, Place, Tally
from mypt.errors import DataError
from mypt.text import shown

_NOTHING: tuple[object, ...] = (None, [], {})
_SAME = "a pair whose sides say the same"
_BEGINNING = "a pair of which one side is the beginning of the other"
_APART = "a pair whose sides differ in more than the answer"


def read_pairs(row: Any, place: Place, tally: Tally, how: Reading) -> Iterator[Conversation]:
    """Yield both sides of a preference row, the chosen one first.

    What both begin with is the prompt, which is not learned whatever the policy says. A pair is
    left out, and counted, where a side says nothing, both say the same, or more than the answer
    differs.

    Raises:
        DataError: If the row has no two answers, or one cannot be read.
        Dropped: If it teaches nothing.
    """
    fields = fields_of(row, place)
    shape = find_guarded(fields)
    script = parse_turns(how.turns or (shape.turns if shape else "user=prompt"))
    answers = {one.voice: one.path for one in script.speakers if one.voice in SIDES}
    if len(answers) < len(SIDES):
        raise DataError(
            f"{place}: found {shown(fields)}, which is no preference row; expected a prompt with"
            " chosen and rejected answers; name the fields with turns, or leave pairs out"
        )
    for side in SIDES:
        value = at_path(fields, answers[side])
        if value in _NOTHING or (isinstance(value, str) and not value.strip()):
            raise Dropped(f"a pair without a {side} answer")
    (chosen, counted), (rejected, more) = (_read_side(fields, place, how, side) for side in SIDES)
    _count_once(tally, counted, more)
    if len(chosen) != len(rejected):
        raise Dropped("a pair whose sides are not as many conversations")
    for better, worse in zip(chosen, rejected, strict=True):
        yield from _paired(better, worse)


def _read_side(
    fields: dict[str, Any], place: Place, how: Reading, side: Side
) -> tuple[list[Conversation], Tally]:
    own = Tally.of(how)
    try:
        found = list(read_columns(fields, place, own, how.model_copy(update={"side": side})))
    except Dropped as dropped:
        raise Dropped(f"a pair whose {side} side is {dropped}") from None
    if own.dropped:
        raise Dropped(f"a pair whose {side} side is {next(iter(own.dropped))}")
    own.refuse_unread()
    return found, own


def _count_once(tally: Tally, chosen: Tally, rejected: Tally) -> None:
    """Add what was met while a row was read for each of its sides, the prompt's once."""
    for side, other, own in (("chosen", "rejected", chosen), ("rejected", "chosen", rejected)):
        del own.notes[f"{other} answer left out (--side {side})"]
    tally.notes.update(chosen.notes | rejected.notes)
    tally.meaningless |= chosen.meaningless | rejected.meaningless
    tally.add_unread(rejected.unread | chosen.unread)


def _paired(chosen: Conversation, rejected: Conversation) -> Iterator[Conversation]:
    """Yield both with their prompt as context."""
    ours, theirs = chosen.messages, rejected.messages
    if ours == theirs:
        raise Dropped(_SAME)
    n = n_shared(ours, theirs)
    if n in (len(ours), len(theirs)):
        raise Dropped(_BEGINNING)
    answers = (ours[n:], theirs[n:])
    if any(a[0].role != "assistant" or any(m.role == "user" for m in a) for a in answers):
        raise Dropped(_APART)
    prompt = tuple(map(_as_context, ours[:n]))
    yield replace(chosen, messages=prompt + ours[n:], side="chosen")
    yield replace(rejected, messages=prompt + theirs[n:], side="rejected")


def _as_context(turn: Message) -> Message:
    parts = tuple(replace(part, train=None) for part in turn.parts)
    return replace(turn, parts=parts, train=False)
