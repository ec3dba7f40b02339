"""The chain of a checkpoint as boxes and arrows: raw files on the left, weights on the right."""

from collections.abc import Iterator
from dataclasses import dataclass

from mypt.provenance.trace import Link
from mypt.text import shorten, visible

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, TOP = 190, 56, 46, 12, 34
FILES_DRAWN = 4
"""Boxes for the files of one source; how many more there are is said in a box of its own."""
_FILE, _SOURCE, _BEFORE, _DATASET, _CHECKPOINT = COLUMNS = (
    "raw files", "sources", "before masking", "datasets", "checkpoints",
)  # fmt: skip
_TITLE_LENGTH = 20


@dataclass(frozen=True, slots=True)
class Box:
    """One link of the chain."""

    x: float
    y: float
    kind: str
    title: str
    """As much of the name as fits."""
    full: str
    """The whole name."""
    note: str
    """The digest's first digits, behind the step where it is a checkpoint."""
    state: str
    """``good``, ``bad`` or ``unknown``."""
    anchor: str
    """Element of the page that says more."""

    @property
    def middle(self) -> float:
        """Height at which arrows arrive and leave."""
        return self.y + BOX_HEIGHT / 2


@dataclass(frozen=True, slots=True)
class Drawing:
    """Boxes, and arrows as SVG paths."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    arrows: tuple[str, ...]
    headings: tuple[tuple[float, str], ...]
    """Where each column begins, and what stands in it."""


def draw(checkpoint: Link) -> Drawing:
    """Return the drawing of a chain, the oldest training on top."""
    canvas = _Canvas(_columns(checkpoint))
    canvas.training(checkpoint)
    return Drawing(
        width=max(canvas.x.values()) + BOX_WIDTH + 2,
        height=max(box.y for box in canvas.boxes) + BOX_HEIGHT + 2,
        boxes=tuple(canvas.boxes),
        arrows=tuple(canvas.arrows),
        headings=tuple((x, name) for name, x in canvas.x.items()),
    )


def anchor(link: Link) -> str:
    """Return the id of the element of the page that tells of ``link``."""
    return f"{link.kind}-{link.digest[:16]}"


def state(link: Link) -> str:
    """Return whether a link is as recorded: ``good``, ``bad`` or, if nobody looked, ``unknown``."""
    if link.kind == "source":
        states = {state(file) for file in link.links}
        return "bad" if "bad" in states else states.pop() if len(states) == 1 else "unknown"
    return {None: "unknown", True: "good", False: "bad"}[link.verified]


class _Canvas:
    """Boxes are laid one training below the other, each as high as its files."""

    def __init__(self, columns: list[str]) -> None:
        self.x = {name: 1 + i * (BOX_WIDTH + GAP_X) for i, name in enumerate(columns)}
        self.boxes: list[Box] = []
        self.arrows: list[str] = []
        self._y: float = TOP

    def training(self, checkpoint: Link) -> Box:
        """Lay out a checkpoint with all that it was made from."""
        parents = [self.training(link) for link in checkpoint.links if link.kind == "checkpoint"]
        if parents:
            self._y += 2 * GAP_Y
        datasets = [self._dataset(link) for link in checkpoint.links if link.kind == "dataset"]
        box = self._box(checkpoint, _CHECKPOINT, datasets)
        for parent in parents:
            x = box.x + BOX_WIDTH / 2
            self.arrows.append(f"M{x} {parent.y + BOX_HEIGHT} L{x} {box.y - 3}")
        return box

    def _dataset(self, dataset: Link) -> Box:
        before = [link for link in dataset.links if link.kind == "dataset"]
        sources = [self._source(link) for link in dataset.links if link.kind == "source"]
        unmasked = [self._box(link, _BEFORE, sources) for link in before]
        return self._box(dataset, _DATASET, unmasked or sources)

    def _source(self, source: Link) -> Box:
        worst_first = sorted(source.links, key=lambda file: file.verified is not False)
        shown = worst_first if len(worst_first) <= FILES_DRAWN + 1 else worst_first[:FILES_DRAWN]
        files = [self._box(file, _FILE, []) for file in shown]
        if more := len(worst_first) - len(shown):
            rest = source.model_copy(update={"kind": "file", "name": f"{more} more files"})
            files.append(self._box(rest, _FILE, [], anchor(source)))
        return self._box(source, _SOURCE, files)

    def _box(
        self,
        link: Link,
        column: str,
        made_from: list[Box],
        target: str | None = None,
    ) -> Box:
        if made_from:
            y = (made_from[0].y + made_from[-1].y) / 2
        else:
            y, self._y = self._y, self._y + BOX_HEIGHT + GAP_Y
        name, note = _label(link)
        box = Box(
            x=self.x[column],
            y=y,
            kind=link.kind,
            title=shorten(name, _TITLE_LENGTH),
            full=visible(link.name),
            note="" if target else note,
            state=state(link),
            anchor=target or anchor(link),
        )
        self.arrows.extend(_curves(made_from, box))
        self.boxes.append(box)
        return box


def _label(link: Link) -> tuple[str, str]:
    """Return the two lines of a box; a checkpoint's step stands before its digest."""
    if link.kind != "checkpoint":
        return link.name, link.digest[:12]
    name, _, step = link.name.rpartition(" step ")
    return name, f"step {step} \u00b7 {link.digest[:12]}"


def _curves(starts: list[Box], end: Box) -> Iterator[str]:
    for start in starts:
        x, to = start.x + BOX_WIDTH, end.x - 3
        bend = (to - x) / 2 if to - x < 2 * GAP_X else GAP_X
        yield (
            f"M{x} {start.middle} L{to - 2 * bend} {start.middle}"
            f" C{to - bend} {start.middle} {to - bend} {end.middle} {to} {end.middle}"
        )


def _columns(link: Link) -> list[str]:
    """Return the columns that the chain needs: not every dataset was masked apart."""
    apart = any(below.kind == "dataset" for one in walk(link) if one.kind == "dataset"
                for below in one.links)  # fmt: skip
    return [name for name in COLUMNS if apart or name != _BEFORE]


def walk(link: Link) -> Iterator[Link]:
    """Yield a link and all below it, from above."""
    yield link
    for below in link.links:
        yield from walk(below)
