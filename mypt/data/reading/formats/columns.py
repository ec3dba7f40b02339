"""Rows of which each column says one thing, by the table of shapes or a user's own."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import cycle, groupby
from operator import itemgetter
from typing import Any, cast

from mypt.config import Reading, Role, Voice
from mypt.data.conversations import Conversation, Message, Part
from mypt.data.reading import strict_json
from mypt.data.reading.formats.chats import ROW, frame, read_list
from mypt.data.reading.formats.markups import read_turns_of
from mypt.data.reading.formats.message import (
    ROLE_NAMES,
    fields_of,
    read_message,
    to_message,
    typed_parts,
)
from mypt.data.reading.formats.shapes import (
    MISSING,
    RowShape,
    Script,
    Speaker,
    alpaca_prompt,
    at_path,
    check_inside,
    find_shape,
    holds_messages,
    one_an_item,
    parse_turns,
    top_field,
)
from mypt.data.reading.formats.texts import SPEAKERS
from mypt.data.reading.records import MEANINGLESS, Dropped, Place, Tally, no_text, verdict_of
from mypt.errors import DataError
from mypt.text import names, shown

_ROLES = frozenset({"user", "assistant", "tool"})
_NOTHING: tuple[object, ...] = (None, "", [], {})


def read_columns(
    row: Any, place: Place, tally: Tally, how: Reading, shape: RowShape | None = None
) -> Iterator[Conversation]:
    """Yield the conversation of a row, each field of which says one thing.

    Which field speaks as whom is said by ``how.turns``, else by the table of shapes. A list of
    messages that asks is context: no answer in it is supervised. Of two answers to choose from,
    that of ``how.side`` is read and the other counted. A path through a list gives one
    conversation an item.

    Raises:
        DataError: If no shape fits, or a field is missing or of the wrong type.
        Dropped: If one of them says nothing, or the row itself says that its answer is bad.
    """
    fields = fields_of(row, place)
    if how.turns:
        shape = RowShape("", how.turns)
    shape = shape or find_shape(fields, how.format)
    if shape is None:
        raise DataError(
            f"{place}: found {shown(fields)}, which fits no known shape; {advise(fields)}"
        )
    if shape.name and shape.format == "columns":
        tally.notes[f"row read as {shape.name}: {shape.turns}"] += 1
    script = parse_turns(shape.turns)
    said = _texts_alone(fields, script) if shape.format != "alpaca" else None
    if said:
        yield Conversation(said, place.origin)
        return
    _check_row(fields, script, place, tally)
    rows = list(one_an_item(fields, script.speakers)) if script.nested else [fields]
    if not rows:
        raise Dropped("a row whose list of items is empty")
    ask = alpaca_prompt if shape.format == "alpaca" else _join_texts
    for one in rows:
        try:
            yield _SpokenRow(one, place, tally, how, ask).read(script)
        except Dropped as dropped:  # of an item alone: the next ones are read
            tally.dropped[str(dropped)] += 1


def _texts_alone(fields: Mapping[str, Any], script: Script) -> tuple[Message, ...] | None:
    """Return the messages of a row that is one text a turn and nothing else, as most are."""
    if len(fields) != len(script.groups):
        return None
    said: list[Message] = []
    for voice, (one, *more) in script.groups:
        text = fields.get(one.path)
        if more or not isinstance(text, str) or voice not in ("user", "assistant"):
            return None
        if not text or text.isspace() or holds_messages(text):
            return None
        said.append(Message(voice, (Part("text", text),)))
    return tuple(said)


def advise(fields: Mapping[str, Any]) -> str:
    """Return how to say what the fields of a row of no known shape are."""
    talks = filter(None, (_as_mapping(key, value) for key, value in _inside(fields)))
    if (mapping := next(talks, None)) is not None:
        return f"say where its turns are, as in --format mapping {mapping}"
    texts = [
        key if key[-1:] != "?" else f"{key}?"  # the last one says that rows may lack it
        for key, value in fields.items()
        if isinstance(value, str) and key.lower() not in MEANINGLESS and not key.endswith("_id")
    ]
    texts = [key for key in texts if not {",", "="} & set(key)]
    lists = [key for key, value in _inside(fields) if _is_conversation(value)]
    asked, answered = texts[:2] if len(texts) > 1 else ("QUESTION", "ANSWER")
    turns = f"turns={lists[0]}" if lists else f"user={asked},assistant={answered}"
    if lists and not holds_messages(at_path(fields, lists[0])):
        return (
            f"where the texts of {lists[0]} are questions alone, they teach nothing: leave the file"
            f" out; where user and assistant speak in turn, say --turns {shlex.quote(turns)}"
        )
    return f"say what its fields are, as in --turns {shlex.quote(turns)}"


def _as_mapping(key: str, value: Any) -> str | None:
    """Return the flags that read a list of turns whose fields have names of their own."""
    turns = value if isinstance(value, list) else []
    turns = [turn for one in turns for turn in (one if isinstance(one, list) else [one])]
    if not turns or not all(isinstance(turn, dict) for turn in turns):
        return None
    role = next((name for name in turns[0] if name.lower() in SPEAKERS - {"role", "from"}), None)
    text = next(
        (name for name in ("text", "content", "value", "message") if name in turns[0]), None
    )
    if role is None or text is None:
        return None
    known = all(str(turn.get(role)).lower() in ROLE_NAMES for turn in turns)
    paths = f"--turns_field {key} --role_field {role} --text_field {text}"
    return paths if known else f"{paths} --by_order"


def _inside(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in fields.items():
        yield key, value
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", held) for inner, held in value.items())


def rows_inside(row: Any) -> list[str]:
    """Return the paths inside a row to what holds objects that are no messages."""
    inside = _inside(row) if isinstance(row, dict) else ()
    return [
        path
        for path, value in inside
        if "." in path and isinstance(value, list) and value and isinstance(value[0], dict)
        if not holds_messages(value) and not _as_mapping(path, value)
    ]


def _is_conversation(value: Any) -> bool:
    texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return bool(value) and (texts or (isinstance(value, list) and holds_messages(value)))


class _SpokenRow:
    """One row while its fields are heard in order."""

    def __init__(
        self,
        fields: dict[str, Any],
        place: Place,
        tally: Tally,
        how: Reading,
        ask: Callable[..., str],
    ) -> None:
        self._fields, self._place, self._tally, self._how = fields, place, tally, how
        self._said: list[Message] = []
        self._quoted: list[tuple[int, str, tuple[Part, ...]]] = []
        """Documents: before which message they were heard, in which field, and they."""
        self._frame: dict[str, Any] = {}
        self._ask = ask

    def read(self, script: Script) -> Conversation:
        """Hear every field, and what the row says about all of them."""
        if not ROW.isdisjoint(self._fields):
            spoken = _spoken(self._fields, script)
            heard = (key for key in self._fields if key in ROW and key not in spoken)
            self._frame = {key: self._fields[key] for key in heard}
        if script.nested:
            check_inside(self._fields, script.speakers, self._place, self._tally)
        for voice, speakers in script.groups:
            self._hear(voice, speakers)
        self._put_documents()
        if self._said and not self._frame:
            return Conversation(tuple(self._said), self._place.origin)
        return Conversation(frame(self._said, self._frame, self._place), self._place.origin)

    def _hear(self, voice: Voice, speakers: Sequence[Speaker]) -> None:
        there = []
        for one in speakers:
            value = self._fields.get(one.path)
            if value is None and not (one.optional and "." not in one.path):
                value = self._value(one)
            if value or not one.optional or value not in _NOTHING:
                there.append((one, value))
        if not there:
            return
        first = there[0][1]
        if voice in _ROLES and not holds_messages(first):
            text = self._text(voice, there)
            part, role = Part("text", text), cast(Role, voice)
            is_said = text and not text.isspace()
            self._said.append(Message(role, (part,)) if is_said else to_message(role, [part]))
            return
        if voice in ("context", "cite"):
            self._quote(voice, there)
            return
        if len(there) > 1 and voice not in ("turns", "system"):
            beside = {one.path: value for one, value in there[1:]}
            self._tally.check_fields(beside, frozenset(), self._place)
        if voice in _ROLES:
            self._said += self._listed(first, context=voice == "user")
        elif voice == "turns":
            self._said += self._turns([value for _, value in there])
        elif voice in ("chosen", "rejected"):
            self._choose(voice, first)
        elif voice == "calls":
            calls = self._parsed(first)
            if calls == []:
                raise Dropped("a row without calls")
            self._say({"role": "assistant", "tool_calls": calls})
        elif voice == "tools":
            self._frame["tools"] = first
        elif voice == "label":
            self._judge(there[0][0].path, first)
        elif voice == "segments":
            self._said += self._segments(first)
        else:
            self._frame["system"] = self._text(voice, there)

    def _quote(self, voice: Voice, there: list[tuple[Speaker, Any]]) -> None:
        """Hear documents, which the user's next turn quotes, or what the last answer cites."""
        given = [part for _, value in there for part in typed_parts(value, voice)]
        parts = read_message({"role": "user", "content": given}, self._place, self._tally).parts
        path, last = there[0][0].path, self._said[-1] if self._said else None
        if voice == "context":
            self._quoted.append((len(self._said), path, parts))
        elif last is not None and last.role == "assistant":
            self._said[-1] = replace(last, parts=(*last.parts, *parts))
        else:
            raise DataError(f"{self._place}: no answer stands before {path}; name it behind one")

    def _put_documents(self) -> None:
        for at, path, parts in reversed(self._quoted):
            later = range(at, len(self._said))
            asked = next((n for n in later if self._said[n].role == "user"), None)
            if asked is None:
                raise DataError(f"{self._place}: no question stands behind {path}; name it before")
            one = self._said[asked]
            self._said[asked] = replace(one, parts=(*parts, *one.parts))

    def _value(self, one: Speaker) -> Any:
        value = at_path(self._fields, one.path)
        if value is MISSING and not one.optional:
            raise DataError(
                f"{self._place}: no field {one.path!r}; found {names(self._fields)}; name the"
                " fields of this row, a question mark behind one that rows may lack"
            )
        if value is None and not one.optional:
            raise no_text(self._place, one.path, value)
        return None if value is MISSING else value

    def _say(self, message: dict[str, Any]) -> None:
        self._said.append(read_message(message, self._place, self._tally))

    def _text(self, voice: Voice, there: list[tuple[Speaker, Any]]) -> str:
        """Return one text of the fields of one turn; without a needed one the turn says nothing."""
        texts = []
        for one, value in there:
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                if voice == "assistant" and len(value) > 1:
                    self._tally.notes["further answer of a list left out"] += len(value) - 1
                value = "".join(value[:1]) if voice == "assistant" else "\n".join(value)
            if not isinstance(value, str):
                raise no_text(self._place, one.path, value)
            if not one.optional and (not value or value.isspace()):
                return ""
            texts.append(value)
        return self._ask(*texts) if voice == "user" else _join_texts(*texts)

    def _listed(self, value: Any, context: bool = False) -> list[Message]:
        turns = self._parsed(value)
        turns = [turns] if isinstance(turns, dict) else turns
        read = read_list([(turn, self._place) for turn in turns], self._tally)
        told = ("assistant",) if context else ()  # what a user says is the same as a text
        return [replace(one, train=False) if one.role in told else one for one in read]

    def _turns(self, values: list[Any]) -> Iterator[Message]:
        """Yield a whole conversation: texts in turn, pairs, messages, or one rendered text."""
        if all(isinstance(value, str) and value[:1] != "[" for value in values):
            text = "\n\n".join(values)
            yield from read_turns_of(text, self._place, self._tally, self._how.markup)
            return
        for value in values:
            turns = self._parsed(value)
            if not isinstance(turns, list):
                raise DataError(f"{self._place}: found {shown(turns)}; expected a list of turns")
            if all(isinstance(turn, str) for turn in turns):
                for turn, role in zip(turns, cycle(("user", "assistant"))):
                    yield read_message({"role": role, "content": turn}, self._place, self._tally)
            elif holds_messages(turns):
                yield from self._listed(turns)
            else:
                for turn in turns:
                    yield from self._round(turn)

    def _round(self, turn: Any) -> Iterator[Message]:
        """Yield both sides of a round, itself a row of a shape."""
        if isinstance(turn, list) and len(turn) == 2 and not holds_messages(turn):
            turn = {"human": turn[0], "assistant": turn[1]}
        shape = find_shape(turn) if isinstance(turn, dict) else None
        if shape is None or any(one.voice == "turns" for one in shape.speakers):
            raise DataError(
                f"{self._place}: a turn is {shown(turn)}; expected a text, a message with role and"
                " content, or a question with its answer; write messages that are a conversation of"
                " their own as a row of their own"
            )
        script = parse_turns(shape.turns)
        _check_row(turn, script, self._place, self._tally)
        inner = _SpokenRow(turn, self._place, self._tally, self._how, self._ask)
        yield from inner.read(script).messages

    def _choose(self, side: str, value: Any) -> None:
        """Hear the answer of the side that is wanted, and count the other one."""
        if side != self._how.side:
            self._tally.notes[f"{side} answer left out (--side {self._how.side})"] += 1
        elif holds_messages(value):
            answer, asked = self._listed(value), self._said
            if answer[0].role == "assistant":
                self._said = asked + answer
                return
            texts = {message.text for message in answer}
            if any(message.text not in texts for message in asked):
                self._tally.notes[f"question beside the {side} messages left out"] += 1
            self._said = answer
        elif self._said:
            self._say({"role": "assistant", "content": value})
        else:
            self._said = list(self._turns([value]))

    def _judge(self, path: str, label: Any) -> None:
        verdict = verdict_of(label)
        if verdict is None:
            raise DataError(f"{self._place}: {path} is {shown(label)}; expected true or false")
        if not verdict:
            raise Dropped(f"a rejected answer ({path} is false)")

    def _segments(self, value: Any) -> Iterator[Message]:
        """Yield texts that say of themselves whether they are learned, as turns of two people."""
        segments = self._parsed(value)
        if not isinstance(segments, list) or not all(map(_is_segment, segments)):
            raise DataError(
                f"{self._place}: segments are {shown(segments)}; expected a list of"
                ' {"label": true or false, "text": ...}'
            )
        for segment in segments:
            self._tally.check_fields(segment, {"label", "text"}, self._place, "a segment")
        for learned, group in groupby(segments, key=itemgetter("label")):
            text = "".join(segment["text"] for segment in group)
            yield to_message("assistant" if learned else "user", [Part("text", text)])

    def _parsed(self, value: Any) -> Any:
        """Return a value that a table may hold as JSON text."""
        return strict_json.parse_text(value, self._place) if isinstance(value, str) else value


def _join_texts(*texts: str) -> str:
    return texts[0] if len(texts) == 1 else "\n\n".join(text for text in texts if text.strip())


def _is_segment(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("label"), bool)
        and isinstance(value.get("text"), str)
    )


def _check_row(fields: Mapping[str, Any], script: Script, place: Place, tally: Tally) -> None:
    spoken = _spoken(fields, script)
    if not fields.keys() <= spoken:
        tally.check_fields(fields, spoken | ROW, place)


def _spoken(fields: Mapping[str, Any], script: Script) -> Set[str]:
    if not script.nested:
        return script.fields
    return {top_field(fields, one.path) for one in script.speakers}
