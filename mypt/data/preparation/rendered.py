"""Rows written by a base's own chat template, as tokens and spans.

All text between two special tokens is encoded as one, as ``apply_chat_template`` would, so the
ids are the base's; a token that crosses two pieces belongs to the one in which it ends. Only
where an answer begins may no token cross: there inference stops feeding, and what it fed must be
what training reads, id for id. Special tokens are seen in what the template writes, never in what
an author says.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mypt.data.conversations import Conversation, Document, Message, Row
from mypt.data.rendering.base_template import BaseTemplate
from mypt.data.rendering.marks import Unproved
from mypt.data.rendering.written import (
    Passage,
    Written,
    mixes_calls,
    tiled,
    write_prompt,
    write_turns,
)
from mypt.data.spans import KIND, ROLE, RowWeights, spans_of
from mypt.data.tokenizer import Tokenizer

_TEXT: Final = -1
_MIXED: Final = "calls beside one that failed, which the base's template writes as one: all failed"


class Rendered(NamedTuple):
    """Rows as tokens and spans, but for those that were refused."""

    rows: list[Row]
    whole: list[Row]
    """What each of them is of: itself, or a conversation whose turns are rows of their own."""
    tokens: NDArray[np.uint32]
    spans: NDArray[np.void]
    weights: tuple[float, ...]
    """What ``train`` of the spans counts from 2 on."""
    refused: list[tuple[Row, str]]
    """Rows and why."""
    notes: Counter[str]
    """What was noticed, and in how many rows."""


class _Found(NamedTuple):
    whole: Row
    row: Row
    written: Written
    tokens: NDArray[np.uint32]
    counts: NDArray[np.int64]
    """Tokens that end in each piece."""


class _Cut(NamedTuple):
    """A row's special tokens, with the texts between them."""

    ids: list[int]
    """The id of a special token, :data:`_TEXT` for a text."""
    texts: list[str]
    fed: list[str]
    """The text before each beginning of an answer, back to the last special token."""


def encode_rendered(rows: Sequence[Row], tokenizer: Tokenizer, *, many: bool) -> Rendered:
    """Encode rows in the form of the base's own template; texts are in their normal form."""
    controls = controls_of(tokenizer)
    kept: list[tuple[Row, Row, Written, _Cut]] = []
    refused: list[tuple[Row, str]] = []
    notes = Counter[str]()
    turns = [(whole, row) for whole in rows for row in _each_turn(whole, tokenizer)]
    notes["turns in rows of their own, as inference sees them"] += len(turns) - len(rows)
    for whole, row in turns:
        try:
            written = _begun(_written(row, tokenizer, controls), tokenizer, controls)
            cut = _cut(written, tokenizer, controls)
        except Unproved as error:
            refused.append((row, str(error)))
            continue
        notes["reasoning of earlier turns left out by the base's template"] += written.stripped
        notes["text that spells a token of the base stays text"] += _spells(written, controls)
        notes[_MIXED] += isinstance(row, Conversation) and mixes_calls(row.messages)
        kept.append((whole, row, written, cut))
    ids = _encode([cut for *_, cut in kept], tokenizer, many)
    found: list[_Found] = []
    for (whole, row, written, _), (tokens, fed) in zip(kept, ids, strict=True):
        try:
            counts = _counts(written, tokens, fed, tokenizer)
            found.append(_Found(whole, row, written, tokens, counts))
        except Unproved as error:
            refused.append((row, str(error)))
    return _rendered(found, refused, +notes)


def _each_turn(row: Row, tokenizer: Tokenizer) -> list[Row]:
    """Return a row for each turn that may be learned, what stands before it being context."""
    template = tokenizer.template
    if isinstance(row, Document) or not (isinstance(template, BaseTemplate) and template.each_turn):
        return [row]
    answers = [n for n, turn in enumerate(row.messages) if turn.role == "assistant"]
    learned = [n for n in answers if row.messages[n].train is not False] or answers[-1:]
    rows: list[Row] = []
    for last in learned:
        before = (
            replace(turn, train=False, parts=tuple(replace(p, train=None) for p in turn.parts))
            if turn.role == "assistant"
            else turn
            for turn in row.messages[:last]
        )
        rows.append(replace(row, messages=(*before, row.messages[last])))
    return rows or [row]


