"""Prepare and validate every file of a folder, by hand: ``make real-files FOLDER=../shared/data``.

Each file goes through clean, with a finding, or with one line of error; anything else is a fault
of mypt, and the exit code is 1. The table that it printed last is in docs/real_files.md.
"""

import argparse
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console

from mypt.config import FieldMapping, Format, MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import open_dataset, prepare
from mypt.errors import MyptError
from mypt.inspection.validation import validate

NONE = "-"
CONSOLE = Console(soft_wrap=True, markup=False, highlight=False)
LAYOUTS = (
    None,
    FieldMapping(turns="utterances", role="speaker", text="text"),
    FieldMapping(turns="messages", role="sender", text="text", by_order=True),
)
"""How a file may be read: as it tells by itself, else as one of these says."""


def main() -> None:
    """Go through a folder and print one line a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenization", default="byte")
    parser.add_argument("--templates", nargs="*", default=["mypt"])
    asked = parser.parse_args()
    files = sorted(path for path in asked.folder.rglob("*") if path.is_file())
    faults = 0
    CONSOLE.print("| file | format | rows read → kept | dropped, notes, findings or error |")
    CONSOLE.print("|---|---|---|---|")
    for path in files:
        cells, found = _file(path, asked.tokenization, asked.templates)
        faults += found
        CONSOLE.print("|", " | ".join((path.name, *cells)), "|")
    for path in (path for path in files if path.name.endswith(".tar.gz")):
        said, found = _archive(path, asked.tokenization)
        faults += found
        CONSOLE.print(f"{path.name}, each file in it alone: {said}")
    sys.exit(f"{faults} tracebacks or error findings" if faults else 0)


def _file(path: Path, tokenization: str, templates: list[str]) -> tuple[tuple[str, ...], int]:
    """Return the cells of a file's line, and how many faults it showed."""
    lines, faults = [], 0
    for template in templates:
        cells = _attempt(path, tokenization, template)
        faults += cells[-1].startswith("TRACEBACK") or "error finding" in cells[-1]
        if cells not in (line for _, line in lines):
            lines.append((template, cells))
    first = lines[0][1]
    others = [f"template {name}: {cells[-1]}" for name, cells in lines[1:]]
    return (*first[:-1], "; ".join(filter(None, (first[-1], *others)))), faults


def _attempt(path: Path, tokenization: str, template: str) -> tuple[str, str, str]:
    try:
        said = ""
        for mapping in LAYOUTS:
            format: Format = "mapping" if mapping else "auto"
            source = Source(path=str(path), format=format, mapping=mapping)
            config = PrepareConfig(sources=(source,), tokenization=tokenization, template=template)
            try:
                return _dataset(config)
            except MyptError as error:
                said = said or str(error)
        return NONE, NONE, said.replace("|", "\\|").replace(f"{path.parent}/", "")
    except Exception as error:
        return NONE, NONE, f"TRACEBACK {type(error).__name__}: {error}"


def _dataset(config: PrepareConfig) -> tuple[str, str, str]:
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "dataset"
        prepare(config, MaskPolicy(), out)
        manifest = open_dataset(out).manifest
        report = validate(out)
        (source,) = manifest.sources
        kept = sum(shard.n_rows for shard in manifest.shards)
        counts = [f"{count.rows:,} {count.reason}" for count in (*source.dropped, *source.notes)]
        counts += [f"{f.level} finding {f.code} {f.count}" for f in report.findings]
        return source.format, f"{source.rows_read:,} → {kept:,}", "; ".join(counts)


def _archive(path: Path, tokenization: str) -> tuple[str, int]:
    """Return what became of an archive's members, each read as one line of a ``.jsonl``."""
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    with tarfile.open(path) as archive, tempfile.TemporaryDirectory() as scratch:
        for number, member in enumerate(archive):
            stream = archive.extractfile(member)
            if stream is None:
                continue
            one = Path(scratch) / f"{number}.jsonl"
            one.write_bytes(stream.read())
            start = time.perf_counter()
            cells = _attempt(one, tokenization, "mypt")
            slowest = max(slowest, time.perf_counter() - start)
            fault = cells[-1].startswith("TRACEBACK")
            outcomes["traceback" if fault else "error" if cells[0] == NONE else "rows"] += 1
            if fault:
                CONSOLE.print(member.name, cells[-1])
    told = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
    return f"{told}; the slowest took {slowest:.1f} s", outcomes["traceback"]


main()
