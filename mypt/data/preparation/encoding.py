"""Conversations tokenized by their chat template, many rows at a time: ids, spans, digests.

"1+1" asked and "2" answered, in the template ``plain``, are five tokens; 256 ends the answer.
The docstrings of pieces, layout, windows, shift and packed go on with the same five.

>>> from mypt.data.conversations import Conversation, Origin, say
>>> from mypt.data.spans import KINDS, ROLES
>>> from mypt.data.tokenizer import load_tokenizer
>>> row = Conversation((say("user", "1+1"), say("assistant", "2")), Origin(file=0, line=1))
>>> encoded = encode_rows([row], load_tokenizer("byte", "plain"))
>>> encoded.tokens.tolist()
[49, 43, 49, 50, 256]
>>> [(a, b, ROLES[role], KINDS[kind]) for a, b, _, _, role, kind, _ in encoded.spans.tolist()]
[(0, 3, 'user', 'content'), (3, 4, 'assistant', 'content'), (4, 5, 'assistant', 'end')]
>>> from mypt.config import MaskPolicy
>>> from mypt.data.masking import mask_from_spans
>>> mask_from_spans(encoded.spans, 5, MaskPolicy()).tolist()
[0, 0, 0, 1, 1]
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal, NamedTuple

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from mypt.config import Role
from mypt.data.conversations import WRITTEN_AS, Document, PartKind, Row, Train
from mypt.data.pairs import in_pairs, with_pair_ids
from mypt.data.preparation.rendered import Rendered, encode_rendered
from mypt.data.reading.records import Tally
from mypt.data.rendering.base_template import BaseTemplate
from mypt.data.spans import KIND, ROLE, ROW_DTYPE, RowWeights, spans_of
from mypt.data.template import Shape, Slot
from mypt.data.tokenizer import Tokenizer
from mypt.data.vocabularies.encoder import utf8
from mypt.errors import DataError
from mypt.text import one_line


class Encoded(NamedTuple):
    """Rows as tokens; offsets count from the first token of these rows."""

    tokens: NDArray[np.uint32]
    """(N,) ids."""
    spans: NDArray[np.void]
    """(S,) of ``SPAN_DTYPE``; they tile the tokens."""
    rows: NDArray[np.void]
    """(R,) of ``ROW_DTYPE``; they tile the tokens too."""
    weights: NDArray[np.float64]
    """What ``train`` of the spans counts from 2 on."""


class _Kind(NamedTuple):
    """All that a turn is besides its texts and its place."""

    role: Role | Literal["text"]
    """Who speaks; "text": a document."""
    train: Train
    """What the row says about the mask."""
    parts: tuple[PartKind, ...]
    trains: tuple[Train, ...]
    """(parts,) what each part says about its own; None is the turn's."""


Files = Mapping[int, str]
"""The raw files of a source by their index, for errors."""
_UNNAMED: Final[Files] = {}
_DOCUMENT: Final = _Kind("text", None, ("text",), (None,))


class _Turns(NamedTuple):
    """The turns of R rows, T in all, and their P parts."""

    kinds: list[_Kind]
    """The distinct kinds."""
    kind: list[int]
    """(T,) which of them each turn is of."""
    per_row: list[int]
    """(R,) turns of each row."""
    texts: list[str]
    """(P,) the parts of all turns, in order."""


class _Slots(NamedTuple):
    """The slots of all shapes, one shape after the other, K in all."""

    per_shape: NDArray[np.int64]
    role: NDArray[np.uint8]
    kind: NDArray[np.uint8]
    part: NDArray[np.int64]
    is_part: NDArray[np.bool_]
    train: NDArray[np.int8]
    length: NDArray[np.int64]
    """(K,) tokens; 0 for a part."""
    tokens: NDArray[np.uint32]
    """The ids of all fixed slots, in order."""


