"""Rows: what each says, whether its text looks damaged, whether it is rendered as it should be.

Tokens go back to the row, and the row to tokens once more. This trusts neither spans nor mask: if a
span is off by one token, the text that it gives back is another one, and so is everything that
template and tokenizer make of it.
"""

import re
from array import array
from dataclasses import dataclass, replace
from typing import Final, cast

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from mypt.config import Role
from mypt.data.conversations import (
    Conversation,
    Document,
    Message,
    Origin,
    Part,
    PartKind,
    Row,
    Train,
)
from mypt.data.dataset import Dataset
from mypt.data.manifest import SPLITS, Split
from mypt.data.preparation.encoding import encode_rows, row_digest
from mypt.data.rendering.base_template import BaseTemplate
from mypt.data.spans import KIND, KINDS, ROLE, ROLES, RowWeights
from mypt.data.tokenizer import Tokenizer
from mypt.errors import MyptError
from mypt.inspection.checks.contents import part_forms
from mypt.inspection.checks.findings import EXAMPLES, FEW_TWINS, Findings, Where
from mypt.inspection.rowview import RowView, count_rows, iter_rows, read_row

PARTS: Final[dict[int, PartKind]] = {
    KIND["content"]: "text",
    KIND["reasoning"]: "reasoning",
    KIND["tool_call"]: "tool_call",
}
"""Which part of a message a span of each kind holds; headers and ends hold none."""

_LAYOUT: Final = ["role", "kind", "message", "train"]
_MARKED: Final = (KIND["reasoning"], KIND["tool_call"])
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


def read_back(view: RowView, tokenizer: Tokenizer) -> Row:
    """Return the row that a view's spans and tokens tell of.

    Neighbouring parts of one kind come back as one; bytes that are no UTF-8 as U+FFFD.
    """
    origin = Origin(0, 1)
    if view.spans is None or not len(view.spans):
        return Document(tokenizer.decode_part(view.tokens), origin)
    turns: dict[int, tuple[int, list[Train], list[Part]]] = {}
    said_of = {-1: None, 0: False, 1: True} | {
        int(np.uint8(number).view(np.int8)): weight
        for number, weight in enumerate(view.row_weights, 2)
    }
    forms = part_forms(tokenizer.template)
    # Plain tuples: reading the fields of numpy's records one by one takes most of the time.
    for start, stop, _, turn, role, kind, train in view.spans.tolist():
        _, whole, parts = turns.setdefault(turn, (role, [], []))
        if kind not in PARTS:
            whole.append(said_of[train])
        else:
            read = tokenizer.decode if role == ROLE["text"] else tokenizer.decode_part
            said, form = read(view.tokens[start:stop]), forms.get(PARTS[kind])
            if form is not None:
                said = said.removeprefix(form.open).removesuffix(form.close)
            parts.append(Part(PARTS[kind], said, said_of[train]))
    if view.spans["role"][0] == ROLE["text"]:
        said = "".join(p.text for *_, parts in turns.values() for p in parts)
        own = said_of[int(view.spans["train"][0])]
        return Document(said, origin, own)
    messages = (
        _message(cast(Role, ROLES[role]), whole, parts) for role, whole, parts in turns.values()
    )
    return Conversation(tuple(messages), origin)


def _message(role: Role, whole: list[Train], parts: list[Part]) -> Message:
    """Return a turn; what its header and end say, or all its parts, is the turn's own word."""
    said = set(whole) or {part.train for part in parts}
    train = said.pop() if len(said) == 1 else None
    kept = (replace(part, train=None) if part.train == train else part for part in parts)
    return Message(role, tuple(kept) or (Part("text", ""),), train)


def check_digest(view: RowView, row: Row, findings: Findings, *, by_base: bool = False) -> None:
    """Compare the digest of what tokens and spans tell with the digest of what was read.

    Rows with marked parts are left out: where two such parts meet cannot be seen any more. So
    are turns whose parts speak for themselves, since a template may write no header beside them.
    """
    if view.digest is None or view.spans is None or _has_gaps(view):
        return
    trimmed = by_base and isinstance(row, Conversation)  # its template owns the white space
    marked = np.isin(view.spans["kind"], _MARKED).any() or _is_mixed(view.spans)
    if not (marked or trimmed) and row_digest(row) != view.digest:
        findings.add("digest_differs", place(view))


def _is_mixed(spans: NDArray[np.void]) -> bool:
    same = spans["message"][1:] == spans["message"][:-1]
    return bool((same & (spans["train"][1:] != spans["train"][:-1])).any())


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
        again = encode_rows([row], tokenizer)
        known = RowWeights()
        known.numbered(view.row_weights)
        known.add(again.spans, again.weights.tolist())
    except MyptError as error:
        return str(error)
    if not np.array_equal(view.spans[_LAYOUT], again.spans[_LAYOUT]):
        return "other spans than its text gives"
    for span, other in zip(view.spans, again.spans, strict=True):
        found = view.tokens[span["start"] : span["stop"]]
        expected = again.tokens[other["start"] : other["stop"]]
        one, two = tokenizer.decode_bytes(found), tokenizer.decode_bytes(expected)
        written = span["kind"] in _WRITTEN
        if one != two or (written and not np.array_equal(found, expected)):
            return f"turn {span['message']}, {KINDS[span['kind']]}: {one!r} found, {two!r} expected"
    return ""


def forgeries(tokenizer: Tokenizer) -> dict[str, re.Pattern[str]]:
    """Return what finds text that looks like the work of a template, by the finding's name."""
    specials = (re.escape(text) for text in tokenizer.special_tokens)
    found = {"looks_like_tag": re.compile("|".join((*TAGS, *specials)), re.IGNORECASE)}
    template = tokenizer.template
    # The headers of a base's own template are tokens, which no text can spell.
    headers = () if isinstance(template, BaseTemplate) else template.text_headers
    if headers:
        found["looks_like_turn"] = re.compile(
            rf"^(?:{'|'.join(map(re.escape, headers))})\s*$", re.MULTILINE
        )
    return found


def check_text(
    view: RowView, row: Row, forged: dict[str, re.Pattern[str]], findings: Findings
) -> bytes:
    """Check what a row says.

    Returns:
        Eight bytes that are the same for rows that differ in case and white space only.
    """
    hasher = blake3()
    for role, text in _said(row):
        hasher.update(f"{role}\n{' '.join(text.casefold().split())}\n".encode())
        if _REPLACEMENT in text:
            position = text.index(_REPLACEMENT)
            detail = repr(text[max(0, position - 20) : position + 20])
            findings.add("replacement", place(view, detail))
        for code, pattern in forged.items():
            if found := pattern.search(text):
                findings.add(code, place(view, f"{role}: {found.group()!r}"))
    return hasher.digest(length=8)


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
    folded: array[int] = array("Q")
    rendered = 0
    for view in iter_rows(dataset, split):
        row = read_back(view, dataset.tokenizer)
        check_digest(view, row, findings, by_base=by_base)
        folded.frombytes(check_text(view, row, forged, findings))
        if view.index % step == 0:
            check_rendering(view, row, dataset.tokenizer, findings)
            rendered += 1
    exact = [_first_eight(shard.rows) for shard in dataset.shards(split) if shard.rows is not None]
    digests = _Split(
        np.concatenate([np.empty(0, np.uint64), *exact]), np.array(folded, dtype=np.uint64)
    )
    return digests, rendered


def _first_eight(rows: NDArray[np.void]) -> Digests:
    return np.ascontiguousarray(rows["digest"]).view(np.uint64)[::2]


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
