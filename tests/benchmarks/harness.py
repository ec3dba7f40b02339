"""Side by side: every round runs each variant once, and only ratios inside a round are compared."""

import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Work = Callable[[], object]
PRODUCTS = ("float32", "bfloat16")
"""Dtypes whose products tell most about a processor."""


@dataclass(frozen=True)
class Line:
    """One line of the table: a piece of work against a peer."""

    work: str
    against: str
    reach: str
    measured: str
    met: str
    """yes, no, or what it depends on."""
    note: str = ""


@dataclass(frozen=True)
class Ratio:
    """How many times quicker ours is: median and quartiles of round-by-round ratios."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)}-{_short(self.high)})"


def interleave(variants: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """Return processor seconds of each variant in each round, run A B C, A B C, ...

    Processor time of one thread: on a shared machine wall time tells of the others. Each
    variant runs once before, for what is made on first use.
    """
    for work in variants.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, work in variants.items():
            started = time.process_time()
            work()
            seconds[name].append(time.process_time() - started)
    return seconds


def ratio(seconds: Mapping[str, list[float]], ours: str, peer: str) -> Ratio:
    """Return how many times quicker ``ours`` is than ``peer``."""
    pairs = zip(seconds[ours], seconds[peer], strict=True)
    found = sorted(theirs / our for our, theirs in pairs)
    if len(found) < 3:
        return Ratio(statistics.median(found), found[0], found[-1])
    low, median, high = statistics.quantiles(found, n=4, method="inclusive")
    return Ratio(median, low, high)


def judge(measured: float, reach: float) -> str:
    """Return whether a ratio reaches its goal."""
    return "yes" if measured >= reach else "no"


def extra_bytes(work: Work) -> int:
    """Return by how much memory rises above its rest while ``work`` runs (Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_bytes()
    work()
    return _peak_bytes() - before


@cache
def machine() -> dict[str, str | float]:
    """Return what was measured on, and how many GFLOP a processor second its products make."""
    import numpy as np
    import torch

    cpu = torch.cpu.get_capabilities()
    has = [name for name in ("avx512_bf16", "amx_bf16") if cpu.get(name)]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    named = (
        f"{_cpu_name()} ({', '.join(has) or 'no bfloat16'}), one thread, {gpu}; Python"
        f" {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    )
    rates = {name: _products(getattr(torch, name)) for name in PRODUCTS}
    return {"machine": named, "date": time.strftime("%Y-%m-%d")} | rates


def keep(lines: list[Line], path: Path) -> list[dict[str, str | float]]:
    """Merge lines into the results file, a newer one in place of an older; return all of them."""
    known = json.loads(path.read_text()) if path.exists() else []
    places = {(row["work"], row["against"]): i for i, row in enumerate(known)}
    for line in lines:
        row = asdict(line) | machine()
        if (place := places.get((line.work, line.against))) is None:
            known.append(row)
        else:
            known[place] = row
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(known, indent=1) + "\n")
    return known


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.3g}"


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _products(dtype: "torch.dtype") -> float:
    """Return GFLOP a processor second: what lines in bfloat16 hang on more than on anything."""
    import torch

    left, right = torch.ones(2, 1024, 1024, dtype=dtype)
    seconds = min(interleave({"": lambda: left @ right}, 5)[""])
    return 2 * 1024**3 / seconds / 1e9


def _cpu_name() -> str:
    parts = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if line]
    known = {key.strip(): value.strip() for key, value in parts}
    if "model name" not in known:
        return platform.machine()
    number = f"family {known['cpu family']} model {known['model']}" if "model" in known else ""
    return f"{known['model name']} {number}".strip()
