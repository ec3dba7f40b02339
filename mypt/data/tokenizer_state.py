"""A tokenizer as a file: everything that makes its ids, and a digest over it."""

import base64
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError

from mypt import files
from mypt.data.template import END_OF_TEXT, Template
from mypt.data.vocabulary import SINGLE_BYTES, Vocabulary
from mypt.errors import DataError
from mypt.parsing import Frozen

_LARGEST_ID = (1 << 32) - 2
"""Ids are uint32 on disk; the last one is left to the encoder's own separator."""

ADVICE = "take it from the dataset or checkpoint that it came with, or make that again"


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
    template: Template
    """How conversations are rendered."""
    digest: str = Field(default="", repr=False)

    @classmethod
    def of(cls, vocabulary: Vocabulary, special_tokens: dict[str, int], template: Template) -> Self:
        """Return the sealed state of a tokenizer."""
        state = cls(
            name=vocabulary.name,
            pattern=vocabulary.pattern,
            tokens=tuple(base64.b64encode(token).decode() for token in vocabulary.tokens),
            special_tokens=special_tokens,
            template=template,
        )
        return state.model_copy(update={"digest": state.compute_digest()})

    def compute_digest(self) -> str:
        """Return the digest of everything but the digest itself."""
        return files.digest_json(self.model_dump(mode="json", exclude={"digest"}))

    def write(self, path: Path) -> None:
        """Write the state, the same bytes for the same tokenizer."""
        files.write_bytes(path, files.canonical_json(self.model_dump(mode="json")))

    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary, special tokens included.

        Raises:
            ValueError: If the state describes no vocabulary that could encode every text.
        """
        tokens = tuple(base64.b64decode(token, validate=True) for token in self.tokens)
        missing = set(SINGLE_BYTES).difference(tokens)
        if missing:
            raise ValueError(f"{len(missing)} of the 256 single bytes have no token")
        if len(set(tokens)) < len(tokens):
            raise ValueError("tokens: some stand there twice")
        ids = set(self.special_tokens.values())
        if len(ids) < len(self.special_tokens) or min(ids) < len(tokens) or max(ids) > _LARGEST_ID:
            raise ValueError("special_tokens: ids collide with others or are out of range")
        if absent := {*self.template.special_tokens, END_OF_TEXT} - self.special_tokens.keys():
            raise ValueError(f"special_tokens: the template's {sorted(absent)[0]!r} is missing")
        return Vocabulary(self.name, self.pattern, tokens, self.special_tokens)


def read_state(path: Path) -> TokenizerState:
    """Read a ``tokenizer_state.json``.

    Raises:
        DataError: If it is missing, damaged, or was changed.
    """
    try:
        state = TokenizerState.model_validate_json(path.read_bytes())
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
