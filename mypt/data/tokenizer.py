"""Text to token ids and back, by tiktoken; the tokenizer travels whole with every dataset."""

import difflib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mypt import home
from mypt.data.manifest import TOKENIZER_STATE
from mypt.data.rendering.base_template import BASE, AnyTemplate, BaseTemplate, base_template
from mypt.data.spans import KIND
from mypt.data.template import Shape, Slot, load_template
from mypt.data.vocabularies.base_files import PREFIXES, base_path
from mypt.data.vocabularies.encoder import TextEncoder, encode_each, encoding_of, utf8
from mypt.data.vocabularies.engine import TokenizersEngine, engine_of
from mypt.data.vocabularies.published import PUBLISHED, published_vocabulary
from mypt.data.vocabularies.vocabulary import (
    ADVICE,
    TRAINED,
    TokenizerState,
    Vocabulary,
    bpe_vocabulary,
    byte_vocabulary,
    char_vocabulary,
    read_state,
)
from mypt.errors import ConfigError, DataError


class Tokenizer:
    """A vocabulary and the template whose special tokens follow it.

    Ids: the base vocabulary keeps its own; then come the template's special tokens in their
    order, except those that the base has already.
    """

    def __init__(self, vocabulary: Vocabulary, template: AnyTemplate) -> None:
        special_tokens = dict(vocabulary.special_tokens)
        following = max(len(vocabulary.tokens) - 1, *special_tokens.values(), 0) + 1
        for token in (*template.special_tokens, vocabulary.end):
            if token not in special_tokens:
                special_tokens[token] = following
                following += 1
        self.vocabulary = vocabulary
        self.template = template
        self.special_tokens = special_tokens
        """Special token to id, the base's own among them."""
        self._bytes = {i: vocabulary.tokens[i] for i in vocabulary.ids} | {
            number: token.encode() for token, number in special_tokens.items()
        }
        if not vocabulary.engine:
            self.encoding = encoding_of(vocabulary, special_tokens)
            """The tiktoken encoding underneath; absent where ``tokenizers`` encodes."""

    @property
    def name(self) -> str:
        """What people type, such as ``gpt2`` or ``bpe:4096``."""
        return self.vocabulary.name

    @property
    def n_vocab(self) -> int:
        """One more than the largest id."""
        return max(self._bytes) + 1

    @property
    def end_of_text(self) -> int:
        """The token that ends a document."""
        return self.special_tokens[self.vocabulary.end]

    @property
    def begin_of_text(self) -> tuple[int, ...]:
        """The token that begins a document, where one does."""
        begin = self.vocabulary.begin
        return (self.special_tokens[begin],) if begin else ()

    @property
    def stop_id(self) -> int:
        """The token that ends an assistant turn."""
        return self.special_tokens[self.template.stop]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token that ends an assistant turn, :attr:`stop_id` first."""
        return tuple(self.special_tokens[token] for token in self.template.stops)

    @cached_property
    def byte_sizes(self) -> NDArray[np.uint32]:
        """(n_vocab,) bytes that each id stands for, special tokens spelled out."""
        sizes = np.zeros(self.n_vocab, np.uint32)
        for number, token in self._bytes.items():
            sizes[number] = len(token)
        return sizes

    @property
    def token_bytes(self) -> list[bytes]:
        """What each id stands for, special tokens spelled out; nothing where it is no token."""
        return [self._bytes.get(number, b"") for number in range(self.n_vocab)]

    @cached_property
    def state(self) -> TokenizerState:
        """Everything that makes this tokenizer, as it is written to disk."""
        return TokenizerState.of(self.vocabulary, self.special_tokens, self.template)

    @property
    def digest(self) -> str:
        """The digest of tokens, pattern, special tokens and template, 64 hexadecimal digits."""
        return self.state.digest

    def write(self, folder: Path) -> None:
        """Write ``tokenizer_state.json``, all that :func:`load_tokenizer` needs."""
        self.state.write(folder / TOKENIZER_STATE)

    def form(self, shape: Shape) -> tuple[Slot, ...]:
        """Return how a turn of this shape is written; documents as the vocabulary has them.

        Raises:
            DataError: If the template has no form for its role or one of its parts.
        """
        if shape[0] != "text":
            return self.template.form(shape)
        begin, end = self.vocabulary.begin, self.vocabulary.end
        before = (Slot(KIND["header"], special=begin),) if begin else ()
        return *before, Slot(KIND["content"]), Slot(KIND["end"], special=end)

    def special_id(self, text: str) -> int:
        """Return the id of a special token.

        Raises:
            DataError: If it has no such token.
        """
        if text not in self.special_tokens:
            raise DataError(
                f"tokenizer {self.name} has no special token {text!r}; it has"
                f" {', '.join(self.special_tokens)}"
            )
        return self.special_tokens[text]

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Return the ids of an ordinary text, (N,); what looks like a special token is text.

        Raises:
            DataError: If the text holds a lone surrogate, which no bytes can stand for, or a
                character that the base has no token for, or would not come back.
        """
        said = self.vocabulary.normalised(text)
        if lost := self.lost_space(said):
            raise DataError(lost)
        return self.encode_part(self.vocabulary.prefixed(said))

    def encode_part(self, text: str) -> NDArray[np.uint32]:
        """Return the ids of part of a text, (N,), before which no base writes a space.

        Raises:
            DataError: If the text has no ids.
        """
        return self.encode_each(self.spelled([text]), many=False)[0].copy()

    def lost_space(self, text: str) -> str:
        """Say that a whole text would come back without its first space; empty: it would not."""
        lost = text[:1] == " " and self.vocabulary.prefixed(text) == text != ""
        if not (lost and self.vocabulary.prefix):
            return ""
        return f"tokenizer {self.name} takes the space that a text begins with for its own"

    def spelled(self, texts: Iterable[str]) -> list[bytes]:
        """Return texts in the vocabulary's normal form, as UTF-8.

        Raises:
            DataError: As :meth:`encode`.
        """
        form = self.vocabulary.normal_form
        found = utf8(map(self.vocabulary.normalised, texts) if form else texts)
        if self._lacking and (lost := self.unspelled(found)):
            raise DataError(f"{lost}; leave it out of the text")
        return found

    def unspelled(self, texts: Iterable[bytes]) -> str:
        """Say which character of texts, in UTF-8, has no token; empty: all have."""
        for text in texts:
            if self._lacking and text.translate(None, self._held):
                lost = next(c for c in text.decode() if c.encode().translate(None, self._held))
                return f"tokenizer {self.name} has no token for U+{ord(lost):04X}"
        return ""

    @cached_property
    def _lacking(self) -> bytes:
        return self.vocabulary.lacking

    @cached_property
    def _held(self) -> bytes:
        return bytes(set(range(256)).difference(self._lacking))

    def encode_each(
        self, texts: Sequence[bytes], *, many: bool = True
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the ids of ordinary texts, one after the other, and how many each has.

        Args:
            texts: What :meth:`spelled` gave.
            many: Whether the encoder of many texts, which takes up to a second to make, is
                worth it.
        """
        if self._engine is not None:
            return self._engine.encode(texts)
        return self.text_encoder.encode(texts) if many else encode_each(self.encoding, texts)

    @cached_property
    def _engine(self) -> TokenizersEngine | None:
        source = self.vocabulary.engine
        return engine_of(source, self.name) if source else None

    def decode_bytes(self, ids: Sequence[int] | NDArray[np.integer]) -> bytes:
        """Return the bytes that ids stand for, special tokens spelled out.

        Raises:
            DataError: If an id is not in the vocabulary.
        """
        try:
            numbers = np.asarray(ids, np.int64)
            # Of a negative one numpy would count from the end.
            spelled = self._spelled if numbers.min(initial=0) >= 0 else self._spelled[:0]
            return b"".join(spelled[numbers].tolist())
        except (IndexError, OverflowError, TypeError):
            unknown = next(int(number) for number in ids if int(number) not in self._bytes)
            raise DataError(
                f"Invalid token for decoding: {unknown}; tokenizer {self.name} has ids below"
                f" {self.n_vocab}; these tokens were made by another tokenizer"
            ) from None

    @cached_property
    def _spelled(self) -> NDArray[np.object_]:
        """(n_vocab,) bytes of each id, None where it stands for nothing; quicker than a dict."""
        table = np.full(self.n_vocab, None, np.object_)
        table[list(self._bytes)] = list(self._bytes.values())
        return table

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Return the text that :meth:`encode` gave these ids for.

        Raises:
            DataError: As :meth:`decode_bytes`.
        """
        text = self.decode_part(ids)
        return text.removeprefix(" ") if self.vocabulary.prefix else text

    def decode_part(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Return all that ids stand for; bytes that are no UTF-8 become U+FFFD.

        Raises:
            DataError: As :meth:`decode_bytes`.
        """
        return self.decode_bytes(ids).decode(errors="replace")

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """What encodes many texts at once."""
        return TextEncoder(self.vocabulary)


def load_tokenizer(
    name_or_path: str | Path, template: str | Path | AnyTemplate = "mypt"
) -> Tokenizer:
    """Return a tokenizer by name, or the one that a dataset or a model carries.

    Args:
        name_or_path: gpt2, byte, cl100k_base or o200k_base; a dataset, a model (name or
            folder) or one of its step folders; a ``tokenizer_state.json``; ``hf:`` and a folder
            with a ``tokenizer.json``; ``gguf:`` and a file.
        template: Template of a tokenizer by name, ``base`` a base's own; what is loaded brings
            its own.

    Raises:
        ConfigError: If the name means nothing, or a tokenizer that must be trained first.
        DataError: If a vocabulary cannot be had or a state is damaged.
        CheckpointError: If a model has no complete checkpoint.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name.startswith(PREFIXES):
        from mypt.data.vocabularies.huggingface import hf_vocabulary  # a base alone needs regex

        return Tokenizer(hf_vocabulary(base_path(name)), find_template(template, name))
    if name == "byte":
        return Tokenizer(byte_vocabulary(), find_template(template, name))
    if name in PUBLISHED:
        return Tokenizer(published_vocabulary(name), find_template(template, name))
    if is_trained(name):
        raise ConfigError(
            f"tokenizer {name!r} is made from a corpus; use 'mypt prepare --tokenization {name}',"
            " or name the dataset or model that carries it"
        )
    if not path.exists() and not (home.models_dir() / name).is_dir():
        known = ("byte", "char", "bpe:N", *PUBLISHED)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        listed = ", ".join(known)
        raise ConfigError(
            f"no tokenizer {name[:60]!r}; {hint}expected {listed}, or a dataset or model folder"
        )
    if path.is_dir() and (path / TOKENIZER_STATE).is_file():
        path = path / TOKENIZER_STATE
    elif not path.is_file():
        path = home.find_checkpoint(name_or_path) / TOKENIZER_STATE
    state = read_state(path)
    try:
        return Tokenizer(state.vocabulary(), state.template)
    except ValueError as error:
        raise DataError(f"{path}: {error}; {ADVICE}") from None


def find_template(name_or_path: str | Path | AnyTemplate, tokenization: str) -> AnyTemplate:
    """Return a template by name; ``base`` is the one that the tokenizer's folder or file holds.

    Raises:
        ConfigError: If there is no such template, or the tokenizer comes from no base.
        DataError: If the base's own cannot be used.
    """
    if isinstance(name_or_path, BaseTemplate):
        return name_or_path
    if name_or_path != BASE:
        return load_template(name_or_path)
    if not tokenization.startswith(PREFIXES):
        raise ConfigError(
            f"--template base with --tokenization {tokenization}: expected hf:FOLDER or gguf:FILE,"
            " whose chat template it is; or choose a template by name"
        )
    return base_template(base_path(tokenization))


def is_trained(tokenization: str) -> bool:
    """Say whether a tokenization is made from the corpus: ``char`` and ``bpe:N``."""
    return TRAINED.fullmatch(tokenization) is not None


def train_tokenizer(
    tokenization: str, texts: Iterable[str], template: str | Path | AnyTemplate = "mypt"
) -> Tokenizer:
    """Make a ``char`` or ``bpe:N`` tokenizer from a corpus.

    Raises:
        ConfigError: If the tokenization is neither, or N is below 256.
        DataError: If there is no text.
    """
    match = TRAINED.fullmatch(tokenization)
    if match is None:
        raise ConfigError(f"{tokenization!r} is not made from a corpus; expected char or bpe:N")
    size = match.group(1)
    vocabulary = bpe_vocabulary(int(size), texts) if size else char_vocabulary(texts)
    return Tokenizer(vocabulary, find_template(template, tokenization))
