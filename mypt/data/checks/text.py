"""What a single row says, and whether its text looks damaged."""

import re
from typing import Final

from blake3 import blake3

from mypt.data.checks.rendering import place
from mypt.data.checks.report import Findings
from mypt.data.conversations import Document, Row
from mypt.data.rowview import RowView
from mypt.data.tokenizer import Tokenizer

TAGS: Final = (
    r"</?(?:user|assistant|system|human|tool)>",
    r"<\|\w{1,30}\|>",
    r"\[/?INST\]",
    r"<</?SYS>>",
)
"""What role tags look like in other people's data; the tokenizer's own are added."""

_REPLACEMENT = "\ufffd"


def tag_pattern(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Return what finds text that looks like a role tag."""
    specials = (re.escape(text) for text in tokenizer.special_tokens)
    return re.compile("|".join((*TAGS, *specials)), re.IGNORECASE)


def check_text(view: RowView, row: Row, tags: re.Pattern[str], findings: Findings) -> bytes:
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
        if found := tags.search(text):
            findings.add("looks_like_tag", place(view, f"{role}: {found.group()!r}"))
    return hasher.digest(length=8)


def _said(row: Row) -> list[tuple[str, str]]:
    if isinstance(row, Document):
        return [("text", row.text)]
    return [(message.role, message.text) for message in row.messages]
