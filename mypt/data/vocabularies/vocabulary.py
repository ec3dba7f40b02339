"""What lies underneath a tokenizer, and the file that holds all of it.

A vocabulary is tokens in merge order and the pattern that splits text. Files of GPT-2's kind spell
bytes as characters: those that are printable stand for themselves, the others from U+0100 on.
"""

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationError

from mypt import files
from mypt.data.rendering.base_template import AnyTemplate
from mypt.data.template import END_OF_TEXT
from mypt.data.vocabularies.engine import SPACE, composed
from mypt.errors import ConfigError, DataError
from mypt.parsing import Frozen

TRAINED = re.compile(r"char|bpe:(\d{1,7})")
"""The tokenizations that are made from a corpus."""
SINGLE_BYTES = tuple(bytes([value]) for value in range(256))
_SPARED: Final = frozenset(
    bytes([v]) for v in range(256) if v >= 0xF5 or v in b"\x7f\xc0\xc1\xf1\xf2"
    or (v < 0x20 and v not in b"\t\n\r")
)  # fmt: skip
"""Bytes that a base may have no token for, as SmolLM2 has not: control characters, the planes of
Unicode that are empty, and what UTF-8 never has."""
_LATER: Final = ("normal_form", "engine", "begin", "end", "prefix")
"""What a vocabulary has had since tokenizers were first written down."""
_LARGEST_ID = (1 << 32) - 2
"""Ids are uint32 on disk; the last one is left to the encoder's own separator."""
_LONGEST_RUN = 900_000
"""White spaces in a row that a pattern's match still finds room for on its stack."""
ADVICE = "take it from the dataset or checkpoint that it came with, or make that again"
_PRINTABLE: Final = [v for v in range(256) if chr(v).isprintable() and v != ord(" ")]
_OTHERS: Final = [value for value in range(256) if value not in _PRINTABLE]
BYTES: Final = tuple(_PRINTABLE + _OTHERS)
"""All bytes in the order of GPT-2's ids."""
CHARACTER: Final = {value: chr(value) for value in _PRINTABLE} | {
    value: chr(256 + index) for index, value in enumerate(_OTHERS)
}
"""Byte to character."""
BYTE: Final = {character: value for value, character in CHARACTER.items()}
"""Character to byte."""


NormalForm = Literal["", "NFC", "spaces"]
"""Unicode's composed form, or a space wherever U+2581, which stands for one, is written."""


Prefix = Literal["", "always", "segment", "first"]
"""Where SentencePiece writes a space that nobody said: nowhere; before each stretch between two
special tokens; before one that does not begin with a space; before such a one where a text begins.
Parts of templates of our own have none."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-level vocabulary: a text that has ids comes back from them unchanged."""

    name: str
    """What people type, such as ``gpt2`` or ``bpe:4096``."""
    pattern: str
    """Regular expression that cuts text into the pieces within which tokens merge."""
    tokens: tuple[bytes, ...]
    """Ids are positions, and so are merge priorities; empty where no text has the id."""
    special_tokens: dict[str, int] = field(default_factory=dict)
    """Special tokens that were published with it."""
    normal_form: NormalForm = ""
    """What becomes of a text before it is encoded."""
    engine: str = ""
    """The ``tokenizer.json`` that encodes; empty: tiktoken does."""
    begin: str = ""
    """Special token that begins a document; empty: none does."""
    end: str = END_OF_TEXT
    """Special token that ends a document."""
    prefix: Prefix = ""
    """Before which texts a space is written."""

    def prefixed(self, text: str, at: int = 0) -> str:
        """Return a stretch of text with the space that the base writes before it, if it does.

        Args:
            text: In the normal form.
            at: Characters of the whole before it.
        """
        written = self.prefix == "always" or not text.startswith(" ")
        here = bool(self.prefix) and not (self.prefix == "first" and at)
        return f" {text}" if text and here and written else text

    @property
    def lacking(self) -> bytes:
        """The bytes that no token stands for; a text with one of them has no ids."""
        return b"".join(sorted(set(SINGLE_BYTES).difference(self.tokens)))

    @property
    def ids(self) -> list[int]:
        """The ids that text can have."""
        return [number for number, token in enumerate(self.tokens) if token]

    def normalised(self, text: str) -> str:
        """Return the text that comes back where ``text`` is encoded."""
        if not self.normal_form or text.isascii():
            return text
        if self.normal_form == "NFC":
            return composed(text)
        return text.replace(SPACE, " ")


