"""Content keys: what decides a stage's result, as one digest (D42)."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel

import mypt
from mypt import files

_PACKAGE = Path(mypt.__file__).parent
KEY_DIGITS = 12


def stage_key(module: ModuleType, *inputs: str | BaseModel) -> str:
    """Return the digest of what decides a stage's result.

    Args:
        module: The core module that the stage calls; its code and that of all it imports count.
        inputs: Digests and configs.

    Raises:
        LookupError: If it, or a module of the core that it imports, has no file in a room.
    """
    values = [
        value.model_dump(mode="json") if isinstance(value, BaseModel) else value for value in inputs
    ]
    return files.digest_json([code_digest(module.__name__), *values])[:KEY_DIGITS]


@cache
def code_digest(module: str) -> str:
    """Return the digest of a module's code and of every module of a room that it imports.

    The files directly in ``mypt/`` do not count: they hold names and knobs, and the knobs'
    values are inputs of their own.

    Raises:
        LookupError: If a module has no file, so that its code would silently not count.
    """
    digests: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in digests:
            continue
        digests[name], imports = _read(name)
        waiting += imports
    return files.digest_json(digests)


@cache
def _read(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the digest of a module's code, and the modules of the core's rooms that it imports.

    Stages share most of their modules, and reading one takes milliseconds.
    """
    path = _file(name)
    if path is None:
        raise LookupError(
            f"{name}: no module in a room of {_PACKAGE.name}, so its code cannot be part of a"
            " stage's key; expected one such as mypt.data.masking"
        )
    data = path.read_bytes()
    return files.digest_bytes(data), tuple(_imports(name, data))


def _in_a_room(name: str) -> bool:
    return name.startswith(f"{_PACKAGE.name}.") and name.count(".") > 1


def _file(name: str) -> Path | None:
    """Return the file of a module in a room of the core, None for any other name."""
    if not _in_a_room(name):
        return None
    _, *rest = name.split(".")
    path = _PACKAGE.joinpath(*rest)
    found = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in found if file.is_file()), None)


def _imports(name: str, code: bytes) -> list[str]:
    """Return the modules of the core's rooms that a file names in its imports, found or not."""
    named: list[str] = []
    for node in _statements(ast.parse(code, filename=name)):
        if isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            named.append(node.module)
            within = (f"{node.module}.{alias.name}" for alias in node.names)
            named += [whole for whole in within if _file(whole)]  # others are a module's own names
    return [module for module in named if _in_a_room(module)]


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every statement below ``node``; most nodes are expressions, which import nothing."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield child
            yield from _statements(child)
