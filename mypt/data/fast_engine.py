"""gigatoken, many times quicker than tiktoken, used only as long as it gives the same ids."""

import base64
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from mypt.data.vocabulary import Vocabulary
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
    return int(psutil.Process().memory_info().rss)


def fast_engine(vocabulary: Vocabulary, special_tokens: dict[str, int]) -> FastEngine | None:
    """Return the engine where it is installed and knows the vocabulary's pattern."""
    if vocabulary.name not in SCHEMES or find_spec("gigatoken") is None:
        return None
    return FastEngine(vocabulary, special_tokens)
