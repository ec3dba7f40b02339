"""Whether a reader loses something in silence: inputs whose every word can be told from all others.

An input is a kind's base with a fresh word in the place of each letter that stands alone, changed
at up to three places. It is refused in one line that names its place, or every word of it is said
by a message, or the account names why it is not: the field that holds it, its row, or a note.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from mypt.config import Source
from mypt.data.conversations import Conversation, Row
from mypt.data.reading.formats.assistants import fields_named
from mypt.data.reading.records import MEANINGLESS
from mypt.data.reading.sources import SourceReader, open_source
from mypt.errors import MyptError

_LETTER = re.compile(r"(?<![\w<|/\\'])(?:[a-z]|no)(?![\w>|'])")
_WORD = re.compile(r"w\d+z")
_QUIET = MEANINGLESS | {
    "conversation_id", "message_tree_id", "message_id", "parent_id", "user_id"
}  # fmt: skip
"""Fields that say nothing a model could learn, or place a message among others."""
_UNREAD = r"['.]%s' of "
FIELDS = sorted(
    fields_named(
        "content value text parts reasoning reasoning_content thinking thought refusal name role"
        " tool_calls function_call train weight train_detail from type system system_prompt tools"
        " functions messages conversations conversation context history documents images label"
        " kto_tag prompt chosen rejected completion response output input instruction question"
        " answer query extra id conversation_id parent_id tool_call_id recipient title status"
        " metadata children replies subtype attachments action deleted summary arguments data"
        " segments"
    )
)
"""Names that are given to fields: those that readers know, and one that none knows."""
WORDS = sorted(
    fields_named(
        "user assistant system tool human gpt model function narrator all python text thinking"
        " tool_use tool_result image input_text message service Default Reply true false"
    )
)
"""Texts that say how something is meant."""
TAGS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "</s>", "<s>", "[INST]", "[/INST]",
    "<<SYS>>", "### Response:\n", "### Input:\n", "\nUSER: ", "ASSISTANT: ", "\n\nHuman: ",
    "\n\nAssistant:", "\nUser:", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|eot_id|>", "\n",
    "\n\n", " ", "<|user|>\n", "<end_of_turn>", "SYSTEM:", "FUNCTION RESPONSE: ", "\r\n", "\u200e",
    "<Media omitted>", "01/03/2024, 19:03 - ", "Ann: ", ": ", "<User>", "</User>", "\ufeff",
)  # fmt: skip
"""Stretches that are put into text."""

Route = tuple[str | int, ...]
Why = tuple[str, str]
"""A note, and the paths of what it accounts for, as regular expressions."""


@dataclass(frozen=True)
class Kind:
    """What one reader is given."""

    bases: tuple[Any, ...]
    """Rows, or the whole of text files."""
    name: str = "a.jsonl"
    how: tuple[dict[str, Any], ...] = ({},)
    quiet: frozenset[str] = frozenset()
    """Fields that are read, or mean nothing, and stand in no message."""
    explained: tuple[Why, ...] = ()
    write: Callable[[Path, list[Any]], Path] | None = None
    most: int = 3
    """Rows of an input."""


@dataclass
class Words:
    """Words of which none was there before."""

    n: int = 0
    made: list[str] = field(default_factory=list)

    def fresh(self) -> str:
        self.n += 1
        return f"w{self.n}z"

    def within(self, value: Any) -> Any:
        """Return a value with fresh words for its letters and words."""
        if isinstance(value, str):
            return _WORD.sub(lambda _: self.fresh(), _LETTER.sub("w0z", value))
        if isinstance(value, dict):
            return {key: self.within(held) for key, held in value.items()}
        return [self.within(one) for one in value] if isinstance(value, list) else value


def check(kind: Kind, number: int, folder: Path) -> None:
    """Read the input of this number; an AssertionError says what was lost."""
    random, words = Random(number), Words()
    bases = random.choices(kind.bases, k=min(kind.most, random.choice((1, 1, 2, 3))))
    rows = [words.within(base) for base in bases]
    for _ in range(random.choice((0, 1, 1, 2, 3))):
        _change(rows, random, words)
    path = (kind.write or _write)(folder / kind.name, rows)
    source = Source(path=str(path), **random.choice(kind.how))
    try:
        reader = open_source(source)
        found = list(reader)
    except MyptError as error:
        line = str(error)
        assert len(line.splitlines()) == 1, f"an error of several lines: {line}"
        assert path.name in line, f"an error without a place: {line}"
        return
    lost = list(_lost(rows, found, reader, kind))
    assert not lost, f"lost {lost} of {json.dumps(rows)}\nread {found}\n{reader.record().notes}"


def _lost(
    rows: list[Any], found: list[Row], reader: SourceReader, kind: Kind
) -> Iterator[tuple[str, Route]]:
    """Yield the words that no message says and nothing accounts for, with where they stand."""
    said = set(_WORD.findall("\n".join(map(_text_of, found))))
    lines = {row.origin.line for row in found}
    record = reader.record()
    notes = "\n".join(one.reason for one in (*record.notes, *record.dropped))
    dropped = sum(count.rows for count in record.dropped)
    whys = [path for note, path in (*EXPLAINED, *kind.explained) if re.search(note, notes, re.M)]
    for word, path in _words_in(rows):
        keys = [str(key) for key in path if isinstance(key, str)]
        apart = kind.write or kind.name.endswith(".txt")  # whose lines are no rows
        if word in said or (dropped and (apart or path[0] + 1 not in lines)):
            continue
        if any(
            key in kind.quiet or key.lower() in _QUIET or re.search(_UNREAD % re.escape(key), notes)
            for key in keys
        ):
            continue
        where = ".".join(map(str, path))
        if not any(re.search(why, where) for why in whys):
            yield word, path


def _text_of(row: Row) -> str:
    if isinstance(row, Conversation):
        return "\n".join(message.text for message in row.messages)
    return row.text


def _words_in(value: Any, path: Route = ()) -> Iterator[tuple[str, Route]]:
    if isinstance(value, str):
        inside = _opened(value)
        if inside is value:
            lines = value.splitlines() if len(path) == 1 else [""]
            held = ((word, line) for line in lines for word in _WORD.findall(line or value))
            yield from ((word, (*path, line)) for word, line in held)
        else:
            yield from _words_in(inside, path)
    elif isinstance(value, dict | list):
        for key, held in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _words_in(held, (*path, key))


def _opened(text: str) -> Any:
    if text[:1] not in ("[", "{"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _change(rows: list[Any], random: Random, words: Words) -> None:
    """Change one place, whatever stands there."""
    places = list(_places(rows))
    if not places:
        return
    holder, key = random.choice(places)
    if random.random() < 0.1:
        del holder[key]
        return
    change = _replaced if random.random() < 0.3 else _changed
    holder[key] = change(holder[key], random, words)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, held in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(held, dict | list):
            yield from _places(held)


def _changed(value: Any, random: Random, words: Words) -> Any:
    """Return a value of the same type that says something else."""
    first = random.random() < 0.5
    if isinstance(value, str):
        at = random.randint(0, len(value))
        stop = at if first else at + random.randint(0, 12)
        return value[:at] + random.choice((*TAGS, f" {words.fresh()} ")) + value[stop:]
    if isinstance(value, dict):
        name = random.choice(FIELDS)
        if first or not value:
            return value | {name: _added(words.fresh(), random)}
        old = random.choice(list(value))
        return {name if key == old else key: held for key, held in value.items()}
    if isinstance(value, list) and value:
        more = [] if first else [words.within(random.choice(value))]
        return random.sample([*value, *more], len(value) + len(more))
    return _replaced(value, random, words)


def _replaced(value: Any, random: Random, words: Words) -> Any:
    return random.choice(
        (
            None, "", [], {}, 0, 1, 2.5, True, False, 1e999, 10**400, " \n", words.fresh(),
            [words.fresh()], {words.fresh(): 1}, [value], [value, words.within(value)],
            {"text": value}, {"content": value}, {"type": "text", "text": value},
            json.dumps(value), random.choice(WORDS), random.choice(WORDS),
        )
    )  # fmt: skip


def _added(word: str, random: Random) -> Any:
    return random.choice(
        (
            word, word, word, [word], {"extra": word}, {"content": word}, True, False, 0, 1,
            [{"role": "user", "content": word}], {"role": "assistant", "content": word},
            [{"type": "text", "text": word}], [{"type": "image", "url": word}],
            [{"name": "f", "arguments": {"x": word}}], f"<think>{word}</think>",
        )
    )  # fmt: skip


def _write(path: Path, rows: list[Any]) -> Path:
    """Write rows as lines, as one JSON value, or as text."""
    if path.suffix == ".txt":
        path.write_text("".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


EXPLAINED: tuple[Why, ...] = (
    ("^rejected answer left out", r"^\d+\.(rejected|non_preferred_output)\b"),
    (
        "^question beside the chosen messages left out",
        r"^\d+\.(prompt|question|instruction|messages|conversations|input)\b",
    ),
    ("^a result (whose|with a) name", r"\.name\b"),
    ("^a result with the id of a call, where", r"\.(name|tool_call_id|tool_use_id|call_id)\b"),
    ("without text$", r"\.instances\.\d+\."),
    ("^further answer of a list left out", r"\.[1-9]\d*\.$"),
)
"""Notes that all readers share, and the paths of what each accounts for."""
