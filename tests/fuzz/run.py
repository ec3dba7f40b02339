"""Coverage-guided fuzzing of one target, by hand: ``make fuzz TARGET=jsonl RUNS=100000``.

Needs ``pip install atheris`` (Linux, Python 3.11 to 3.13). What reaches new code is kept in
``corpus/``; an input that fails, or is slow, is written to ``failed/``, which git ignores.
"""

import atexit
import signal
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mypt", "tasks.tracking.records"]):
    from tests.fuzz import corpus
    from tests.fuzz.targets import TARGETS, check

KEPT, LONGEST = 60, 600
FAILED = corpus.FOLDER.parent / "failed"


def main() -> None:
    """Fuzz the target named first for as many runs as are named second."""
    name, runs = sys.argv[1], sys.argv[2]
    target = TARGETS[name]
    found = Path(tempfile.mkdtemp())
    for number, data in enumerate(corpus.read(name)):
        (found / f"kept-{number}").write_bytes(data)
    scratch = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))

    def one(data: bytes) -> None:
        if len(data) > 1:
            check(target, data, scratch)

    def keep() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # the clock that guards one run ticks on
        inputs = {path.read_bytes() for path in found.iterdir()}
        short = sorted((data for data in inputs if 1 < len(data) <= LONGEST), key=len)
        every = max(1, -(-len(short) // KEPT))
        corpus.write(name, short[::every])

    atexit.register(keep)
    FAILED.mkdir(exist_ok=True)
    limits = ["-max_len=2000", "-timeout=20", "-rss_limit_mb=4000", "-print_final_stats=1"]
    limits += [f"-artifact_prefix={FAILED}/{name}-"]
    atheris.Setup([sys.argv[0], f"-atheris_runs={runs}", *limits, str(found)], one)
    atheris.Fuzz()


main()