def encode_rows(
    rows: Sequence[Row], tokenizer: Tokenizer, *, many: bool = True, files: Files = _UNNAMED
) -> Encoded:
    """Encode rows, to the same as rendering and encoding each segment by itself would give.

    The authors' texts go to the encoder together, what the template writes is encoded once, and
    numpy puts both in place, without an object for each token. Some megabytes a call are quickest.

    Args:
        rows: Conversations and documents.
        tokenizer: Its template says how they are written.
        many: Whether the encoder of many texts, which takes up to a second to make, is worth it.
        files: Where the rows came from.

    Raises:
        DataError: If the template has no form for a row, or a text holds a lone surrogate.
    """
    if isinstance(tokenizer.template, BaseTemplate):
        found = encode_rendered(_normal_rows(rows, tokenizer), tokenizer, many=many)
        if found.refused:
            raise _at_line(*found.refused[0], files)
        return _encoded(found, tokenizer)
    turns = _collect(rows)
    kind, per_row = np.array(turns.kind, np.int64), np.array(turns.per_row, np.int64)
    shapes, shaped, shape = _shapes(rows, turns.kinds, kind, per_row, tokenizer, files)
    weights = RowWeights()
    for one in turns.kinds:
        weights.numbered([one.train, *one.trains])
    slots = _compile(shapes, shaped, tokenizer, weights)
    texts = tokenizer.spelled(turns.texts)
    begun = tokenizer.spelled(_begun(turns, tokenizer)) if tokenizer.vocabulary.prefix else texts
    text_tokens, text_lengths = tokenizer.encode_each(begun, many=many)

    per_turn = slots.per_shape[shape]
    slot = _ranges(_starts(slots.per_shape)[shape], per_turn)
    is_part = slots.is_part[slot]
    lengths = slots.length[slot]
    lengths[is_part] = text_lengths

    fixed = slot[~is_part]
    places = _ranges(_starts(lengths)[~is_part], slots.length[fixed])
    from_text = np.ones(lengths.sum(), bool)
    from_text[places] = False
    tokens = np.empty(len(from_text), np.uint32)
    tokens[from_text] = text_tokens
    tokens[places] = slots.tokens[_ranges(_starts(slots.length)[fixed], slots.length[fixed])]

    spans = spans_of(
        lengths,
        slots.part[slot],
        conversation=np.repeat(np.repeat(np.arange(len(rows)), per_row), per_turn),
        message=np.repeat(_ranges(np.zeros_like(per_row), per_row), per_turn),
        role=slots.role[slot],
        kind=slots.kind[slot],
        train=slots.train[slot],
    )
    table = _table(rows, spans, with_pair_ids(rows, _digests(turns, texts)))
    return Encoded(tokens, spans, table, np.array(weights.table))


def encode_counted(
    rows: Sequence[Row], tokenizer: Tokenizer, tally: Tally, files: Files = _UNNAMED
) -> Encoded:
    """Encode rows, count those whose text was changed, and leave out those that are refused.

    A base refuses rows that its template rewrites, or for which its tokenizer has no token.
    """
    normal = _normal_rows(rows, tokenizer)
    changed = sum(new is not old for new, old in zip(normal, rows, strict=True))
    if changed:
        form = tokenizer.vocabulary.normal_form
        tally.notes[f"put into the tokenizer's normal form ({form})"] += changed
    normal = in_pairs(normal, _writable(normal, tokenizer, tally, files), tally.dropped)
    if not isinstance(tokenizer.template, BaseTemplate):
        return encode_rows(normal, tokenizer, files=files)
    found = encode_rendered(normal, tokenizer, many=True)
    for row, reason in found.refused:
        if tally.strict:
            raise _at_line(row, reason, files)
        tally.dropped[f"the base's template cannot be proved: {reason}"] += 1
    whole = in_pairs(normal, found.rows, tally.dropped)
    if len(whole) < len(found.rows):
        found = encode_rendered(whole, tokenizer, many=True)
    tally.notes.update(found.notes)
    return _encoded(found, tokenizer)


def _normal_rows(rows: Sequence[Row], tokenizer: Tokenizer) -> list[Row]:
    if not tokenizer.vocabulary.normal_form:
        return list(rows)
    return [_normal(row, tokenizer.vocabulary.normalised) for row in rows]


def _begun(turns: _Turns, tokenizer: Tokenizer) -> list[str]:
    """Return the parts of all turns, documents with the space that the base writes before them."""
    parts = iter(turns.texts)
    return [
        next(parts) if kind else tokenizer.vocabulary.prefixed(next(parts))
        for kind in turns.kind
        for _ in turns.kinds[kind].parts
    ]


