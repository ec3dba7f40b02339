"""Rows: what each says, whether its text looks damaged, whether it is rendered as it should be.

Tokens go back to the row, and the row to tokens once more. This trusts neither spans nor mask: if a
span is off by one token, the text that it gives back is another one, and so is everything that
template and tokenizer make of it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from mypt.data.conversations import WRITTEN_AS, Document, Part, Row
from mypt.data.dataset import Dataset
from mypt.data.manifest import SPLITS, Split
from mypt.data.preparation.encoding import Encoded, encode_rows, row_digests
from mypt.data.rendering.base_template import BaseTemplate
from mypt.data.spans import KIND, KINDS, ROLE, RowWeights
from mypt.data.tokenizer import Tokenizer
from mypt.errors import MyptError
from mypt.inspection.checks.blocks import LAYOUT, RowBlock, blocks, read_back
from mypt.inspection.checks.findings import EXAMPLES, FEW_TWINS, Findings, Where
from mypt.inspection.rowview import RowView, count_rows, read_row

_MARKED: Final = tuple(KIND[kind] for kind in WRITTEN_AS if kind != "text")
_WRITTEN: Final = (KIND["header"], KIND["end"])
TAGS: Final = (
    r"</?(?:user|assistant|system|human|tool)>",
    r"<\|\w{1,30}\|>",
    r"\[/?INST\]",
    r"<</?SYS>>",
)
"""What role tags look like in other people's data; the tokenizer's own are added."""
_REPLACEMENT = "\ufffd"
RENDERED = 2000
"""Rows of each split, evenly spread, that are rendered and encoded once more."""
Digests = NDArray[np.uint64]


def place(view: RowView, detail: str = "") -> Where:
    """Return the place of a row."""
    return Where(split=view.split, row=view.index, where=view.where, detail=detail)


def _digests_differ(block: RowBlock, rows: list[Row], *, by_base: bool) -> NDArray[np.int64]:
    """Return the rows whose tokens and spans tell of something else than what was read.

    Rows with marked parts are left out: where two such parts meet cannot be seen any more. So
    are turns whose parts speak for themselves, since a template may write no header beside them,
    turns without a token, and conversations whose white space a base's own template owns.
    """
    if block.shard.spans is None:
        return np.empty(0, np.int64)
    spans = block.spans
    row = spans["conversation"].astype(np.int64) - block.start
    opens = np.diff(row, prepend=-1) != 0
    message, train = spans["message"].astype(np.int64), spans["train"]
    before = np.where(opens, 0, np.roll(message, 1))
    unsure = np.isin(spans["kind"], _MARKED) | (message - before > 1)
    unsure |= ~opens & (message == before) & (train != np.roll(train, 1))
    if by_base:
        unsure |= spans["role"] != ROLE["text"]
    found = np.frombuffer(b"".join(row_digests(rows)), "V16")
    differs = found != block.table["digest"]
    hidden = np.zeros(len(rows), np.bool_)
    hidden[row[unsure]] = True
    if block.paired:
        hidden |= hidden[np.arange(len(rows)) ^ 1]
    return np.flatnonzero(differs & ~hidden)


def _has_gaps(view: RowView) -> bool:
    """Return whether a turn has no token, as a template without headers allows."""
    return view.spans is not None and bool((np.diff(view.spans["message"], prepend=0) > 1).any())


def check_rendering(view: RowView, row: Row, tokenizer: Tokenizer, findings: Findings) -> None:
    """Render and encode what a row says once more, and compare the two span by span.

    Headers and ends must be the same tokens, content the same bytes: content that was given
    in several pieces was encoded in several pieces, which cannot be seen any more.
    """
    if view.spans is None or _has_gaps(view):
        return
    tried = [row]
    if isinstance(tokenizer.template, BaseTemplate):
        if np.isin(view.spans["kind"], _MARKED).any():
            return  # where its tags end and the author's words begin cannot be seen any more
        tried += [_trimmed(row, 1), _trimmed(row, None)]
    differences = [_difference(view, one, tokenizer) for one in tried]
    if all(differences):
        findings.add("rendering_differs", place(view, differences[0][:200]))


def _alike(views: list[RowView], rows: list[Row], tokenizer: Tokenizer) -> list[bool]:
    """Return for each row whether rendering all of them in one call gives its very tokens.

    Where it does not, or one row is refused, :func:`check_rendering` looks at the row itself.
    """
    try:
        again = _encoded_again(rows, tokenizer, views[0].row_weights if views else ())
    except MyptError:
        return [False] * len(rows)
    edges = np.searchsorted(again.spans["conversation"], np.arange(len(rows) + 1)).tolist()
    places = zip(views, pairwise(edges), again.rows["start"], again.rows["stop"], strict=True)
    return [
        view.spans is not None
        and np.array_equal(view.tokens, again.tokens[start:stop])
        and np.array_equal(view.spans["stop"], again.spans["stop"][a:b] - start)
        and np.array_equal(view.spans[LAYOUT], again.spans[a:b][LAYOUT])
        for view, (a, b), start, stop in places
    ]


def _encoded_again(rows: list[Row], tokenizer: Tokenizer, weights: Sequence[float]) -> Encoded:
    """Return rows encoded once more, their spans with the dataset's own numbers of weights."""
    again = encode_rows(rows, tokenizer)
    known = RowWeights()
    known.numbered(weights)
    known.add(again.spans, again.weights.tolist())
    return again


