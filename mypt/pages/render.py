"""One self-contained page: a template of this folder with its style and script inside."""

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mypt.text import visible

_FOLDER = Path(__file__).parent


def render(template: str, *, styles: Sequence[str] = (), script: str = "", **values: Any) -> str:
    """Return a page's HTML; what comes from data is escaped, and nothing is loaded.

    Args:
        template: A file of this folder.
        styles: Files of this folder that the template shows as ``style``.
        script: One that it shows as ``script``, with ``script_hash`` for its content policy.
        values: What else it shows.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["visible"] = visible
    if styles:  # not escaped, nor is the script: both are files of this package
        values["style"] = Markup("".join(map(_read, styles)))
    if script:
        values |= {"script": Markup(_read(script)), "script_hash": script_hash(script)}
    return environment.get_template(template).render(values)


def script_hash(script: str) -> str:
    """Return what a content policy calls a script of this folder."""
    return f"sha256-{b64encode(hashlib.sha256(_read(script).encode()).digest()).decode()}"


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
