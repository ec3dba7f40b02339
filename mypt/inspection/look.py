"""What raw files would become, before anything is written: how they are read, and two rows."""

from collections.abc import Collection, Iterator, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from mypt.config import MaskPolicy, Source
from mypt.data.conversations import Conversation, Row
from mypt.data.manifest import Count, SourceRecord
from mypt.data.masking import mask_from_spans, weight_table
from mypt.data.preparation.encoding import encode_rows
from mypt.data.reading.containers import container_of
from mypt.data.reading.formats.chats import IDS
from mypt.data.reading.formats.threads import links_of
from mypt.data.reading.raw import RawFile
from mypt.data.reading.readers import FROM_TEXT, values_of
from mypt.data.reading.records import MEANINGLESS, Unread
from mypt.data.reading.sources import SourceReader, open_source
from mypt.data.tokenizer import Tokenizer
from mypt.errors import DataError
from mypt.inspection.rowview import RowView
from mypt.inspection.terminal import WAY_TO_READ, render_view
from mypt.text import names, visible

_ROWS = 2
_LOOKED_AT = 1000
_LONGEST = 500
"""Characters of a stretch that are shown."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a source is read, all of it, and its first rows."""

    record: SourceRecord
    why: str
    """Why it is of this format."""
    fields: tuple[str, ...]
    """Fields of its first thousand rows; none where they have none."""
    unread: dict[str, Unread]
    """Fields that were not read, such as "'context' of the row"."""
    meaningless: frozenset[str]
    """Names of fields that say nothing a model could learn."""
    rows: tuple[RowView, ...]
    wanted: str
    """Why no dataset can be made of it as asked, and what to say besides; empty where one can."""


def look_at(source: Source, tokenizer: Tokenizer, policy: MaskPolicy | None) -> Look:
    """Read a source to its end, and keep nothing but its first rows and what is counted.

    Args:
        source: What to read.
        tokenizer: What the rows are shown in.
        policy: Whose tokens are learned; None: no masks.

    Raises:
        ConfigError: If the source contradicts itself.
        DataError: If it cannot be read to its end.
    """
    reader, wanted = open_source(source), ""
    rows, first = iter(reader), list[Row]()
    try:
        first += islice(rows, _ROWS)
        for _ in rows:
            pass
    except DataError as error:
        if not reader.finished:
            raise
        wanted = str(error).removeprefix(f"{reader.name}: ")
    held = _first_values(reader, first[0].origin.file) if first else []
    fields = tuple(dict.fromkeys(key for row in held for key in row))
    views = tuple(_view(i, row, reader, tokenizer, policy) for i, row in enumerate(first))
    why = _why(source, held[0] if held else ())
    meaningless = frozenset(fields) & _silent(reader, held) | reader.meaningless
    return Look(reader.record(), why, fields, reader.unread, meaningless, views, wanted)


def _first_values(reader: SourceReader, file: int) -> list[dict[str, Any]]:
    """Return what stands first in one of the files, if it has fields; none in a text."""
    raw = RawFile(Path(reader.files[file].path), encoding=reader.how.encoding)
    if reader.format in FROM_TEXT and container_of(raw, text=True) == "text":
        return []
    values = (record.value for record in values_of(raw, reader.how))
    return [value for value in islice(values, _LOOKED_AT) if isinstance(value, dict)]


def _silent(reader: SourceReader, held: list[dict[str, Any]]) -> Set[str]:
    """Return the fields that a format passes over so quickly that nobody counts them."""
    if reader.format in ("messages", "sharegpt", "tree"):
        return IDS | MEANINGLESS
    if reader.format != "chat":
        return frozenset()
    links = links_of(held[0], reader.how.group_by) if held else None
    told = (links.group, links.parent, links.own, *links.orders) if links else ()
    return MEANINGLESS.difference(told)


def _why(source: Source, fields: Collection[str]) -> str:
    if source.format != "auto":
        return "as --format says"
    if source.mapping is not None:
        return "as there is a mapping"
    said = next((knob for knob in ("turns", "group_by", "markup") if getattr(source, knob)), "")
    if said:
        return f"as --{said} says"
    return f"by the fields {names(fields)}" if fields else "by how it begins"


def _view(
    index: int, row: Row, reader: SourceReader, tokenizer: Tokenizer, policy: MaskPolicy | None
) -> RowView:
    path = reader.files[row.origin.file].path
    encoded = encode_rows([row], tokenizer, many=False, files={row.origin.file: path})
    weights, said = None, tuple(encoded.weights.tolist())
    if policy is not None:
        n_tokens = len(encoded.tokens)
        mask = mask_from_spans(
            encoded.spans, n_tokens, policy, source=reader.name, row_weights=said
        )
        weights = np.array(weight_table(policy, [reader.name], said)).take(mask)
    return RowView(
        split="train",
        index=index,
        source=reader.name,
        where=f"{Path(path).name}:{row.origin.line}",
        tokens=encoded.tokens,
        weights=weights,
        spans=encoded.spans,
        row_weights=said,
        digest=None,
        side=row.side if isinstance(row, Conversation) else "",
    )


def render_look(
    look: Look, tokenizer: Tokenizer, policy: MaskPolicy | None
) -> Iterator[RenderableType]:
    """Yield what people read of it, as things that rich can print."""
    record = look.record

    def unread(name: str) -> bool:
        return any(said.startswith(f"{name!r} of ") for said in look.unread)

    def unread_note(note: Count) -> bool:
        return any(note.reason.startswith(f"{name} was not read") for name in look.unread)

    lines = [
        ("file", f"{record.name}: {record.format}, {look.why}"),
        ("rows", f"{record.rows_read:,} read"),
        *(("dropped", f"{count.rows:,}: {count.reason}") for count in record.dropped),
        *(("changed", f"{n.rows:,}: {n.reason}") for n in record.notes if not unread_note(n)),
    ]
    known = [name for name in look.fields if not unread(name)]
    kinds = {
        "read": [name for name in known if name not in look.meaningless],
        "aside": [name for name in known if name in look.meaningless],
    }
    said = {"read": "", "aside": ": without meaning for a model"}
    lines += [(kind, f"{', '.join(some)}{said[kind]}") for kind, some in kinds.items() if some]
    for name, found in sorted(look.unread.items()):
        varies = "varies" if found.varies else "is always the same"
        lines.append(("not read", f"{name}: held by {found.rows:,}, {varies}"))
    if look.unread:
        lines.append(("", WAY_TO_READ))
    lines += [("wanted", look.wanted)] * bool(look.wanted)
    for word, text in lines:
        yield Text(f"{word:<10}{visible(text)}")
    for view in look.rows:
        yield from render_view(view, tokenizer, policy, longest=_LONGEST)
