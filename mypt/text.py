"""Text made fit to be looked at: nothing in it can steer a terminal or hide from a reader.

One escaping, :func:`visible`; the others differ in what they are for: JSON, a line, a line of
bounded length, a value in an error, the field names of a row.
"""

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

_VISIBLE = frozenset("\n\u200c\u200d")  # the joiners stand inside words and emoji
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_LONGEST = 60
_ADDRESS = re.compile(
    r"((?:(?:https?|ftp)://|www\.)[^\s`|]*|[^\s`|]{1,64}@[^\s`|]+)", re.IGNORECASE
)
_MARKS = re.compile(r"[\\`*_{}\[\]()<>#+!|&~]")


def visible(text: str) -> str:
    r"""Return ``text`` with every character escaped that is not seen but has an effect.

    Control characters (escape sequences among them), bidirectional overrides, invisible
    format characters and Unicode's own line ends become ``\x1b``, ``\u202e`` and the like;
    a line feed stays, a tab becomes ``\t``.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    if char in _VISIBLE or unicodedata.category(char) not in _HIDDEN:
        return char
    return char.encode("unicode_escape").decode()


def visible_json(text: str) -> str:
    r"""Return JSON that says the same with what :func:`visible` escapes as ``\u202e`` and so on."""
    return "".join(char if _escaped(char) == char else json.dumps(char)[1:-1] for char in text)


def one_line(text: str) -> str:
    r"""Return ``text`` as one visible line: a line feed becomes ``\n``."""
    return visible(text).replace("\n", "\\n")


def shorten(text: str, length: int) -> str:
    """Return ``text`` as one visible line of at most ``length`` characters, blanks for its ends."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= length else line[: length - 1] + "\u2026"


def counted(n: int, thing: str) -> str:
    """Return a number with its noun, ``1 row`` or ``2,000 rows``."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def markdown(text: str) -> str:
    """Return ``text`` as one visible line that Markdown shows as it is: no link, image or HTML.

    Addresses stand in code spans: whatever else is done to them, somebody makes links of them.
    """
    parts = _ADDRESS.split(one_line(text))  # every second one is an address
    shown = (f"`{part}`" if n % 2 else _MARKS.sub(r"\\\g<0>", part) for n, part in enumerate(parts))
    return "".join(shown)


def shown(value: Any) -> str:
    """Return a short, one-line picture of a value that should not have been there."""
    if isinstance(value, str):
        return f"'{one_line(value[:_LONGEST])}'" + (" ..." if len(value) > _LONGEST else "")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return "a huge number" if abs(value) > 1e18 else f"the number {value}"
    if isinstance(value, list):
        return f"an array of {len(value)}"
    if isinstance(value, dict):
        return f"an object with the fields {names(value)}" if value else "an empty object"
    return "null" if value is None else f"a value of type {type(value).__name__}"


def names(fields: Iterable[Any]) -> str:
    """Return the first few field names of a row, for an error."""
    listed = [one_line(str(name))[:_LONGEST] for name in fields]
    return ", ".join(listed[:8]) + (" ..." if len(listed) > 8 else "")
