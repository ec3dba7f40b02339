"""``tokenizer.json`` as a vocabulary of ours, where its ids are shown to be equal."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import regex

from mypt.data.vocabularies.encoder import encode_ordinary, encoding_of
from mypt.data.vocabularies.published import PUBLISHED
from mypt.data.vocabularies.vocabulary import BYTE, SINGLE_BYTES, Vocabulary
from mypt.errors import ConfigError, DataError

PREFIX: Final = "hf:"
TOKENIZER: Final = "tokenizer.json"
_ODD: Final = (
    "  \n \t\n  ",
    "a\r\n\r\n b  \n",
    " 12345 +  6789",
    "I'LL don't",
    "\x00\x1f",
    " x" * 50,
)
_SENSELESS: Final = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, MemoryError,
    regex.error,
)  # fmt: skip
"""What a file of another kind meets."""
_MOST_IDS: Final = 1 << 24
_MOST_REPEATS: Final = 1000
_PROBE: Final = 40
"""Tokens whose texts make one probe."""


def hf_folder(name: str) -> Path:
    """Return the folder that ``hf:PATH`` or ``hf:NAME`` means; nothing is downloaded.

    Raises:
        ConfigError: If it is no folder, nor a name in huggingface's cache.
    """
    text = name.removeprefix(PREFIX)
    if Path(text).is_dir():
        return Path(text)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ConfigError(f"{name}: no folder {text}; expected one with {TOKENIZER}") from None
    try:
        return Path(snapshot_download(text, local_files_only=True))
    except HFValidationError:
        raise ConfigError(f"{name}: no folder {text}; expected one with {TOKENIZER}") from None
    except LocalEntryNotFoundError:
        raise ConfigError(
            f"{name}: no folder {text}, nor is it in huggingface's cache; nothing is downloaded"
            f" here, get it with 'hf download {text}'"
        ) from None


def hf_vocabulary(folder: Path) -> Vocabulary:
    """Read the byte-level BPE of ``tokenizer.json``, special tokens included.

    Its ids are compared with a naive reading of the file, merge by merge: of every token alone,
    so that no token is one that its merges never make, and of texts made of them all.

    Raises:
        DataError: If it is missing, of another kind, or gives other ids as a tiktoken encoding.
    """
    path = folder / TOKENIZER
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected it there") from None
    try:
        return _read(json.loads(data), PREFIX + hashlib.sha256(data).hexdigest()[:8], path)
    except _SENSELESS as error:
        raise DataError(f"{path}: no byte-level BPE of tokenizers ({error!r:.80})") from None


def _read(values: dict[str, Any], name: str, path: Path) -> Vocabulary:
    model, added = values["model"], {a["content"]: a["id"] for a in values["added_tokens"]}
    _check_kind(values, path)
    specials = {t: i for t, i in added.items() if not _is_filler(t)}
    words = {_bytes(t): i for t, i in model["vocab"].items() if t not in added}
    tokens = tuple(sorted(words, key=words.__getitem__))
    if [words[token] for token in tokens] != list(range(len(tokens))):
        raise DataError(f"{path}: ids of ordinary tokens do not run from 0; it cannot be read here")
    _check_specials(specials, len(tokens), path)
    if missing := set(SINGLE_BYTES).difference(tokens):
        raise DataError(f"{path}: {len(missing)} of the 256 single bytes have no token")
    vocabulary = Vocabulary(name, _pattern(values["pre_tokenizer"], path), tokens, specials)
    _prove(vocabulary, model, path)
    return vocabulary


def _bytes(token: str) -> bytes:
    return bytes(BYTE[character] for character in token)


def _is_filler(token: str) -> bool:
    return token.startswith(
        "\ufdd1unused "
    )  # of our own export (mypt.inference.huggingface.exports)


def _check_kind(values: dict[str, Any], path: Path) -> None:
    model, normalizer = values["model"], values.get("normalizer")
    own = {"type": "Replace", "pattern": {"String": "\ufdd0"}, "content": ""}
    odd = [k for k in ("byte_fallback", "dropout", "continuing_subword_prefix") if model.get(k)]
    if model.get("type", "BPE") != "BPE" or odd:
        raise DataError(f"{path}: model {model.get('type')} {' '.join(odd)}; expected plain BPE")
    if normalizer not in (None, own):
        raise DataError(
            f"{path}: a normalizer {normalizer.get('type')} changes text before it is encoded;"
            " expected none, since here every byte comes back"
        )


def _check_specials(specials: dict[str, Any], n: int, path: Path) -> None:
    """Refuse a control token whose id a text could have too."""
    numbers = list(specials.values())
    odd = [t for t, i in specials.items() if not t or type(i) is not int or not n <= i < _MOST_IDS]
    if odd or len(set(numbers)) < len(numbers):
        raise DataError(
            f"{path}: special tokens {odd or list(specials)}: expected ids of their own, from {n}"
            f" to {_MOST_IDS}"
        )


def _pattern(stage: dict[str, Any] | None, path: Path) -> str:
    """Return the regular expression that cuts text, if one expression does."""
    stages = [] if stage is None else stage.get("pretokenizers", [stage])
    found = [
        s["pattern"]["Regex"]
        for s in stages
        if s["type"] == "Split" and s["behavior"] == "Isolated" and not s.get("invert")
    ]
    cuts = [s for s in stages if s.get("behavior") == "Removed"]  # of our own export
    if stages and stages[-1]["type"] == "ByteLevel" and not stages[-1].get("add_prefix_space"):
        rest = len(stages) - len(found) - len(cuts)
        own = all(cut["pattern"] == {"String": "\ufdd1"} for cut in cuts)
        if rest == 1 and own and len(found) + bool(stages[-1].get("use_regex", True)) == 1:
            return _modest(found[0], path) if found else PUBLISHED["gpt2"].pattern
    kinds = ", ".join(s["type"] for s in stages) or "none"
    raise DataError(f"{path}: pre-tokenizers {kinds}; expected ByteLevel, or one Split before it")


def _modest(pattern: str, path: Path) -> str:
    """Return a regular expression whose counted repeats cannot eat all memory."""
    counts = (int(n) for n in regex.findall(r"(\d+)\}", pattern))
    if math.prod(max(1, count) for count in counts) > _MOST_REPEATS:
        raise DataError(f"{path}: its pattern repeats more than {_MOST_REPEATS} times; refused")
    return pattern


def _prove(vocabulary: Vocabulary, model: dict[str, Any], path: Path) -> None:
    naive = _Naive(vocabulary, model)
    if not model.get("ignore_merges"):
        for number, token in enumerate(vocabulary.tokens):
            if naive.piece(token) != [number]:
                raise DataError(f"{path}: no merges make token {number}, {token!r}; refused")
    try:
        encoding = encoding_of(vocabulary, vocabulary.special_tokens)
    except ValueError as error:
        raise DataError(f"{path}: tiktoken does not know its pattern ({error})") from None
    for text in ("", *_probes(vocabulary)):
        expected = naive.encode(text)  # first: tiktoken ends badly on a match of nothing
        if encode_ordinary(encoding, text).tolist() != expected:
            raise DataError(f"{path}: other ids as a tiktoken encoding, for {text[:40]!r}; refused")


def _probes(vocabulary: Vocabulary) -> Iterator[str]:
    yield from _ODD
    texts = [token.decode(errors="ignore") for token in vocabulary.tokens]
    for start in range(0, len(texts), _PROBE):
        yield "".join(texts[start : start + _PROBE])
    for start in range(_PROBE):
        yield "".join(texts[start :: max(1, len(texts) // _PROBE)])


class _Naive:
    """Byte pair encoding as the file says it: the first merge of its list first."""

    def __init__(self, vocabulary: Vocabulary, model: dict[str, Any]) -> None:
        self._ids = {token: number for number, token in enumerate(vocabulary.tokens)}
        self._pattern = regex.compile(vocabulary.pattern.replace(r"\z", r"\Z"))
        self._whole = bool(model.get("ignore_merges"))
        pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
        self._ranks: dict[tuple[bytes, bytes], int] = {}
        for rank, (left, right) in enumerate(pairs):
            self._ranks.setdefault((_bytes(left), _bytes(right)), rank)

    def encode(self, text: str) -> list[int]:
        pieces = [match.group().encode() for match in self._pattern.finditer(text)]
        if not all(pieces) or b"".join(pieces) != text.encode():
            raise ValueError("its pattern leaves out text")
        return [number for piece in pieces for number in self.piece(piece)]

    def piece(self, piece: bytes) -> list[int]:
        if self._whole and piece in self._ids:
            return [self._ids[piece]]
        parts = [piece[at : at + 1] for at in range(len(piece))]
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, -1) for pair in itertools.pairwise(parts)]
            best = min((rank for rank in ranks if rank >= 0), default=None)
            if best is None:
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [self._ids[part] for part in parts]
