"""A row written down segment by segment, without numpy: what the product's encoding is held to."""

from typing import NamedTuple

from mypt.data.conversations import Document, Part
from mypt.data.spans import BY_POLICY, KIND, ROLE


class Segment(NamedTuple):
    """Text, or one special token; no merge of the tokenizer may cross its ends (law 1)."""

    text: str | None
    special: str | None
    role: int
    kind: int
    message: int
    train: int
    part: int = 0


def render(template, row):
    """Return the segments of one conversation or document, none of them empty.

    ``template`` may be a tokenizer too, which alone knows how a document is written.
    """
    if isinstance(row, Document):
        return turn(template, "text", 0, (Part("text", row.text),), None)
    turns = enumerate(row.messages)
    return [s for n, one in turns for s in turn(template, one.role, n, one.parts, one.train)]


def turn(template, role, index, parts, train):
    texts = iter([part.text for part in parts])
    train = BY_POLICY if train is None else int(train)
    segments = []
    for slot in template.form((role, index == 0, tuple(part.kind for part in parts))):
        text = next(texts) if slot.is_part else slot.text
        if text != "":
            own = None if slot.kind in (KIND["header"], KIND["end"]) else parts[slot.part].train
            where = (ROLE[role], slot.kind, index, train if own is None else int(own), slot.part)
            segments.append(Segment(text, slot.special, *where))
    return segments