def _trimmed(row: Row, most: int | None) -> Row:
    """Return a conversation without white space round its texts, or without the first space."""
    if isinstance(row, Document):
        return row
    turns = tuple(
        replace(
            turn, parts=(Part("text", turn.text.strip() if most is None else turn.text[most:]),)
        )
        if most is None or turn.text.startswith(" ")
        else turn
        for turn in row.messages
    )
    return replace(row, messages=turns)


def _difference(view: RowView, row: Row, tokenizer: Tokenizer) -> str:
    """Return how a row's tokens differ from what its text gives; empty where they do not."""
    assert view.spans is not None, "the caller has looked"
    try:
        again = _encoded_again([row], tokenizer, view.row_weights)
    except MyptError as error:
        return str(error)
    if not np.array_equal(view.spans[LAYOUT], again.spans[LAYOUT]):
        return "other spans than its text gives"
    for span, other in zip(view.spans, again.spans, strict=True):
        found = view.tokens[span["start"] : span["stop"]]
        expected = again.tokens[other["start"] : other["stop"]]
        one, two = tokenizer.decode_bytes(found), tokenizer.decode_bytes(expected)
        written = span["kind"] in _WRITTEN
        if one != two or (written and not np.array_equal(found, expected)):
            return f"turn {span['message']}, {KINDS[span['kind']]}: {one!r} found, {two!r} expected"
    return ""


class Forgery(NamedTuple):
    """What finds text that looks like the work of a template."""

    pattern: re.Pattern[str]
    hints: tuple[str, ...]
    """One of them stands in whatever the pattern matches; quicker to look for."""


def forgeries(tokenizer: Tokenizer) -> dict[str, Forgery]:
    """Return what finds text that looks like the work of a template, by the finding's name."""
    specials = list(tokenizer.special_tokens)
    pattern = "|".join((*TAGS, *map(re.escape, specials)))
    begins = {case for text in ("<", "[", *specials) for case in (text[0].lower(), text[0].upper())}
    found = {"looks_like_tag": Forgery(re.compile(pattern, re.IGNORECASE), tuple(sorted(begins)))}
    template = tokenizer.template
    # The headers of a base's own template are tokens, which no text can spell.
    headers = () if isinstance(template, BaseTemplate) else template.text_headers
    if headers:
        pattern = rf"^(?:{'|'.join(map(re.escape, headers))})\s*$"
        found["looks_like_turn"] = Forgery(re.compile(pattern, re.MULTILINE), tuple(headers))
    return found


def check_texts(
    rows: list[Row],
    forged: dict[str, Forgery],
    place_of: Callable[[int, str], Where],
    found: Findings,
) -> bytes:
    """Check what rows say.

    Returns:
        Eight bytes a row that are the same for rows that differ in case and white space only.
    """
    folded = []
    hints = (_REPLACEMENT, *(hint for forgery in forged.values() for hint in forgery.hints))
    for number, row in enumerate(rows):
        whole = "".join([f" \0{role}\0 {text}" for role, text in _said(row)])
        same = " ".join(whole.casefold().split())
        folded.append(blake3(same.encode()).digest(length=8))
        for hint in hints:
            if hint in whole:
                _look_closer(_said(row), forged, partial(place_of, number), found)
                break
    return b"".join(folded)


def _look_closer(
    said: list[tuple[str, str]],
    forged: dict[str, Forgery],
    place_of: Callable[[str], Where],
    found: Findings,
) -> None:
    for role, text in said:
        if _REPLACEMENT in text:
            position = text.index(_REPLACEMENT)
            found.add("replacement", place_of(repr(text[max(0, position - 20) : position + 20])))
        for code, forgery in forged.items():
            if match := forgery.pattern.search(text):
                found.add(code, place_of(f"{role}: {match.group()!r}"))


