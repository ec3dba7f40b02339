"""From tokens back to the row, and from the row to tokens once more: do they agree?

This trusts neither spans nor mask: if a span is off by one token, the text that it gives back
is another one, and so is everything that template and tokenizer make of it.
"""

from typing import Final, cast

import numpy as np

from mypt.config import Role
from mypt.data.checks.report import Findings, Place
from mypt.data.checks.shards import part_forms
from mypt.data.conversations import Conversation, Document, Message, Origin, Part, PartKind, Row
from mypt.data.preparation.encoding import encode_rows, row_digest
from mypt.data.rowview import RowView
from mypt.data.spans import BY_POLICY, KIND, KINDS, ROLE, ROLES
from mypt.data.tokenizer import Tokenizer
from mypt.errors import MyptError

PARTS: Final[dict[int, PartKind]] = {
    KIND["content"]: "text",
    KIND["reasoning"]: "reasoning",
    KIND["tool_call"]: "tool_call",
}
"""Which part of a message a span of each kind holds; headers and ends hold none."""

_TRAIN: Final = {BY_POLICY: None, 0: False, 1: True}
_LAYOUT: Final = ["role", "kind", "message", "train"]
_MARKED: Final = (KIND["reasoning"], KIND["tool_call"])
_WRITTEN: Final = (KIND["header"], KIND["end"])


def place(view: RowView, detail: str = "") -> Place:
    """Return the place of a row."""
    return Place(split=view.split, row=view.index, where=view.where, detail=detail)


def read_back(view: RowView, tokenizer: Tokenizer) -> Row:
    """Return the row that a view's spans and tokens tell of.

    Neighbouring parts of one kind come back as one; bytes that are no UTF-8 as U+FFFD.
    """
    origin = Origin(0, 1)
    if view.spans is None or not len(view.spans):
        return Document(tokenizer.decode(view.tokens), origin)
    turns: dict[int, tuple[int, int, list[Part]]] = {}
    forms = part_forms(tokenizer.template)
    # Plain tuples: reading the fields of numpy's records one by one takes most of the time.
    for start, stop, _, turn, role, kind, train in view.spans.tolist():
        parts = turns.setdefault(turn, (role, train, []))[2]
        if kind in PARTS:
            said, form = tokenizer.decode(view.tokens[start:stop]), forms.get(PARTS[kind])
            if form is not None:
                said = said.removeprefix(form.open).removesuffix(form.close)
            parts.append(Part(PARTS[kind], said))
    if view.spans["role"][0] == ROLE["text"]:
        return Document("".join(p.text for *_, parts in turns.values() for p in parts), origin)
    messages = (
        Message(cast(Role, ROLES[role]), tuple(parts) or (Part("text", ""),), _TRAIN[train])
        for role, train, parts in turns.values()
    )
    return Conversation(tuple(messages), origin)


def check_digest(view: RowView, row: Row, findings: Findings) -> None:
    """Compare the digest of what tokens and spans tell with the digest of what was read.

    Rows with marked parts are left out: where two such parts meet cannot be seen any more.
    """
    if view.digest is None or view.spans is None or _has_gaps(view):
        return
    marked = np.isin(view.spans["kind"], _MARKED).any()
    if not marked and row_digest(row) != view.digest:
        findings.add("digest_differs", place(view))


def _has_gaps(view: RowView) -> bool:
    """Return whether a turn has no token, as a template without headers allows."""
    return view.spans is not None and bool((np.diff(view.spans["message"], prepend=0) > 1).any())


def check_rendering(view: RowView, row: Row, tokenizer: Tokenizer, findings: Findings) -> None:
    """Render and encode what a row says once more, and compare the two span by span.

    Headers and ends must be the same tokens, content the same bytes: content that was given
    in several pieces was encoded in several pieces, which cannot be seen any more.
    """
    if view.spans is None:
        return
    if _has_gaps(view):
        return
    try:
        again = encode_rows([row], tokenizer)
    except MyptError as error:
        findings.add("rendering_differs", place(view, str(error)))
        return
    if not np.array_equal(view.spans[_LAYOUT], again.spans[_LAYOUT]):
        findings.add("rendering_differs", place(view, "other spans than its text gives"))
        return
    for span, other in zip(view.spans, again.spans, strict=True):
        found = view.tokens[span["start"] : span["stop"]]
        expected = again.tokens[other["start"] : other["stop"]]
        one, two = tokenizer.decode_bytes(found), tokenizer.decode_bytes(expected)
        written = span["kind"] in _WRITTEN
        if one != two or (written and not np.array_equal(found, expected)):
            detail = (
                f"turn {span['message']}, {KINDS[span['kind']]}: {one!r} found, {two!r} expected"
            )
            findings.add("rendering_differs", place(view, detail[:200]))
            return
