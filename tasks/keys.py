"""Content keys: what decides a stage's result, as one digest (D42)."""

import ast
from functools import cache
from pathlib import Path

from pydantic import BaseModel

import mypt
from mypt import files

_PACKAGE = Path(mypt.__file__).parent
KEY_DIGITS = 12


def stage_key(module: str, *inputs: str | BaseModel) -> str:
    """Return the digest of what decides a stage's result.

    Args:
        module: The core module that the stage calls; its code and that of all it imports count.
        inputs: Digests and configs.
    """
    values = [
        value.model_dump(mode="json") if isinstance(value, BaseModel) else value for value in inputs
    ]
    return files.digest_json([code_digest(module), *values])[:KEY_DIGITS]


@cache
def code_digest(module: str) -> str:
    """Return the digest of a module's code and of every module of a room that it imports.

    The files directly in ``mypt/`` do not count: they hold names and knobs, and the knobs'
    values are inputs of their own.
    """
    digests: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name in digests or path is None:
            continue
        data = path.read_bytes()
        digests[name] = files.digest_bytes(data)
        waiting += _imports(name, data)
    return files.digest_json(digests)


def _file(name: str) -> Path | None:
    """Return the file of a module in a room of the core, None for any other name."""
    first, *rest = name.split(".")
    if first != _PACKAGE.name or len(rest) < 2:
        return None
    path = _PACKAGE.joinpath(*rest)
    found = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in found if file.is_file()), None)


def _imports(name: str, code: bytes) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(code, filename=name)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
    return found
