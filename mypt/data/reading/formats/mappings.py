"""Rows of which a mapping says where the turns are, who speaks and what is said."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from mypt.config import FieldMapping, Role
from mypt.data.conversations import Conversation, Message, Part, Train
from mypt.data.reading.formats.message import fields_of, read_role, read_train, to_message
from mypt.data.reading.formats.shapes import top_field
from mypt.data.reading.records import WEIGHTS, Dropped, Place, Tally, no_text
from mypt.errors import DataError
from mypt.text import names, shown


class _Utterance(NamedTuple):
    speaker: str
    text: str
    train: Train


def read_mapped(
    row: Any, place: Place, tally: Tally, mapping: FieldMapping
) -> Iterator[Conversation]:
    """Yield the conversation of a row, found where ``mapping`` says.

    Utterances without text are left out and counted; consecutive ones of one role become one
    turn. With ``by_order`` a conversation of one speaker, or of more than two, is dropped.

    Raises:
        DataError: If a field is missing or of the wrong type, or a role is unknown.
        Dropped: If nothing is said, or the speakers are not two.
    """
    said = list(_utterances(row, place, tally, mapping))
    if not said and not mapping.by_order:
        raise DataError(f"{place}: an empty conversation; expected at least one turn")
    roles = _roles(said, place, mapping)
    kept = [utterance for utterance in said if utterance.text.strip()]
    if mapping.by_order and len({utterance.speaker for utterance in kept}) < 2:
        raise Dropped("a conversation in which a speaker says nothing")
    if len(kept) < len(said):
        tally.notes["empty utterance left out"] += len(said) - len(kept)
    turns: list[tuple[Role, list[_Utterance]]] = []
    for utterance in kept:
        role = roles[utterance.speaker]
        if turns and turns[-1][0] == role:
            turns[-1][1].append(utterance)
            tally.notes["utterance joined to the one before"] += 1
        else:
            turns.append((role, [utterance]))
    if not turns:
        raise Dropped("a conversation without text")
    yield Conversation(tuple(_join(*turn, place, mapping) for turn in turns), place.origin)


def _utterances(
    row: Any, place: Place, tally: Tally, mapping: FieldMapping
) -> Iterator[_Utterance]:
    turns = _at(row, mapping.turns, place)
    if not isinstance(turns, list):
        raise DataError(f"{place}: {mapping.turns} is {shown(turns)}; expected a list of turns")
    tally.check_fields(fields_of(row, place), {top_field(row, mapping.turns)}, place)
    for turn in _flat(turns):
        speaker, text = _at(turn, mapping.role, place), _at(turn, mapping.text, place)
        if not isinstance(speaker, str | int):
            raise DataError(f"{place}: {mapping.role} is {shown(speaker)}; expected a name")
        if not isinstance(text, str):
            raise no_text(place, mapping.text, text)
        read = {top_field(turn, mapping.role), top_field(turn, mapping.text), *WEIGHTS}
        tally.check_fields(turn, read, place, "a turn")
        yield _Utterance(str(speaker), text, read_train(turn, place))


def _roles(said: list[_Utterance], place: Place, mapping: FieldMapping) -> dict[str, Role]:
    speakers = list(dict.fromkeys(utterance.speaker for utterance in said))
    if mapping.by_order:
        if len(speakers) != 2:
            count = "fewer" if len(speakers) < 2 else "more"
            raise Dropped(f"a conversation with {count} than two speakers")
        return dict(zip(speakers, ("user", "assistant"), strict=True))
    if not mapping.roles:
        try:
            return {speaker: read_role(speaker, place) for speaker in speakers}
        except DataError as error:
            raise DataError(
                f"{error}; or say in the mapping what each name means, or, where it is a person's,"
                " that the one who speaks first is the user (by_order)"
            ) from None
    for speaker in speakers:
        if speaker not in mapping.roles:
            known = ", ".join(mapping.roles)
            raise DataError(
                f"{place}: {mapping.role} {shown(speaker)} is not in the mapping; known: {known}"
            )
    return mapping.roles


def _join(role: Role, said: list[_Utterance], place: Place, mapping: FieldMapping) -> Message:
    if len(said) > 1 and mapping.join is None:
        raise DataError(
            f"{place}: two turns of the {role} follow each other; expected turns to alternate, or"
            " set 'join' in the mapping"
        )
    if len({utterance.train for utterance in said}) > 1:
        raise DataError(f"{place}: turns of the {role} that are joined differ in their weight")
    text = (mapping.join or "").join(utterance.text for utterance in said)
    return to_message(role, [Part("text", text)], said[0].train)


def _at(row: Any, path: str, place: Place) -> Any:
    """Return what a path of dots leads to, ``a.b`` being row["a"]["b"]."""
    value = row
    for key in [path] if isinstance(row, dict) and path in row else path.split("."):
        fields = fields_of(value, place)
        if key not in fields:
            raise DataError(f"{place}: no field {path!r}; found {names(fields)}; mend the mapping")
        value = fields[key]
    return value


def _flat(turns: list[Any]) -> Iterator[Any]:
    for turn in turns:
        if isinstance(turn, list):
            yield from _flat(turn)
        else:
            yield turn