def _writable(rows: list[Row], tokenizer: Tokenizer, tally: Tally, files: Files) -> list[Row]:
    """Leave out rows that would not come back from their ids."""
    if not (tokenizer.vocabulary.lacking or tokenizer.vocabulary.prefix):
        return rows
    kept = []
    for row in rows:
        reason = tokenizer.unspelled(utf8(_collect([row]).texts))
        if isinstance(row, Document):
            reason = reason or tokenizer.lost_space(row.text)
        if reason and tally.strict:
            raise _at_line(row, reason, files)
        if reason:
            tally.dropped[reason] += 1
        else:
            kept.append(row)
    return kept


def _normal(row: Row, normalised: Callable[[str], str]) -> Row:
    if isinstance(row, Document):
        text = normalised(row.text)
        return row if text == row.text else replace(row, text=text)
    turns = tuple(
        replace(turn, parts=tuple(replace(p, text=normalised(p.text)) for p in turn.parts))
        for turn in row.messages
    )
    return row if turns == row.messages else replace(row, messages=turns)


def _encoded(found: Rendered, tokenizer: Tokenizer) -> Encoded:
    """Return rows with their digests; turns of one conversation share the half that splits rows."""
    wholes, turns = (_collect(rows) for rows in (found.whole, found.rows))
    halves = _digests(wholes, tokenizer.spelled(wholes.texts))
    own = _digests(turns, tokenizer.spelled(turns.texts))
    digests = [whole[:8] + row[8:] for whole, row in zip(halves, own, strict=True)]
    table = _table(found.rows, found.spans, with_pair_ids(found.rows, digests))
    return Encoded(found.tokens, found.spans, table, np.array(found.weights))


def _at_line(row: Row, reason: str, files: Files) -> DataError:
    file, line = row.origin
    place = f"{one_line(files[file])}:{line}" if file in files else f"line {line}"
    return DataError(f"{place}: {reason}" if line else reason)


def row_digests(rows: Sequence[Row]) -> list[bytes]:
    """Return for each row 16 bytes that stand for what it says, wherever it came from.

    They are the first of a blake3 digest over ``role train kind length kind length ...``, a
    line for each turn with its parts' lengths in bytes, an empty line, and the parts' UTF-8.
    Where a part speaks for itself its kind is ``kind:train``.
    """
    return with_pair_ids(rows, _digests(turns := _collect(rows), utf8(turns.texts)))


def _digests(turns: _Turns, texts: list[bytes]) -> list[bytes]:
    sizes = list(map(len, texts))
    forms = [_line_of(kind) for kind in turns.kinds]
    n_parts = [len(kind.parts) for kind in turns.kinds]
    digests, turn, part = [], 0, 0
    for n_turns in turns.per_row:
        kinds = turns.kind[turn : turn + n_turns]
        last = part + sum([n_parts[kind] for kind in kinds])
        head = "".join([forms[kind] for kind in kinds]) % tuple(sizes[part:last])
        said = b"".join((head.encode(), b"\n", *texts[part:last]))
        digests.append(blake3(said).digest(length=16))
        turn, part = turn + n_turns, last
    return digests


def _line_of(kind: _Kind) -> str:
    """Return a turn's line of its row's digest, with room for the sizes of its parts."""
    if kind.role == "text":  # a document does without its size
        return "text\n%.0s" if kind.train is None else f"text {kind.train}\n%.0s"
    named = zip((WRITTEN_AS[part] for part in kind.parts), kind.trains, strict=True)
    parts = [part if train is None else f"{part}:{train}" for part, train in named]
    return f"{kind.role} {kind.train} {' '.join(f'{part} %d' for part in parts)}\n"


