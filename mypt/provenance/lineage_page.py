"""The chain of a checkpoint as one self-contained page: no script, nothing loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mypt import files
from mypt.pages.render import render
from mypt.provenance.drawing import BOX_HEIGHT, BOX_WIDTH, anchor, draw, state, walk
from mypt.provenance.trace import Link
from mypt.text import visible

_WORDS = {"good": "as recorded", "bad": "not as recorded", "unknown": "not verified"}


def write_page(link: Link, path: Path) -> None:
    """Write the page of a chain, as :func:`mypt.provenance.trace.trace` returned it.

    Args:
        link: The checkpoint.
        path: The HTML file; one that exists is replaced.
    """
    files.write_bytes(path, render_page(link).encode())


def render_page(link: Link) -> str:
    """Return the page's HTML."""
    problems = [visible(line) for one in walk(link) for line in one.problems]
    return render(
        "lineage.html",
        styles=["page.css", "lineage.css"],
        name=visible(link.name),
        digest=link.digest,
        verdict=_verdict(link, problems),
        ok=link.ok,
        looked=link.verified is not None,
        problems=problems,
        drawing=draw(link),
        box=(BOX_WIDTH, BOX_HEIGHT),
        cards=[_card(one) for one in _once(link) if one.kind != "file"],
    )


def _verdict(link: Link, problems: list[str]) -> str:
    if link.verified is None:
        return "not verified"
    count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
    return count if problems else "every byte as recorded"


def _card(link: Link) -> dict[str, Any]:
    return {
        "id": anchor(link),
        "kind": link.kind,
        "name": visible(link.name),
        "state": state(link),
        "word": _WORDS[state(link)],
        "digest": link.digest,
        "path": visible(link.path or ""),
        "facts": [visible(fact) for fact in link.facts],
        "problems": [visible(problem) for problem in link.problems],
        "files": [
            {
                "id": anchor(file),
                "name": visible(file.path or file.name),
                "digest": file.digest,
                "size": ", ".join(file.facts),
                "state": state(file),
            }
            for file in link.links
            if file.kind == "file"
        ],
    }


def _once(link: Link) -> Iterator[Link]:
    """Yield every link once, though two trainings may share a dataset or a source."""
    seen = set()
    for one in walk(link):
        if anchor(one) not in seen:
            seen.add(anchor(one))
            yield one