def _said(row: Row) -> list[tuple[str, str]]:
    if isinstance(row, Document):
        return [("text", row.text)]
    return [(message.role, message.text) for message in row.messages]


@dataclass(frozen=True, slots=True)
class _Split:
    """Sixteen bytes a row are all that is kept of a split, whatever its rows hold."""

    exact: Digests
    """(R,) first eight bytes of the digest of what was read."""
    folded: Digests
    """(R,) the same over case-folded text with white space folded."""


def check_rows(dataset: Dataset, findings: Findings) -> int:
    """Read every row once, then compare the rows with each other.

    Returns:
        How many rows were rendered and encoded once more.
    """
    if any(shard.rows is None for split in SPLITS for shard in dataset.shards(split)):
        return 0  # made by hand: nobody recorded where a row ends
    rendered = 0
    found = {}
    for split in SPLITS:
        found[split], again = _read_split(dataset, split, findings)
        rendered += again
        _check_doubled(dataset, split, found[split], findings)
    _check_leaks(dataset, found["train"], found["val"], findings)
    return rendered


def _read_split(dataset: Dataset, split: Split, findings: Findings) -> tuple[_Split, int]:
    forged = forgeries(dataset.tokenizer)
    by_base = isinstance(dataset.tokenizer.template, BaseTemplate)
    step = max(1, -(-count_rows(dataset, split) // RENDERED))
    folded = bytearray()
    rendered = 0
    for block in blocks(dataset, split):
        rows = read_back(block)

        def place_of(number: int, detail: str = "", *, first: int = block.first) -> Where:
            return place(read_row(dataset, split, first + number), detail)

        for number in _digests_differ(block, rows, by_base=by_base).tolist():
            findings.add("digest_differs", place_of(number))
        folded += check_texts(rows, forged, place_of, findings)
        chosen = range(-block.first % step, len(rows), step)
        views = [read_row(dataset, split, block.first + number) for number in chosen]
        again = [rows[number] for number in chosen]
        alike = _alike(views, again, dataset.tokenizer)
        for view, row, same in zip(views, again, alike, strict=True):
            if not same:
                check_rendering(view, row, dataset.tokenizer, findings)
        rendered += len(chosen)
    # Of a pair the first eight bytes are its id, which both sides have.
    half = int(dataset.paired)
    exact = [_half(shard.rows, half) for shard in dataset.shards(split) if shard.rows is not None]
    digests = _Split(
        np.concatenate([np.empty(0, np.uint64), *exact]), np.frombuffer(bytes(folded), np.uint64)
    )
    return digests, rendered


def _half(rows: NDArray[np.void], which: int) -> Digests:
    return np.ascontiguousarray(rows["digest"]).view(np.uint64)[which::2]


def _copies(digests: Digests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows that repeat an earlier row, and the row just before each that is equal."""
    order = np.argsort(digests, kind="stable")
    same = digests[order[1:]] == digests[order[:-1]]
    later, before = order[1:][same], order[:-1][same]
    in_order = np.argsort(later)
    return later[in_order], before[in_order]


def _check_doubled(dataset: Dataset, split: Split, rows: _Split, findings: Findings) -> None:
    exact, twins = _copies(rows.exact)
    _add(dataset, split, "doubled", exact, twins, findings)
    folded, near = _copies(rows.folded)
    new = ~np.isin(folded, exact)
    _add(dataset, split, "doubled_folded", folded[new], near[new], findings)


def _check_leaks(dataset: Dataset, train: _Split, val: _Split, findings: Findings) -> None:
    exact = np.isin(val.exact, train.exact)
    folded = np.isin(val.folded, train.folded) & ~exact
    few = bool(folded.sum() <= FEW_TWINS * len(folded))
    for code, leaks, known, digests, expected in (
        ("leak", exact, train.exact, val.exact, False),
        ("leak_folded", folded, train.folded, val.folded, few),
    ):
        rows = np.flatnonzero(leaks)
        twins = [int(np.flatnonzero(known == digests[row])[0]) for row in rows[:EXAMPLES]]
        twin_rows = np.array(twins, dtype=np.int64)
        _add(dataset, "val", code, rows, twin_rows, findings, "train row", expected=expected)


def _add(
    dataset: Dataset,
    split: Split,
    code: str,
    rows: NDArray[np.int64],
    twins: NDArray[np.int64],
    findings: Findings,
    what: str = "row",
    *,
    expected: bool = False,
) -> None:
    for row, twin in zip(rows[:EXAMPLES], twins[:EXAMPLES], strict=True):
        view = read_row(dataset, split, int(row))
        findings.add(code, place(view, f"as {what} {twin}"), 0)
    if len(rows):
        findings.add(code, count=len(rows), expected=expected)