def _collect(rows: Sequence[Row]) -> _Turns:
    kinds, numbers = [_DOCUMENT], dict[tuple[object, ...], int]()
    kind: list[int] = []
    per_row: list[int] = []
    texts: list[str] = []
    key: tuple[object, ...]
    for row in rows:
        if isinstance(row, Document):
            key = ("text", row.train)
            if row.train is not None and key not in numbers:
                numbers[key] = len(kinds)
                kinds.append(_DOCUMENT._replace(train=row.train))
            kind.append(0 if row.train is None else numbers[key])
            texts.append(row.text)
            per_row.append(1)
            continue
        per_row.append(len(row.messages))
        for turn in row.messages:
            parts = turn.parts
            if len(parts) == 1:
                key = (turn.role, turn.train, parts[0].kind, parts[0].train)
                texts.append(parts[0].text)
            else:
                key = (turn.role, turn.train, *[(part.kind, part.train) for part in parts])
                texts += [part.text for part in parts]
            number = numbers.get(key)
            if number is None:
                number = numbers[key] = len(kinds)
                named, trains = [part.kind for part in parts], [part.train for part in parts]
                kinds.append(_Kind(turn.role, turn.train, tuple(named), tuple(trains)))
            kind.append(number)
    return _Turns(kinds, kind, per_row, texts)


def _shapes(
    rows: Sequence[Row],
    kinds: Sequence[_Kind],
    kind: NDArray[np.int64],
    per_row: NDArray[np.int64],
    tokenizer: Tokenizer,
    files: Files,
) -> tuple[list[Shape], list[_Kind], NDArray[np.int64]]:
    """Return the shapes of turns, the kind of turn that has each, and which one is whose, (T,)."""
    code = 2 * kind
    code[_starts(per_row)[per_row > 0]] += 1
    codes, where, shape = np.unique(code, return_index=True, return_inverse=True)
    shaped = [kinds[number] for number in (codes // 2).tolist()]
    shapes: list[Shape] = [
        (one.role, bool(opens), one.parts)
        for one, opens in zip(shaped, (codes % 2).tolist(), strict=True)
    ]
    row_of = np.searchsorted(np.cumsum(per_row), where, side="right")
    for index in np.argsort(where):
        try:
            tokenizer.form(shapes[index])
        except DataError as error:
            raise _at_line(rows[row_of[index]], str(error), files) from None
    return shapes, shaped, shape


def _compile(
    shapes: Sequence[Shape], shaped: Sequence[_Kind], tokenizer: Tokenizer, weights: RowWeights
) -> _Slots:
    forms = [tokenizer.form(shape) for shape in shapes]
    per_shape = np.array([len(form) for form in forms], np.int64)
    role = np.array([ROLE[role] for role, _, _ in shapes], np.uint8)
    slots = [slot for form in forms for slot in form]
    fixed = [
        np.array([tokenizer.special_id(slot.special)], np.uint32)
        if slot.special is not None
        else tokenizer.encode_part(slot.text or "")
        for slot in slots
    ]
    return _Slots(
        per_shape,
        np.repeat(role, per_shape),
        np.array([slot.kind for slot in slots], np.uint8),
        np.array([slot.part for slot in slots], np.int64),
        np.array([slot.is_part for slot in slots], bool),
        weights.numbered(
            _train(slot, one) for one, form in zip(shaped, forms, strict=True) for slot in form
        ),
        np.array([len(ids) for ids in fixed], np.int64),
        np.concatenate([np.empty(0, np.uint32), *fixed]),
    )


def _train(slot: Slot, turn: _Kind) -> Train:
    """Return what a span says about its mask; headers and ends belong to no part."""
    own = None if slot.kind in (KIND["header"], KIND["end"]) else turn.trains[slot.part]
    return turn.train if own is None else own


def _table(
    rows: Sequence[Row], spans: NDArray[np.void], digests: Sequence[bytes]
) -> NDArray[np.void]:
    table = np.zeros(len(rows), ROW_DTYPE)
    # A row without tokens has no span and stops where the row before it does.
    stops = np.append(np.uint64(0), spans["stop"])
    table["stop"] = stops[
        np.searchsorted(spans["conversation"], np.arange(len(rows)), side="right")
    ]
    table["start"][1:] = table["stop"][:-1]
    table["file"] = [row.origin.file for row in rows]
    table["line"] = [row.origin.line for row in rows]
    table["digest"] = np.frombuffer(b"".join(digests), "V16")
    return table


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(lengths) - lengths


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``starts[0], starts[0] + 1, ...``, ``lengths[0]`` of them, then the next range."""
    return np.repeat(starts - _starts(lengths), lengths) + np.arange(lengths.sum())
