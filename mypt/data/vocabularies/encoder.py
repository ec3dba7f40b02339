"""Many texts to ids in few calls: what a call costs is paid once for hundreds of messages.

tiktoken encodes; gigatoken, many times quicker, only as long as it gives the same ids (D52).
"""

import base64
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import tiktoken
from numpy.typing import NDArray

from mypt.data.vocabularies.engine import lone_surrogate
from mypt.data.vocabularies.vocabulary import Vocabulary, with_short_runs
from mypt.errors import DataError

SCHEMES = {"gpt2": "gpt2", "cl100k_base": "gpt4", "o200k_base": "o200k"}
"""What gigatoken calls the published patterns; it does not take one by its text."""
PROBED_FIRST = 4
"""Calls of the input at hand that are checked whole, before any other."""
PROBED_SHARE = 256
"""After them, of every so many bytes one is checked: it costs a tenth of the encoding."""
_STRIDE = 7919  # a prime: where in a call the sample begins moves through all its texts
_LOOK_AFTER = 32 << 20  # bytes of text between two looks at the memory
_GROWTH = 256 << 20  # bytes; it keeps every piece that it has seen, without limit
_SEPARATOR = b"\x1f"
"""Parts the texts of one call; a control character that text hardly ever holds."""
_CHUNK = 1 << 18
"""Bytes a call: enough to forget what it costs, few enough for the cache."""
_ROOM = 16
"""Bytes that encoding a character may take, at its peak."""


class FastEngine:
    """Encodes as tiktoken does; what it says is compared with tiktoken's ids time and again."""

    def __init__(self, vocabulary: Vocabulary, special_tokens: dict[str, int]) -> None:
        self._vocabulary, self._special_tokens = vocabulary, special_tokens
        self._lock = Lock()  # its cache is written while it encodes
        self._calls = self._unchecked = self._unseen = 0
        self._engine = self._load()
        self._memory = _resident_bytes()

    def encode(self, data: bytes) -> NDArray[np.uint32]:
        """Return the ids of UTF-8 text."""
        with self._lock:
            self._unseen += len(data)
            if self._unseen > _LOOK_AFTER:
                self._unseen = len(data)
                if _resident_bytes() > self._memory + _GROWTH:
                    self._engine = self._load()
            ids: NDArray[np.uint32] = self._engine.encode(data)
        return ids

    def sample(self, texts: Sequence[bytes]) -> tuple[int, int]:
        """Return which texts of the next call to check, the first and the one past the last.

        A text that is longer than the share of one call waits until its turn has come.
        """
        self._calls += 1
        if self._calls <= PROBED_FIRST:
            return 0, len(texts)
        sizes = [len(text) for text in texts]
        self._unchecked += sum(sizes)
        first = last = self._calls * _STRIDE % len(texts)
        while last < len(texts) and sizes[last] * PROBED_SHARE <= self._unchecked:
            self._unchecked -= sizes[last] * PROBED_SHARE
            last += 1
        return first, last

    def check(self, ours: NDArray[np.uint32], reference: NDArray[np.uint32]) -> None:
        """Compare with tiktoken's ids of the same text.

        Raises:
            DataError: If they differ.
        """
        if np.array_equal(ours, reference):
            return
        n = min(len(ours), len(reference))
        at = int(np.append(ours[:n] != reference[:n], True).argmax())
        raise DataError(
            f"gigatoken {version('gigatoken')} gives other ids than tiktoken for"
            f" {self._vocabulary.name}, first at token {at} of call {self._calls}; expected the"
            " same; nothing was written, remove it with 'pip uninstall gigatoken'"
        )

    def _load(self) -> Any:  # gigatoken is optional
        from gigatoken.gigatoken_rs import BPETokenizer

        tokens = self._vocabulary.tokens
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ranks.tiktoken"
            ranks = (base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens))
            path.write_bytes(b"".join(ranks))
            scheme = SCHEMES[self._vocabulary.name]
            return BPETokenizer.from_tiktoken(path, scheme, self._special_tokens)


def _resident_bytes() -> int:
    import psutil  # the fast engine alone asks

    return int(psutil.Process().memory_info().rss)


def fast_engine(vocabulary: Vocabulary, special_tokens: dict[str, int]) -> FastEngine | None:
    """Return the engine where it is installed and knows the vocabulary's pattern."""
    if vocabulary.name not in SCHEMES or find_spec("gigatoken") is None:
        return None
    return FastEngine(vocabulary, special_tokens)


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

    def encode(self, texts: Sequence[bytes]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the ids of all texts, one after the other, and how many each has."""
        encoded = [self._encode_chunk(chunk) for chunk in _chunks(texts)]
        if not encoded:
            return np.empty(0, np.uint32), np.empty(0, np.int64)
        ids, lengths = zip(*encoded, strict=True)
        return np.concatenate(ids), np.concatenate(lengths)

    def _encode_chunk(self, texts: Sequence[bytes]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        joined = _SEPARATOR.join([*texts, b""])
        if joined.count(_SEPARATOR) != len(texts):
            return encode_each(self._encoding, texts)
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
        mergeable_ranks={token: rank for rank, token in enumerate(vocabulary.tokens) if token},
        special_tokens=special_tokens,
    )


def encode_ordinary(
    encoding: tiktoken.Encoding, text: str, allowed: frozenset[str] | set[str] = frozenset()
) -> NDArray[np.uint32]:
    """Return the ids of ``text``; only the ``allowed`` special tokens are seen in it.

    Raises:
        DataError: If the text holds a lone surrogate; tiktoken's other calls would silently
            put U+FFFD in its place. Likewise for a run of a million white spaces.
        MemoryError: If there is no room for the ids.
    """
    np.empty(_ROOM * len(text), np.uint8)  # raises where tiktoken would end the process
    try:
        return encoding.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
    except UnicodeEncodeError as error:
        raise lone_surrogate(error) from None
    except ValueError:
        with_short_runs(text)  # says what is the matter
        raise


def encode_each(
    encoding: tiktoken.Encoding, texts: Sequence[bytes]
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return what :meth:`TextEncoder.encode` does, a call a text."""
    encoded = [encode_ordinary(encoding, text.decode()) for text in texts]
    ids = np.concatenate([np.empty(0, np.uint32), *encoded])
    return ids, np.array([len(part) for part in encoded], np.int64)


def utf8(texts: Iterable[str]) -> list[bytes]:
    """Return texts as UTF-8.

    Raises:
        DataError: If one holds a lone surrogate, which no bytes can stand for.
    """
    try:
        return [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise lone_surrogate(error) from None


def _chunks(texts: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut texts where the next piece of ``_CHUNK`` bytes begins."""
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    number = (np.cumsum(sizes) - sizes) // _CHUNK
    first = [*np.flatnonzero(np.diff(number, prepend=-1)).tolist(), len(texts)]
    for start, stop in itertools.pairwise(first):
        yield texts[start:stop]
