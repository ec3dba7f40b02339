"""Preparation of text by one worker and more: wall seconds grow as a line with the input."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness import Line
from text_data import as_a_line, write_text

PROGRAM = """
from pathlib import Path
import sys
from mypt.config import Preparation, PrepareConfig, Source
from mypt.data import crew
from mypt.data.dataset import tokenize
crew._WORTH_PROCESSES = 0
source = Source(path=sys.argv[1], format="text")
config = PrepareConfig(sources=(source,), tokenization="gpt2")
tokenize(config, Path(sys.argv[2]), preparation=Preparation(workers=int(sys.argv[3])))
"""


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield a line for each number of workers: 1, 2, and as many as there are cores."""
    if quick:
        return
    sizes = (32, 64, 128, 256)
    widths = sorted({1, 2, os.cpu_count() or 1})
    seconds: dict[int, list[float]] = {width: [] for width in widths}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            text = write_text(Path(folder) / "text.txt", size)
            for width in widths:
                started = time.monotonic()
                words = [str(text), f"{folder}/{width}", str(width)]
                subprocess.run([sys.executable, "-c", PROGRAM, *words], check=True)
                seconds[width].append(time.monotonic() - started)
    for width in widths:
        each = ", ".join(f"{n} MB {s:.1f} s" for n, s in zip(sizes, seconds[width], strict=True))
        yield as_a_line(
            f"preparation of text, gpt2, wall seconds of {width} worker{'s' * (width > 1)}",
            np.array(sizes, dtype=np.float64),
            np.array(seconds[width]),
            f"{each}; {os.cpu_count()} cores, load {os.getloadavg()[1]:.0f}",
        )