def check_bytes(tokens: Iterable[bytes], *, all_of_them: bool = False) -> None:
    """Refuse a vocabulary that cannot write text.

    Args:
        tokens: All of them.
        all_of_them: Whether bytes that no ordinary text has are needed too, as tiktoken does.

    Raises:
        ValueError: If a byte has no token.
    """
    if missing := set(SINGLE_BYTES).difference(tokens, () if all_of_them else _SPARED):
        raise ValueError(f"{len(missing)} of the 256 single bytes have no token")


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
    trainer.train_from_iterator(map(with_short_runs, texts), size)
    ranks = sorted((rank, bytes(token)) for token, rank in trainer.get_mergeable_ranks())
    return Vocabulary(f"bpe:{size}", trainer.get_pattern(), tuple(token for _, token in ranks))


def with_short_runs(text: str) -> str:
    """Return a text as it is, if the patterns that cut it into words get through it.

    Raises:
        DataError: If it holds a run of white spaces for which they need too deep a stack.
    """
    if len(text) > _LONGEST_RUN:
        longest = max(map(len, re.findall(r"\s+", text)), default=0)
        if longest > _LONGEST_RUN:
            raise DataError(
                f"a run of {longest:,} white spaces found; expected at most {_LONGEST_RUN:,}, which"
                " is what tokenizers get through; repair the source"
            )
    return text


class TokenizerState(Frozen):
    """What ``tokenizer_state.json`` holds; nothing else is needed to encode or decode."""

    version: Literal[1] = 1
    name: str
    """What people type, such as ``gpt2``."""
    pattern: str
    """Regular expression that cuts text into pieces."""
    tokens: tuple[str, ...]
    """The base tokens' bytes in base64; position is id and merge priority."""
    special_tokens: dict[str, int]
    """Special token to id, the base's own and the template's."""
    template: AnyTemplate
    """How conversations are rendered."""
    normal_form: NormalForm = ""
    """As the next four, of :class:`Vocabulary`."""
    engine: str = Field(default="", repr=False)
    begin: str = ""
    end: str = END_OF_TEXT
    prefix: Prefix = ""
    digest: str = Field(default="", repr=False)

    @classmethod
    def of(
        cls, vocabulary: Vocabulary, special_tokens: dict[str, int], template: AnyTemplate
    ) -> Self:
        """Return the sealed state of a tokenizer."""
        state = cls(
            name=vocabulary.name,
            pattern=vocabulary.pattern,
            tokens=tuple(base64.b64encode(token).decode() for token in vocabulary.tokens),
            special_tokens=special_tokens,
            template=template,
            **{key: getattr(vocabulary, key) for key in _LATER},
        )
        return state.model_copy(update={"digest": state.compute_digest()})

    def compute_digest(self) -> str:
        """Return the digest of everything but the digest itself."""
        return files.digest_json({k: v for k, v in self._values().items() if k != "digest"})

    def write(self, path: Path) -> None:
        """Write the state, the same bytes for the same tokenizer."""
        files.write_bytes(path, self.written)

    @property
    def written(self) -> bytes:
        """What the file holds."""
        return files.canonical_json(self._values())

    def _values(self) -> dict[str, Any]:
        """Return what the file holds: what came later and is not said leaves it as it was."""
        values = self.model_dump(mode="json")
        unsaid = {k for k in _LATER if values[k] == type(self).model_fields[k].default}
        return {key: value for key, value in values.items() if key not in unsaid}

    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary, special tokens included.

        Raises:
            ValueError: If the state describes no vocabulary that could encode every text.
        """
        tokens = tuple(base64.b64decode(token, validate=True) for token in self.tokens)
        check_bytes(tokens, all_of_them=not self.engine)
        words = [token for token in tokens if token]
        if not self.engine and len(set(words)) < len(words):
            raise ValueError("tokens: some stand there twice")
        ids = set(self.special_tokens.values())
        held = any(0 <= number < len(tokens) and tokens[number] for number in ids)
        out_of_range = min(ids) < 0 or max(ids) > _LARGEST_ID
        if len(ids) < len(self.special_tokens) or held or out_of_range:
            raise ValueError("special_tokens: ids collide with others or are out of range")
        needed = {*self.template.special_tokens, self.end, *filter(None, [self.begin])}
        if absent := needed - self.special_tokens.keys():
            raise ValueError(f"special_tokens: the template's {sorted(absent)[0]!r} is missing")
        later = {key: getattr(self, key) for key in _LATER}
        return Vocabulary(self.name, self.pattern, tokens, self.special_tokens, **later)


def read_state(path: Path) -> TokenizerState:
    """Read a ``tokenizer_state.json``.

    Raises:
        DataError: If it is missing, damaged, or was changed.
    """
    try:
        state = TokenizerState.model_validate_json(files.read_bytes(path))
        if state.digest != state.compute_digest():
            raise ValueError("its digest does not match its content; it was changed")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {ADVICE}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {where} {first['msg']}; the file is damaged; {ADVICE}") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}; {ADVICE}") from None
    return state
