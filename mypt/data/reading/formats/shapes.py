"""The layouts of rows that people train on, as data: which field speaks as which voice.

A shape is written as a user writes one after ``--turns``: ``voice=field`` in the order in which
they speak, a question mark after a field that a row may lack. Fields of one voice that follow
each other are one turn, with an empty line between. Every shape also hears a row's ``system`` or
``system_prompt``, ``tools``, ``train`` and ``weight``.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, Final, NamedTuple, cast

from mypt.config import Format, Voice
from mypt.data.reading.formats.markups import markup_of
from mypt.data.reading.records import Dropped, Place, Tally, verdict_of

MISSING: Final = object()
"""What a path finds where nothing is."""


class Speaker(NamedTuple):
    """One field of a shape."""

    voice: Voice
    path: str
    """A path of dots, ``a.b`` being row["a"]["b"]; through a list of objects, one row an item."""
    optional: bool


class RowShape(NamedTuple):
    """A layout of rows."""

    name: str
    turns: str
    format: Format = "columns"
    """The name under which datasets record it."""
    only_texts: bool = False
    """Whether its turns are texts alone: under such a name others keep rows."""

    @property
    def speakers(self) -> tuple[Speaker, ...]:
        """The fields, in the order in which they speak."""
        return parse_turns(self.turns).speakers


class Script(NamedTuple):
    """What the words of a shape mean, worked out once."""

    speakers: tuple[Speaker, ...]
    groups: tuple[tuple[Voice, tuple[Speaker, ...]], ...]
    """Those of one voice that follow each other."""
    fields: frozenset[str]
    """The fields of a row that are entered, where no field has a dot in its name."""
    nested: bool
    """Whether a path leads into a field."""


SHAPES: Final = (
    # Rows of which a part must not be learned come first, so that none is read as a plain one.
    RowShape("messages_kto", "turns=messages,label=label"),
    RowShape("messages_kto_tag", "turns=messages,label=kto_tag"),
    RowShape("kto", "user=prompt,assistant=completion,label=label"),
    RowShape("alpaca_kto", "user=instruction,user=input?,assistant=output,label=kto_tag"),
    RowShape("messages_dpo", "user=messages,chosen=chosen,rejected=rejected"),
    RowShape("sharegpt_dpo", "user=conversations,chosen=chosen,rejected=rejected"),
    RowShape(
        "openai_dpo",
        "tools=input.tools?,user=input.messages,"
        "chosen=preferred_output,rejected=non_preferred_output",
    ),
    RowShape("preference", "user=prompt,chosen=chosen,rejected=rejected"),
    RowShape("orca_dpo", "user=question,chosen=chosen,rejected=rejected"),
    RowShape("alpaca_dpo", "user=instruction,user=input?,chosen=chosen,rejected=rejected"),
    RowShape("anthropic_hh", "chosen=chosen,rejected=rejected"),
    RowShape("segments", "segments=segments"),
    RowShape("glaive", "turns=system?,turns=chat"),
    RowShape("lima", "turns=conversations"),
    RowShape("capybara", "turns=conversation"),
    RowShape("dialog", "turns=dialog"),
    RowShape("ultrachat", "turns=data", only_texts=True),
    RowShape("self_instruct", "user=instruction,user=instances.input?,assistant=instances.output"),
    RowShape(
        "alpaca",
        "turns=history?,user=instruction,user=input?,user=context?,assistant=output",
        "alpaca",
    ),
    RowShape(
        "dolly", "turns=history?,user=instruction,user=context?,user=input?,assistant=response"
    ),
    RowShape("xlam", "tools=tools,user=query,calls=answers"),
    RowShape("openorca", "user=question,assistant=response"),
    RowShape("metamath", "user=query,assistant=response"),
    RowShape("numina", "user=problem,assistant=solution"),
    RowShape("p3", "user=inputs_pretokenized,assistant=targets_pretokenized"),
    RowShape("flan", "user=inputs,assistant=targets"),
    RowShape("prompt_completion", "user=prompt,assistant=completion", "prompt_completion"),
    RowShape(
        "question_answer",
        "user=article?,user=passage?,user=context?,user=question,user=options?,user=choices?,"
        "assistant=answer",
        "prompt_completion",
    ),
    RowShape("squad", "user=context?,user=question,assistant=answers.text"),
    RowShape("prompt_response", "user=prompt,assistant=response"),
    RowShape("input_output", "user=input,assistant=output"),
    RowShape("text_input", "user=text_input,assistant=output", "prompt_completion"),
    RowShape("human_assistant", "user=human,assistant=assistant"),
    RowShape("user_assistant", "user=user,assistant=assistant"),
)  # fmt: skip
"""In the order in which they are tried: the first whose fields a row holds is taken."""


_TASK = "Below is an instruction that describes a task"
_WITH_INPUT = ", paired with an input that provides further context"
_REQUEST = ". Write a response that appropriately completes the request.\n\n"


def alpaca_prompt(instruction: str, *context: str) -> str:
    """Return the text that stands before an answer in the alpaca format.

    Source: the guide's example 3; the sentences are those of the Stanford Alpaca data.
    """
    given = "\n\n".join(text for text in context if text.strip())
    if not given:
        return f"{_TASK}{_REQUEST}### Instruction:\n{instruction}\n\n### Response:\n"
    return (
        f"{_TASK}{_WITH_INPUT}{_REQUEST}### Instruction:\n{instruction}\n\n"
        f"### Input:\n{given}\n\n### Response:\n"
    )


@lru_cache(maxsize=256)
def parse_turns(turns: str) -> Script:
    """Return the fields of a shape that is written as after ``--turns``."""
    pairs = (pair.partition("=") for pair in turns.split(","))
    speakers = tuple(
        Speaker(cast(Voice, voice), path.removesuffix("?").strip(), path.endswith("?"))
        for voice, _, path in pairs
    )
    groups = tuple((voice, tuple(group)) for voice, group in groupby(speakers, lambda s: s.voice))
    nested = any("." in one.path for one in speakers)
    return Script(speakers, groups, frozenset(top_field({}, s.path) for s in speakers), nested)


def find_shape(
    fields: Mapping[str, Any], format: Format = "columns", *, null_counts: bool = True
) -> RowShape | None:
    """Return the first shape whose fields a row holds, else None.

    Args:
        fields: The row.
        format: Only shapes of this name; all of them for "columns".
        null_counts: Whether a field of null will do where no shape fits without it: a table
            writes null where rows of another shape have a field.
    """
    for null in (False, True)[: 1 + null_counts]:
        for shape, needs, needed in _NEEDS_OF.get(format, ()):
            if needs <= fields.keys() and _fit(needed, fields, null, shape.only_texts):
                return shape
    return None


def find_guarded(fields: Mapping[str, Any]) -> RowShape | None:
    """Return the shape of a row that holds what must not be learned, else None."""
    if _GUARDS.isdisjoint(fields):
        return None
    shape = find_shape(fields)
    return shape if shape and any(one.voice in _GUARDED for one in shape.speakers) else None


def at_path(row: Any, path: str) -> Any:
    """Return what a path of dots leads to, or MISSING; of a list, what its first item holds."""
    if isinstance(row, dict) and path in row:
        return row[path]
    value = row
    for key in path.split("."):
        value = open_cell(value)
        if isinstance(value, list) and value:
            value = value[0]
        if not isinstance(value, dict) or key not in value:
            return MISSING
        value = value[key]
    return value


def open_cell(value: Any) -> Any:
    """Return what a value holds that a table wrote as JSON text; any other value as it is."""
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def holds_messages(value: Any) -> bool:
    """Whether a value is a message or a list of messages, perhaps as JSON text."""
    if isinstance(value, str) and ('"role"' in value or '"from"' in value):
        value = open_cell(value)
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and bool(first.keys() & {"role", "from"})


def top_field(row: Mapping[str, Any], path: str) -> str:
    """Return the field of a row that a path of dots enters."""
    return path if path in row else path.partition(".")[0]


def _fit(
    needed: Iterable[Speaker], fields: Mapping[str, Any], null_counts: bool, only_texts: bool
) -> bool:
    for one in needed:
        there = fields.get(one.path) is not None and one.voice in ("user", "assistant")
        if not (there or _fits(one, fields, null_counts, only_texts)):
            return False
    return True


def _fits(one: Speaker, fields: Mapping[str, Any], null_counts: bool, only_texts: bool) -> bool:
    value = at_path(fields, one.path)
    if value is None or value is MISSING:
        return value is None and null_counts
    if one.voice == "label":
        return verdict_of(value) is not None
    if one.voice in ("chosen", "rejected"):
        return not isinstance(value, int | float)
    if one.voice == "turns":
        listed = isinstance(value, list) and bool(value)
        listed = listed and (not only_texts or isinstance(value[0], str))
        return listed or (isinstance(value, str) and (value[:1] == "[" or bool(markup_of(value))))
    return True


def judge(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a row without what it says of its answer, unless its shape hears that.

    Raises:
        Dropped: If it calls the answer bad.
    """
    if LABELS.isdisjoint(fields):
        return fields
    said = {key: verdict_of(fields[key]) for key in fields if key in LABELS}
    if not any(verdict is not None for verdict in said.values()) or find_guarded(fields):
        return fields
    for key, verdict in said.items():
        if verdict is (key == "rejected"):
            raise Dropped(f"a rejected answer ({key} is {'true' if verdict else 'false'})")
    return {key: value for key, value in fields.items() if said.get(key) is None}


