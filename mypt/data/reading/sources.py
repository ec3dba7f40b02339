"""One source of a dataset: its files found, hashed, read as rows, and accounted for."""

import glob
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mypt.config import Format, Reading, Source
from mypt.data.conversations import Row
from mypt.data.manifest import Count, SourceFile, SourceRecord
from mypt.data.reading import exercises
from mypt.data.reading.formats import people, slack
from mypt.data.reading.portions import FileSlice, Portion, cut_portions
from mypt.data.reading.raw import Limits, RawFile
from mypt.data.reading.readers import decide_format, read_rows, together
from mypt.data.reading.records import WHOLE, Tally, Unread
from mypt.errors import ConfigError, DataError
from mypt.home import home, package_folder
from mypt.text import one_line, shorten

_SHOWN = 60
_BLANK_BYTES = 4 << 10
_DOCUMENTS = frozenset({".md", ".txt", ".text"})
# What a folder of data holds besides: by its whole name, its name without suffix, its suffix.
_DESCRIPTIONS = frozenset(
    {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "_success"}
    | {"croissant.json", "datapackage.json"}
)
_PAPERS = frozenset(
    {"readme", "license", "licence", "copying", "notice", "changelog", "citation", "authors"}
    | {"makefile", "dockerfile", "requirements", "md5sums", "sha256sums", "checksums"}
)
_NO_ROWS = frozenset(
    {".py", ".ipynb", ".sh", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".lock", ".bib", ".pdf"}
    | {".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".html", ".css", ".md5", ".sha256"}
)
_SPEAKERS = 20


def open_source(source: Source, index: int = 0, *, limits: Limits | None = None) -> "SourceReader":
    """Find and hash the files of a source and decide its format; no row is read for good.

    Args:
        source: What to read.
        index: Its place among the sources, for errors about one without a name.
        limits: What a file may ask of the machine.

    Raises:
        ConfigError: If the source contradicts itself.
        DataError: If a file is missing, empty or unreadable, or its format cannot be told.
    """
    if source.mapping and source.format not in ("auto", "mapping"):
        raise ConfigError(
            f"source {index + 1}: a mapping with format {source.format!r}; expected format"
            " 'mapping', or no mapping"
        )
    _check_columns(source, index)
    aside: Counter[str] = Counter()
    paths = find_files(source, aside)
    raws = [RawFile(path, i, limits, WHOLE, source.encoding) for i, path in enumerate(paths)]
    if source.format in ("auto", "slack") and not source.mapping and slack.is_export(raws):
        names = slack.names_beside(paths)
        raws += [RawFile(path, i, limits) for i, path in enumerate(names, len(raws))]
        source = source.model_copy(update={"format": "slack"})
    return SourceReader(source, raws, aside)


class SourceReader:
    """The rows of one source, read lazily and from the start each time it is iterated."""

    def __init__(self, source: Source, raws: list[RawFile], aside: Counter[str]) -> None:
        """Hash the files and decide the format by all of them.

        Args:
            source: What to read.
            raws: Its files.
            aside: Members of its folder that are not read, by what they are.

        Raises:
            DataError: If one cannot be read, or the format cannot be told or is not one.
        """
        self.name = source_name(source)
        self.files = tuple(_source_file(raw) for raw in raws)
        self.format: Format = source.format
        if source.format == "auto":
            self.format = decide_format(raws, source)
        if source.assistant and self.format not in people.FORMATS:
            raise ConfigError(
                f"{self.name}: assistant {source.assistant!r} with format {self.format!r}, whose"
                f" rows name roles; expected it with {', '.join(sorted(people.FORMATS))} only"
            )
        self._source = source
        self._aside = aside
        knobs = {key: getattr(source, key) for key in Reading.model_fields}
        # Who asks for text has said that tags in it are only text.
        said = {"markup": "none"} if source.format == "text" else {}
        self.how = Reading(**knobs | {"format": self.format} | said)
        self._raws = raws
        self.finished = False
        """Whether the last pass came to the end of all files."""
        self.begin()

    @property
    def unread(self) -> dict[str, Unread]:
        """Fields that were not read in the present pass."""
        return dict(self._tally.unread)

    @property
    def meaningless(self) -> frozenset[str]:
        """Names of fields that this pass met and knew to say nothing."""
        return frozenset(self._tally.meaningless)

    @property
    def bytes_total(self) -> int:
        """Bytes of all files as they are stored."""
        return sum(raw.size for raw in self._raws)

    @property
    def bytes_done(self) -> int:
        """How many of them were read in the present pass."""
        return sum(raw.bytes_done for raw in self._raws)

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows of all files in order.

        Raises:
            DataError: For the first row that is wrong, if a file changed since it was hashed,
                or if no row of the source is kept.
        """
        self.begin()
        digests = iter(file.sha256 for file in self.files)
        for first, *more in together(self._raws, self.format):
            for row in read_rows(first, self.how, self._tally, more):
                self._n_kept += 1
                yield row
            for raw in (first, *more):
                raw.check_unchanged(next(digests))
        self.finish()

    def portions(self, source: int) -> Iterator[Portion]:
        """Cut the source into what workers read; ``source`` is its place among the sources.

        Raises:
            DataError: If a file changed since it was hashed.
        """
        hashed = zip(self._raws, (file.sha256 for file in self.files), strict=True)
        return cut_portions(hashed, source, self.how)

    def begin(self) -> None:
        """Begin a pass over the rows: forget what was counted in the one before."""
        self._tally = Tally.of(self.how)
        self._n_kept, self.finished = 0, False
        for raw in self._raws:
            raw.bytes_done = 0

    def add(self, n_kept: int, tally: Tally) -> None:
        """Count what was read elsewhere."""
        self._n_kept += n_kept
        self._tally.add(tally)

    def set_aside(self, piece: FileSlice) -> None:
        """Note that a piece was not read, since it ends whoever reads it."""
        name = piece.name.removeprefix(str(Path(piece.path).parent)).lstrip("/")
        self._tally.dropped[f"{name}: set aside, its rows unknown, since it ended every worker"] = 0

    def finish(self) -> None:
        """End a pass.

        Raises:
            DataError: If no row of the source is kept, or nothing says who is the assistant.
        """
        self.finished = True
        found = ", ".join(
            f"{one_line(name)} ({n:,})" for name, n in self._tally.speakers.most_common(_SPEAKERS)
        )
        if found and not self._source.assistant:
            raise DataError(
                f"{self.name}: nothing says who is the assistant in format {self.format!r}; found"
                f" the speakers {found}; choose one by --assistant NAME, or another --format"
            )
        if not self._n_kept:
            dropped = self._tally.dropped.items()
            why = ", ".join(f"{n} of {reason}" for reason, n in dropped) or "there is none"
            way = (
                f"choose --assistant NAME of the speakers {found}" if found else "choose other data"
            )
            raise DataError(f"{self.name}: every row was dropped ({why}); {way}")

    def record(self) -> SourceRecord:
        """Return what was read and what was left out, for the dataset's metadata.

        Raises:
            ValueError: If the last pass over the rows did not reach their end.
        """
        if not self.finished:
            raise ValueError(f"{self.name} was not read to its end")
        return SourceRecord(
            name=self.name,
            format=self.format,
            weight=self._source.weight,
            licence=self._source.licence,
            files=self.files,
            rows_read=self._n_kept + self._tally.dropped.total(),
            dropped=_counts(self._tally.dropped),
            notes=_counts(self._tally.notes + self._tally.unread_notes() + self._aside),
        )


def _check_columns(source: Source, index: int) -> None:
    """Refuse a knob that the format would ignore.

    Raises:
        ConfigError: If there is one.
    """
    knobs = {
        "turns": (source.turns, ("auto", "columns")),
        "markup": (source.markup, ("auto", "columns", "rendered")),
        "group_by": (source.group_by, ("auto", "chat")),
        "pairs": (source.pairs, ("auto", "columns")),
        "side rejected": (source.side == "rejected", ("auto", "columns")),
    }
    for knob, (given, formats) in knobs.items():
        if given and (source.format not in formats or source.mapping):
            raise ConfigError(
                f"source {index + 1}: {knob} with format {source.format!r}; expected format"
                f" {' or '.join(formats)}, or leave it out"
            )


def source_name(source: Source) -> str:
    """Return the name of a source in statistics."""
    generated = f"exercises_{source.exercises}"
    return source.name or source.package or Path(source.path).name or generated


def source_names(sources: Iterable[Source]) -> str:
    """Return the names of sources, as people say what a dataset is made from."""
    return ", ".join(map(source_name, sources))


def find_files(source: Source, aside: Counter[str] | None = None) -> tuple[Path, ...]:
    """Return the files that a source means, in the order in which they are read.

    A folder means all files below it, a pattern all that match, both by name, and a file once
    whatever its names. What is no data is left aside: names that begin with a dot, a README or
    licence, what describes a dataset, Markdown beside rows, files of nothing but white space,
    folders behind a link or of which a pattern means no file. Generated exercises are written
    first, once.

    Args:
        source: What to read.
        aside: Counts what is left aside, by what it is.

    Raises:
        DataError: If there is none, or the package is not installed.
        ConfigError: If a path leaves its package.
    """
    if source.exercises:
        return (exercises.write_source(source, home() / "sources"),)
    root = package_folder(source.package, source.path) if source.package else Path()
    path = root / source.path
    try:
        is_folder = path.is_dir()
    except OSError as error:
        name = shorten(str(path), _SHOWN)
        raise DataError(f"{name}: {error.strerror}; check the path or the pattern") from None
    if is_folder:
        found = iter(path.rglob("*"))
    elif glob.has_magic(source.path) and not path.exists():
        # Path.glob takes no absolute pattern.
        names = glob.glob(source.path, root_dir=root, recursive=True)  # noqa: PTH207
        found = (root / name for name in names)
    else:
        return (path,)
    return _members(path, sorted(found), aside, whole=is_folder)


def _members(
    root: Path, found: Sequence[Path], aside: Counter[str] | None, *, whole: bool
) -> tuple[Path, ...]:
    """Return the files among ``found`` that hold data, each once."""
    paths = [path for path in found if path.is_file()]
    open_ones = {folder for path in paths for folder in path.parents}
    beside = (path for path in found if not path.is_file() and path not in open_ones)
    left = Counter(filter(None, (_passed_over(path, root if whole else None) for path in beside)))
    kept: dict[tuple[int, int], Path] = {}
    rows = any(p.suffix.lower() not in _DOCUMENTS and not _no_data(p, root) for p in paths)
    for path in paths:
        status = path.stat()
        why = _no_data(path, root)
        if rows and path.suffix.lower() == ".md":
            why = why or "*.md beside rows"
        if not why and _is_blank(path, status.st_size):
            why = "empty"
        if not why and (status.st_dev, status.st_ino) in kept:
            why = "another name of one that is read"
        if why:
            left[f"file left aside: {why}"] += 1
        else:
            kept[status.st_dev, status.st_ino] = path
    if not kept:
        others = f" but {', '.join(left)}; name the file itself" if left else ""
        raise DataError(f"{root}: no file found{others}; check the path or the pattern")
    if aside is not None:
        aside.update(left)
    return tuple(kept.values())


def _passed_over(path: Path, root: Path | None) -> str:
    """Return what is passed over with something that is no file; empty if nothing is.

    Args:
        path: A folder, a link or a device.
        root: The folder all of which is read; None where a pattern says what is.
    """
    if not path.is_dir():
        what = "link that leads to no file" if path.is_symlink() else "no ordinary file"
        return f"file left aside: {what}"
    is_read = root is not None and path.resolve().is_relative_to(root.resolve())
    return "" if is_read else "folder left aside: name it by itself"


def _no_data(path: Path, root: Path) -> str:
    """Return what makes a member of a folder no data; empty if nothing does."""
    inside = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    if any(part.startswith(".") for part in inside.parts):
        return "hidden"
    name, suffix = path.name.lower(), path.suffix.lower()
    if name in _DESCRIPTIONS or name.partition(".")[0] in _PAPERS:
        return path.name
    return f"*{suffix}" if suffix in _NO_ROWS else ""


def _is_blank(path: Path, size: int) -> bool:
    if size > _BLANK_BYTES:
        return False
    try:
        return not size or not any(piece.strip() for piece in RawFile(path).chunks())
    except DataError:
        return False


def _source_file(raw: RawFile) -> SourceFile:
    return SourceFile(path=str(raw.path.absolute()), size=raw.size, sha256=raw.sha256())


def _counts(counter: Counter[str]) -> tuple[Count, ...]:
    return tuple(Count(reason=reason, rows=rows) for reason, rows in sorted(counter.items()))
