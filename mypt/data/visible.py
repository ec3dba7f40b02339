"""Text made fit to be looked at: nothing in it can steer a terminal or hide from a reader."""

import codecs
import unicodedata
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mypt.data.tokenizer import Tokenizer

_SHOWN = frozenset("\n\u200c\u200d")  # the joiners stand inside words and emoji
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


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
    if char in _SHOWN or unicodedata.category(char) not in _HIDDEN:
        return char
    return char.encode("unicode_escape").decode()


def token_texts(tokenizer: Tokenizer, ids: NDArray[np.uint32]) -> list[str]:
    r"""Return the visible text of each token, one item an id.

    A character whose bytes lie in several tokens stands at the last of them, the others are
    empty; bytes that are no UTF-8 are shown as ``\xff``.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
    pieces = [decoder.decode(tokenizer.decode_bytes(ids[n : n + 1])) for n in range(len(ids))]
    if pieces:
        pieces[-1] += decoder.decode(b"", final=True)
    return [visible(piece) for piece in pieces]


def shorten(texts: Iterable[str], length: int) -> str:
    """Return the texts joined in one visible line of at most ``length`` characters."""
    joined = " ".join(" ".join(texts).split())
    return visible(joined if len(joined) <= length else joined[: length - 1] + "\u2026")