LABELS: Final = frozenset({"label", "kto_tag", "desirable", "accepted", "chosen", "rejected"})
"""Fields that say of a row's answer whether it is good, whatever its other columns; "rejected",
where it is no answer itself, says the opposite."""


_GUARDED: Final = ("label", "chosen", "rejected")
_GUARDS: Final = frozenset(
    one.path for shape in SHAPES for one in shape.speakers if one.voice in _GUARDED
)
JUDGED: Final = LABELS | _GUARDS
"""Fields for which a row is looked at twice, since a part of it may not be for learning."""


class _Needs(NamedTuple):
    """A shape with what it needs, worked out once."""

    shape: RowShape
    fields: frozenset[str]
    speakers: tuple[Speaker, ...]


def _needs(shape: RowShape) -> _Needs:
    needed = tuple(one for one in shape.speakers if not one.optional)
    return _Needs(shape, frozenset(one.path.partition(".")[0] for one in needed), needed)


_NEEDS: Final = tuple(map(_needs, SHAPES))
_NEEDS_OF: Final = {
    format: tuple(one for one in _NEEDS if format in ("columns", one.shape.format))
    for format in ("columns", "alpaca", "prompt_completion")
}


def check_inside(
    fields: Mapping[str, Any], speakers: Sequence[Speaker], place: Place, tally: Tally
) -> None:
    """Count what is not read of the objects into which paths lead."""
    inside: dict[str, set[str]] = {}
    for one in speakers:
        if "." in one.path and one.path not in fields:
            keys = one.path.split(".")
            for depth, key in enumerate(keys[1:], 1):
                inside.setdefault(".".join(keys[:depth]), set()).add(key)
    for path, read in inside.items():
        value = open_cell(at_path(fields, path))
        if isinstance(value, dict):
            tally.check_fields(value, read, place, path)


def one_an_item(fields: dict[str, Any], speakers: Sequence[Speaker]) -> Iterator[dict[str, Any]]:
    """Yield the row once for each item of the list that a path leads through."""
    for one in speakers:
        keys = [] if one.path in fields else one.path.split(".")
        for depth in range(1, len(keys)):
            value = at_path(fields, ".".join(keys[:depth]))
            items = open_cell(value)
            if isinstance(items, list):
                for item in items:
                    yield from one_an_item(_put(fields, keys[:depth], item), speakers)
                return
    yield fields


def _put(fields: dict[str, Any], keys: list[str], item: Any) -> dict[str, Any]:
    key, *rest = keys
    return fields | {key: _put(open_cell(fields[key]), rest, item) if rest else item}
