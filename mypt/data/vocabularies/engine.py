"""A vocabulary run by the package ``tokenizers``, where no tiktoken encoding gives its ids.

What is run is the base's ``tokenizer.json`` without its control tokens: they are in neither its
vocabulary nor its added tokens, so no text can encode to one, whatever the text says.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mypt.errors import DataError

SPACE: Final = "\u2581"
"""What SentencePiece writes for a space."""


def without_controls(values: dict[str, Any], controls: set[str]) -> dict[str, Any]:
    """Return a ``tokenizer.json`` that knows text only.

    Unicode normalisation is left out too: texts are normalised before they are encoded, so that
    what was changed can be counted.
    """
    model = values["model"]
    words = {word: number for word, number in model["vocab"].items() if word not in controls}
    text = [a for a in values["added_tokens"] if a["content"] not in controls]
    words |= {a["content"]: a["id"] for a in text}
    kept = {"unk_token": None, "fuse_unk": False, "vocab": words}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": text,
        "normalizer": _spaces(values.get("normalizer")),
        "pre_tokenizer": _cuts(values.get("pre_tokenizer")), "post_processor": None,
        "decoder": None,
        "model": model | kept,
    }  # fmt: skip


def flat(stage: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """Return the stages of a ``Sequence``, or the one that there is; an empty one is none."""
    if stage is None:
        return []
    return [one for part in stage[key] for one in flat(part, key)] if key in stage else [stage]


def _cuts(stage: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return how text is cut, but for what our own exports take out of it.

    Spaces that nobody said are written before, as text, so that it is known where they stand.
    """
    stages = [
        {k: v for k, v in s.items() if k != "add_prefix_space"} | {"prepend_scheme": "never"}
        if s["type"] == "Metaspace"
        else s
        for s in flat(stage, "pretokenizers")
        if s.get("behavior") != "Removed"
    ]
    return {"type": "Sequence", "pretokenizers": stages} if stages else None


def _spaces(stage: dict[str, Any] | None) -> dict[str, Any] | None:
    replaced = [one for one in flat(stage, "normalizers") if one.get("content") == SPACE]
    return replaced[0] if replaced else None


def composed(text: str) -> str:
    """Return Unicode's form NFC as ``tokenizers`` makes it, whose tables are older than Python's.

    Raises:
        DataError: If ``tokenizers`` is not installed, or the text holds a lone surrogate.
    """
    try:
        normal: str = _nfc().normalize_str(text)
    except UnicodeEncodeError as error:
        raise lone_surrogate(error) from None
    return normal


@cache
def _nfc() -> Any:
    try:
        from tokenizers.normalizers import NFC
    except ImportError:
        raise DataError(
            "a tokenizer that composes text (NFC) needs the package tokenizers; get it with 'pip"
            " install tokenizers'"
        ) from None
    return NFC()


def lone_surrogate(error: UnicodeEncodeError) -> DataError:
    """Return the error for text that no bytes can stand for."""
    return DataError(
        f"text holds the lone surrogate U+{ord(error.object[error.start]):04X}, which stands for"
        " no character and has no UTF-8; expected Unicode text; repair the source"
    )


class TokenizersEngine:
    """Encodes as ``tokenizers`` does, with no control token known to it."""

    def __init__(self, source: str) -> None:
        """Load ``source``, what :func:`without_controls` gave, as JSON.

        Raises:
            ValueError: If ``tokenizers`` does not know it.
        """
        import tokenizers

        try:
            self._engine = tokenizers.Tokenizer.from_str(source)
        except Exception as error:  # it raises nothing narrower
            raise ValueError(
                f"tokenizers {tokenizers.__version__} cannot read it: {error}"
            ) from None

    def encode(self, texts: Sequence[bytes]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the ids of all texts, one after the other, and how many each has."""
        read = [text.decode() for text in texts]
        found = self._engine.encode_batch_fast(read, add_special_tokens=False)
        ids = [np.array(one.ids, np.uint32) for one in found]
        lengths = np.array([len(one) for one in ids], np.int64)
        return np.concatenate([np.empty(0, np.uint32), *ids]), lengths

    def merged(self, word: str) -> list[int]:
        """Return the ids of one word by merges alone."""
        return [token.id for token in self._engine.model.tokenize(word)]


def engine_of(source: str, name: str) -> TokenizersEngine:
    """Load the engine of a vocabulary that was proved before.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return TokenizersEngine(source)
    except ImportError:
        raise DataError(
            f"tokenizer {name} is run by the package tokenizers, which is not installed; get it"
            " with 'pip install tokenizers'"
        ) from None
    except ValueError as error:
        raise DataError(f"tokenizer {name}: {error}; take it from where it came from") from None
