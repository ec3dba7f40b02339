"""The chain of a checkpoint as one self-contained page: no script, nothing loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mypt import files
from mypt.pages.render import render
from mypt.provenance.trace import Link
from mypt.text import visible

FILES_OPEN = 12
"""Files of a source that are listed at once; longer lists open on a click, or if one is amiss."""
_WORDS = {"good": "as recorded", "bad": "not as recorded", "lost": "not found", "unknown": ""}


def write_page(link: Link, path: Path) -> None:
    """Write the page of a chain, as :func:`mypt.provenance.trace.trace` returned it.

    Args:
        link: The checkpoint.
        path: The HTML file; one that exists is replaced.
    """
    files.write_bytes(path, render_page(link).encode())


def render_page(link: Link) -> str:
    """Return the page's HTML: nested lists, as :func:`mypt.provenance.trace.render` prints them."""
    links = list(_walk(link))
    return render(
        "lineage.html",
        styles=["page.css", "lineage.css"],
        name=visible(link.name),
        digest=link.digest,
        looked=link.verified is not None,
        lost=sum(state(one) == "lost" for one in links if one.kind != "source"),
        problems=[visible(line) for one in links for line in one.problems],
        chain=_item(link, {}),
    )


def _item(link: Link, seen: dict[Link, str]) -> dict[str, Any]:
    """Return what the page says of a link; one that stood before has no more than its name.

    Args:
        link: The link.
        seen: What stands above, and the element that it is; grows.
    """
    again = link in seen
    item = {
        "again": again,
        "id": seen.setdefault(link, f"link-{len(seen)}"),
        "kind": link.kind,
        "name": visible(link.name),
        "digest": link.digest,
        "state": state(link),
        "word": _WORDS[state(link)],
    }
    if again:
        return item
    of_files = [file for file in link.links if file.kind == "file"]
    return item | {
        "path": None if link.kind == "source" else visible(link.path or "not found"),
        "facts": [visible(fact) for fact in link.facts],
        "problems": [visible(problem) for problem in link.problems],
        "files": [_file(file) for file in of_files],
        "open": len(of_files) <= FILES_OPEN or state(link) in ("bad", "lost"),
        "links": [_item(below, seen) for below in link.links if below.kind != "file"],
    }


def _file(file: Link) -> dict[str, Any]:
    return {
        "name": visible(file.path or file.name),
        "digest": file.digest,
        "facts": ", ".join(file.facts),
        "state": state(file),
        "word": _WORDS[state(file)],
        "problems": [visible(problem) for problem in file.problems],
    }


def state(link: Link) -> str:
    """Return whether a link is as recorded: ``good`` or ``bad``; if nobody looked, ``unknown``.

    What nobody looked at and is not found is ``lost``; a source is what the worst of its files is.
    """
    if link.kind == "source":
        states = {state(file) for file in link.links} or {"unknown"}
        return next(one for one in ("bad", "lost", "unknown", "good") if one in states)
    if link.verified is None:
        return "lost" if link.path is None else "unknown"
    return "good" if link.verified else "bad"


def _walk(link: Link) -> Iterator[Link]:
    """Yield a link and all below it, from above."""
    yield link
    for below in link.links:
        yield from _walk(below)
