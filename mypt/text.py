"""Text made fit to be looked at: nothing in it can steer a terminal or hide from a reader."""

import unicodedata
from collections.abc import Iterable
from typing import Any

_VISIBLE = frozenset("\n\u200c\u200d")  # the joiners stand inside words and emoji
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_LONGEST = 60


def visible(text: str) -> str:
    r"""Return ``text`` with every character escaped that is not seen but has an effect.

    Control characters (escape sequences among them), bidirectional overrides, invisible
    format characters and Unicode's own line ends become ``\x1b``, ``\u202e`` and the like;
    a line feed stays, a tab becomes ``\t``.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def _shown(char: str) -> str:
    if char in _VISIBLE or unicodedata.category(char) not in _HIDDEN:
        return char
    return char.encode("unicode_escape").decode()


def shorten(texts: Iterable[str], length: int) -> str:
    """Return the texts joined in one visible line of at most ``length`` characters."""
    joined = " ".join(" ".join(texts).split())
    return visible(joined if len(joined) <= length else joined[: length - 1] + "\u2026")


def printable(name: str) -> str:
    """Return a file's name so that no control character in it reaches the terminal."""
    return name if name.isprintable() else repr(name)


def shown(value: Any) -> str:
    """Return a short, one-line picture of a value that should not have been there."""
    if isinstance(value, str):
        return repr(value[:_LONGEST]) + (" ..." if len(value) > _LONGEST else "")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return "a huge number" if abs(value) > 1e18 else f"the number {value}"
    if isinstance(value, list):
        return f"an array of {len(value)}"
    if isinstance(value, dict):
        return f"an object with the fields {names(value)}" if value else "an empty object"
    return "null" if value is None else f"a value of type {type(value).__name__}"


def names(fields: Any) -> str:
    """Return the first few field names of a row, for an error."""
    listed = [name if name.isprintable() else repr(name) for name in map(str, fields)]
    short = ", ".join(name[:_LONGEST] for name in listed[:8])
    return short + (" ..." if len(listed) > 8 else "")
