"""Many texts to ids in few calls: what a call costs is paid once for hundreds of messages."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tiktoken
from numpy.typing import NDArray

from mypt.data.fast_engine import FastEngine, fast_engine
from mypt.data.vocabulary import Vocabulary
from mypt.errors import DataError

_SEPARATOR = b"\x1f"
"""Parts the texts of one call; a control character that text hardly ever holds."""
_CHUNK = 1 << 18
"""Bytes a call: enough to forget what it costs, few enough for the cache."""
_ROOM = 16
"""Bytes that encoding a character may take, at its peak."""


class TextEncoder:
    """Encodes texts as ordinary text, each to the ids that it has alone.

    tiktoken encodes what lies between special tokens as if nothing stood around it, so texts
    are joined by a separator that is the only special token known here: no text can name
    another one, nor hide the separator in one. The encoding may be shared by threads.

    Where gigatoken is installed it does the work, proven equal on the first calls of the input
    and on a sample of each of the others.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._separator_id = len(vocabulary.tokens)
        separator = {_SEPARATOR.decode(): self._separator_id}
        self._encoding = encoding_of(vocabulary, separator)
        self.fast = fast_engine(vocabulary, separator)
        """The quicker engine; None takes tiktoken alone."""

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the ids of all texts, one after the other, and how many each has.

        Raises:
            DataError: If a text holds a lone surrogate, which no bytes can stand for.
        """
        return self.encode_utf8(utf8(texts))

    def encode_utf8(self, texts: Sequence[bytes]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the same for texts as UTF-8."""
        encoded = [self._encode_chunk(chunk) for chunk in _chunks(texts)]
        if not encoded:
            return np.empty(0, np.uint32), np.empty(0, np.int64)
        ids, lengths = zip(*encoded, strict=True)
        return np.concatenate(ids), np.concatenate(lengths)

    def _encode_chunk(self, texts: Sequence[bytes]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        joined = _SEPARATOR.join([*texts, b""])
        if joined.count(_SEPARATOR) != len(texts):
            encoded = [encode_ordinary(self._encoding, text.decode()) for text in texts]
            return np.concatenate(encoded), np.array([len(ids) for ids in encoded], np.int64)
        ids = self._reference(joined) if self.fast is None else self.fast.encode(joined)
        separates = ids == self._separator_id
        stops = np.flatnonzero(separates)
        if self.fast is not None:
            self._check(self.fast, texts, ids, stops)
        return ids[~separates], np.diff(stops, prepend=-1) - 1

    def _check(
        self,
        fast: FastEngine,
        texts: Sequence[bytes],
        ids: NDArray[np.uint32],
        stops: NDArray[np.int64],
    ) -> None:
        """Compare some of the texts of one call, whose ids end at ``stops``, with tiktoken's."""
        first, last = fast.sample(texts)
        if len(stops) != len(texts):  # a separator was missed: whose ids are whose, nobody knows
            first, last, stops = 0, len(texts), np.full(len(texts), len(ids) - 1)
        if first < last:
            start = stops[first - 1] + 1 if first else 0
            expected = self._reference(_SEPARATOR.join([*texts[first:last], b""]))
            fast.check(ids[start : stops[last - 1] + 1], expected)

    def _reference(self, joined: bytes) -> NDArray[np.uint32]:
        return encode_ordinary(self._encoding, joined.decode(), {_SEPARATOR.decode()})


def encoding_of(vocabulary: Vocabulary, special_tokens: dict[str, int]) -> tiktoken.Encoding:
    """Return the tiktoken encoding of a vocabulary under these special tokens.

    Raises:
        ValueError: If the vocabulary's pattern is no regular expression.
    """
    return tiktoken.Encoding(
        f"mypt_{vocabulary.name}",
        pat_str=vocabulary.pattern,
        mergeable_ranks={token: rank for rank, token in enumerate(vocabulary.tokens)},
        special_tokens=special_tokens,
    )


def encode_ordinary(
    encoding: tiktoken.Encoding, text: str, allowed: frozenset[str] | set[str] = frozenset()
) -> NDArray[np.uint32]:
    """Return the ids of ``text``; only the ``allowed`` special tokens are seen in it.

    Raises:
        DataError: If the text holds a lone surrogate; tiktoken's other calls would silently
            put U+FFFD in its place.
        MemoryError: If there is no room for the ids.
    """
    np.empty(_ROOM * len(text), np.uint8)  # raises where tiktoken would end the process
    try:
        return encoding.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
    except UnicodeEncodeError as error:
        raise _lone_surrogate(error) from None


def utf8(texts: Iterable[str]) -> list[bytes]:
    """Return texts as UTF-8.

    Raises:
        DataError: If one holds a lone surrogate, which no bytes can stand for.
    """
    try:
        return [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise _lone_surrogate(error) from None


def _lone_surrogate(error: UnicodeEncodeError) -> DataError:
    return DataError(
        f"text holds the lone surrogate U+{ord(error.object[error.start]):04X}, which stands for"
        " no character and has no UTF-8; expected Unicode text; repair the source"
    )


def _chunks(texts: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut texts where the next piece of ``_CHUNK`` bytes begins."""
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    number = (np.cumsum(sizes) - sizes) // _CHUNK
    first = [*np.flatnonzero(np.diff(number, prepend=-1)).tolist(), len(texts)]
    for start, stop in itertools.pairwise(first):
        yield texts[start:stop]
