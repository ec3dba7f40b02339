"""Where a base's tokenizer and chat template lie: a folder of ``transformers``, or a GGUF file."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from mypt import files
from mypt.data.vocabularies.gguf_header import read_header
from mypt.data.vocabularies.gguf_tokenizer import tokenizer_of
from mypt.errors import ConfigError, DataError
from mypt.home import package_folder

HF: Final = "hf:"
GGUF: Final = "gguf:"
PREFIXES: Final = (HF, GGUF)
"""How names of bases from elsewhere begin."""
TOKENIZER: Final = "tokenizer.json"
PEFT: Final = "adapter_config.json"
"""Beside an adapter of peft's, which is no base."""
_CONFIG: Final = "tokenizer_config.json"
_TEMPLATE: Final = "chat_template.jinja"
_LARGEST: Final = 1 << 27


class TokenizerFile(NamedTuple):
    """What ``tokenizer.json`` says, or would say."""

    path: Path
    """Where it was read."""
    name: str
    """What the tokenizer is called: how the base's name begins, and what it holds as a digest."""
    values: dict[str, Any]


def base_path(name: str) -> Path:
    """Return the folder or file that the name of a base means; nothing is downloaded.

    Args:
        name: ``hf:`` and a folder, or a name in huggingface's cache; ``gguf:`` and a file, or an
            installed package and a file in it, as in ``gguf:PACKAGE:FILE``.

    Raises:
        ConfigError: If it is none, nor a name in huggingface's cache, or a link out of a package.
        DataError: If the package is not installed.
    """
    if name.startswith(GGUF):
        package, colon, inside = name.removeprefix(GGUF).partition(":")
        home = package_folder(package, inside) if colon else Path()
        path = home / (inside or package)
        if not path.is_file():
            raise ConfigError(f"{name}: no file {path}; expected a GGUF file")
        if colon and not path.resolve().is_relative_to(home.resolve()):
            raise ConfigError(f"{name}: {path} is a link out of the package, which is not followed")
        return path
    text = name.removeprefix(HF)
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


def base_name(path: Path) -> str:
    """Return a name that :func:`base_path` reads as this folder or file."""
    return f"{GGUF if path.is_file() else HF}{path}"


def read_tokenizer(base: Path) -> TokenizerFile:
    """Return a base's tokenizer in the form of ``tokenizer.json``.

    Raises:
        ConfigError: If reading it needs a package that is not installed.
        DataError: If it is missing or cannot be read.
    """
    if base.is_file():
        values, _ = _of_gguf(base, base.stat().st_mtime_ns)
        return TokenizerFile(base, GGUF + _digest(files.canonical_json(values)), values)
    path = base / TOKENIZER
    try:
        data = files.read_bytes(path, _LARGEST)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); expected a tokenizer.json"
        ) from None
    return TokenizerFile(path, HF + _digest(data), _object(data, path))


def read_tokenizer_config(base: Path) -> dict[str, Any]:
    """Return ``tokenizer_config.json`` of a base, empty where it has none.

    Raises:
        ConfigError: As :func:`read_tokenizer`.
        DataError: If it is no JSON object.
    """
    if base.is_file():
        return _of_gguf(base, base.stat().st_mtime_ns)[1]
    path = base / _CONFIG
    try:
        return _object(files.read_bytes(path), path) if path.is_file() else {}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected JSON") from None


def find_source(base: Path, config: dict[str, Any] | None = None) -> str | None:
    """Return the Jinja of a base's chat template, or None where it has none.

    Raises:
        ConfigError: As :func:`read_tokenizer`.
        DataError: If a file cannot be read.
    """
    path = base / _TEMPLATE
    if path.is_file():
        try:
            return files.read_bytes(path).decode()
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); expected Jinja") from None
    values = read_tokenizer_config(base) if config is None else config
    found = values.get("chat_template")
    if isinstance(found, list):  # several by name
        found = next((one.get("template") for one in found if one.get("name") == "default"), None)
    return found if isinstance(found, str) else None


@lru_cache(maxsize=1)
def _of_gguf(path: Path, _: int) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        return tokenizer_of(read_header(path))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: its tokenizer makes no sense ({error!r:.120})") from None


def _object(data: bytes, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error!r:.80}); expected JSON") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: no JSON object")
    return values


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]
