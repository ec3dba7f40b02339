"""What lies underneath a tokenizer: the tokens in merge order and the pattern that splits text."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from mypt.errors import ConfigError, DataError

TRAINED = re.compile(r"char|bpe:(\d{1,7})")
"""The tokenizations that are made from a corpus."""
SINGLE_BYTES = tuple(bytes([value]) for value in range(256))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-level vocabulary, complete: every text can be encoded and comes back unchanged."""

    name: str
    """What people type, such as ``gpt2`` or ``bpe:4096``."""
    pattern: str
    """Regular expression that cuts text into the pieces within which tokens merge."""
    tokens: tuple[bytes, ...]
    """Ids are positions, and so are merge priorities."""
    special_tokens: dict[str, int] = field(default_factory=dict)
    """Special tokens that were published with it."""


def byte_vocabulary() -> Vocabulary:
    """Return the 256 bytes, without merges: id and byte are the same number."""
    return Vocabulary("byte", r"[\s\S]{1,256}", SINGLE_BYTES)


def char_vocabulary(texts: Iterable[str]) -> Vocabulary:
    """Return the distinct characters of ``texts`` in code-point order, then the missing bytes.

    A character of the corpus is one token; any other falls to its UTF-8 bytes.

    Raises:
        DataError: If there is no text.
    """
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    if not characters:
        raise DataError("no text to take characters from; expected at least one character")
    known = dict.fromkeys(character.encode() for character in sorted(characters))
    missing = [byte for byte in SINGLE_BYTES if byte not in known]
    return Vocabulary("char", r"[\s\S]", (*known, *missing))


def bpe_vocabulary(size: int, texts: Iterable[str]) -> Vocabulary:
    """Train a byte-pair encoding; it has fewer than ``size`` tokens if nothing more repeats.

    Args:
        size: Tokens, the 256 bytes among them.
        texts: The corpus; taken up lazily.

    Raises:
        ConfigError: If ``size`` leaves no room for the bytes.
    """
    if size < len(SINGLE_BYTES):
        raise ConfigError(f"bpe:{size} cannot hold the 256 single bytes; expected bpe:256 or more")
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), size)
    ranks = sorted((rank, bytes(token)) for token, rank in trainer.get_mergeable_ranks())
    return Vocabulary(f"bpe:{size}", trainer.get_pattern(), tuple(token for _, token in ranks))