def encode_prompt(turns: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Return the ids that inference feeds for an answer to a conversation.

    Raises:
        Unproved: If the template cannot be proved for it.
    """
    template = tokenizer.template
    assert isinstance(template, BaseTemplate), "the caller has looked"
    controls = controls_of(tokenizer)
    written = _begun(write_prompt(template, turns, controls), tokenizer, controls)
    cut = _cut(written, tokenizer, controls)
    ((tokens, _),) = _encode([cut], tokenizer, many=False)
    return list(tokens.tolist())


def controls_of(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Return what finds special tokens in a template's own text, the longest first."""
    longest_first = sorted(tokenizer.special_tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def _written(row: Row, tokenizer: Tokenizer, controls: re.Pattern[str]) -> Written:
    if isinstance(row, Document):
        begin, end = tokenizer.vocabulary.begin, tokenizer.vocabulary.end
        said = tokenizer.vocabulary.prefixed(row.text)
        role, text = ROLE["text"], begin + said + end
        pieces = [
            Passage(len(begin), role, KIND["header"], 0, row.train, False),
            Passage(len(begin + said), role, KIND["content"], 0, row.train, True),
            Passage(len(text), role, KIND["end"], 0, row.train, False),
        ]
        return Written(text, tiled(pieces), [], False)
    template = tokenizer.template
    assert isinstance(template, BaseTemplate), "the caller has looked"
    written = write_turns(template, row.messages, controls)
    if tokenizer.vocabulary.normalised(written.text) != written.text:
        raise Unproved("the template and a text beside it make another normal form")
    return written


def _spells(written: Written, controls: re.Pattern[str]) -> bool:
    at = 0
    for piece in written.pieces:
        if piece.own and controls.search(written.text, at, piece.stop):
            return True
        at = piece.stop
    return False


def _begun(written: Written, tokenizer: Tokenizer, controls: re.Pattern[str]) -> Written:
    """Write the spaces that the base's tokenizer puts before stretches of text.

    A space belongs to what follows it; where an answer begins with one, the model writes it.
    """
    vocabulary = tokenizer.vocabulary
    if not vocabulary.prefix or (written.pieces and written.pieces[0].role == ROLE["text"]):
        return written
    spaced, at, spaces = list[str](), 0, list[int]()
    for start, stop in [*_places(written, controls), (len(written.text), len(written.text))]:
        stretch = vocabulary.prefixed(written.text[at:start], at)
        if len(stretch) > start - at:
            spaces.append(at)
        spaced += [stretch, written.text[start:stop]]
        at = stop

    def moved(place: int) -> int:
        return place + bisect_left(spaces, place)

    return written._replace(
        text="".join(spaced),
        pieces=[piece._replace(stop=moved(piece.stop)) for piece in written.pieces],
        begins=[moved(begin) for begin in written.begins],
    )


def _places(written: Written, controls: re.Pattern[str]) -> list[tuple[int, int]]:
    """Return where the template wrote special tokens."""
    places: list[tuple[int, int]] = []
    at = 0
    for own, stop in _runs(written.pieces):
        if not own:
            places += [match.span() for match in controls.finditer(written.text, at, stop)]
        at = stop
    return places


def _cut(written: Written, tokenizer: Tokenizer, controls: re.Pattern[str]) -> _Cut:
    """Cut what was written at the special tokens that the template wrote."""
    template = tokenizer.template
    places = _places(written, controls)
    cut = _Cut([], [], [])
    begins, at = iter(written.begins), 0
    begin = next(begins, None)
    for start, stop in [*places, (len(written.text), len(written.text))]:
        while begin is not None and begin <= start:
            cut.fed.append(written.text[at:begin])
            begin = next(begins, None)
        if begin is not None and begin < stop:
            raise Unproved("an answer begins inside a token")
        between, token = written.text[at:start], written.text[start:stop]
        if isinstance(template, BaseTemplate):
            _check_eaten(template, written.text, token, start, stop)
        if between:
            cut.ids.append(_TEXT)
            cut.texts.append(between)
        if token:
            cut.ids.append(tokenizer.special_tokens[token])
        at = stop
    return cut


def _runs(pieces: Sequence[Passage]) -> list[tuple[bool, int]]:
    """Return stretches of the template's or of an author's text, whatever they are for."""
    runs: list[tuple[bool, int]] = []
    for piece in pieces:
        if runs and runs[-1][0] is piece.own is False:
            runs.pop()
        runs.append((piece.own, piece.stop))
    return runs


def _check_eaten(template: BaseTemplate, text: str, token: str, start: int, stop: int) -> None:
    before = token in template.eats_before and text[:start][-1:].isspace()
    if before or (token in template.eats_after and text[stop : stop + 1].isspace()):
        raise Unproved("white space beside a token that swallows it")


def _encode(
    cuts: Sequence[_Cut], tokenizer: Tokenizer, many: bool
) -> list[tuple[NDArray[np.uint32], list[NDArray[np.uint32]]]]:
    """Return each row's ids, and the ids of what is fed before each of its answers."""
    texts = [text for cut in cuts for text in (*cut.texts, *cut.fed)]
    flat, lengths = tokenizer.encode_each(tokenizer.spelled(texts), many=many)
    parts = iter(np.split(flat, np.cumsum(lengths)[:-1]) if texts else [])
    found = []
    for cut in cuts:
        own = [next(parts) for _ in cut.texts]
        fed = [next(parts) for _ in cut.fed]
        between = iter(own)
        row = [next(between) if n == _TEXT else np.array([n], np.uint32) for n in cut.ids]
        found.append((np.concatenate([np.empty(0, np.uint32), *row]), fed))
    return found


def _counts(
    written: Written,
    tokens: NDArray[np.uint32],
    fed: Sequence[NDArray[np.uint32]],
    tokenizer: Tokenizer,
) -> NDArray[np.int64]:
    """Return how many tokens end in each piece.

    Raises:
        Unproved: If the ids that inference feeds are not those that training reads.
    """
    sizes = tokenizer.byte_sizes[tokens].astype(np.int64)
    ends = np.cumsum(sizes)
    data = written.text.encode()
    total = int(ends[-1]) if len(ends) else 0
    assert total == len(data), "ids of a text give its bytes back"
    offset = _byte_offsets(written.text, data)
    for begin, expected in zip(written.begins, fed, strict=True):
        at = int(np.searchsorted(ends, offset[begin]))
        aligned = begin == 0 or (at < len(ends) and ends[at] == offset[begin])
        read = tokens[at + 1 - len(expected) : at + 1]
        if not aligned or not np.array_equal(read, expected):
            raise Unproved("the first letters of an answer melt with its header into one token")
    bounds = np.array([offset[piece.stop] for piece in written.pieces], np.int64)
    where = np.searchsorted(bounds, ends, side="left")
    return np.bincount(where, minlength=len(bounds)).astype(np.int64)


def _byte_offsets(text: str, data: bytes) -> NDArray[np.int64]:
    """Return where each character begins in UTF-8, and where the last one ends."""
    units = np.frombuffer(data, np.uint8)
    starts = np.flatnonzero((units & 0xC0) != 0x80)
    assert len(starts) == len(text), "one first byte a character"
    return np.append(starts, len(data)).astype(np.int64)


def _rendered(
    found: Sequence[_Found], refused: list[tuple[Row, str]], notes: Counter[str]
) -> Rendered:
    pieces = [piece for one in found for piece in one.written.pieces]
    per_row = [len(one.written.pieces) for one in found]
    columns = np.array([piece[1:4] for piece in pieces], np.int64).reshape(-1, 3)
    weights = RowWeights()
    counts = np.concatenate([np.empty(0, np.int64), *(one.counts for one in found)])
    spans = spans_of(
        counts,
        np.zeros(len(pieces)),
        conversation=np.repeat(np.arange(len(found)), per_row),
        role=columns[:, 0].astype(np.uint8),
        kind=columns[:, 1].astype(np.uint8),
        message=columns[:, 2],
        train=weights.numbered(piece.train for piece in pieces),
    )
    return Rendered(
        [one.row for one in found],
        [one.whole for one in found],
        np.concatenate([np.empty(0, np.uint32), *(one.tokens for one in found)]),
        spans,
        weights.table,
        refused,
        notes,
    )
