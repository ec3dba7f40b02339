"""What people wait for before any arithmetic: whole commands against what they need."""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import Line, Ratio, judge, ratio

PRESET = {
    "block_size": 64, "vocab_size": 272, "n_layer": 1, "n_head": 2, "n_embd": 16, "batch_size": 4,
    "max_iters": 2, "learning_rate": 1e-3, "warmup_iters": 1, "use_loss_mask": True,
    "eval_interval": 2, "eval_iters": 1, "threads": 1, "device": "cpu",
}  # fmt: skip
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "was",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "at",
    "be",
    "this",
    "from",
]
SMOKE = Path(__file__).parents[2] / "configs" / "smoke.json"
_MYPT = "import sys; from flows.cli import main; sys.exit(main(sys.argv[1:]))"


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the lines of this area."""
    rounds = 3 if quick else 7
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MYPT_HOME"] = folder
        home = Path(folder)
        _prepare(home, 60, home / "few", "byte")
        (home / "preset.json").write_text(json.dumps(PRESET))
        _mypt(f"train --config_file {home}/preset.json --model_name m --dataset_dir {home}/few")
        found = _compare(
            lambda _: _mypt("generate m --prompt Hi --max_tokens 1"),
            lambda _: _seconds(["-c", "import torch"]),
            rounds,
        )
        yield _line("generate, one token, whole command", "import torch", 1.2, found)
        found = _compare(
            lambda _: _mypt("--help"), lambda _: _seconds(["-c", "import cyclopts"]), rounds
        )
        yield _line("--help, whole command", "import cyclopts, its parser", 4.0, found)
        rows = 20_000
        found = _compare(
            lambda n: _mypt(f"validate {home}/many{n}"),
            lambda n: _prepare(home, rows, home / f"many{n}", "gpt2"),
            min(rounds, 3),
        )
        yield _line(f"validate, {rows:,} conversations", "prepare of the same", 1.0, found)
        found = _compare(
            lambda n: _mypt(f"show {home}/many{n} --html {home}/page{n}.html"),
            lambda n: _mypt(f"validate {home}/many{n}"),
            min(rounds, 3),
        )
        yield _line(f"show --html, {rows:,} conversations", "validate of the same", 0.5, found)
        found = _compare(
            lambda n: _mypt(f"run {SMOKE} --param name=smoke{n}"),
            lambda n: _mypt(f"run {SMOKE} --param name=smoke{n}"),
            1 if quick else 2,
        )
        yield _line("run configs/smoke.json, the second", "the first", 0.12, found)


def _compare(
    ours: Callable[[int], float], theirs: Callable[[int], float], rounds: int
) -> dict[str, list[float]]:
    """Return processor seconds of both, round by round; theirs comes first."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for n in range(rounds):
        seconds["theirs"].append(theirs(n))
        seconds["ours"].append(ours(n))
    return seconds


def _line(work: str, against: str, most: float, seconds: dict[str, list[float]]) -> Line:
    found: Ratio = ratio(seconds, "theirs", "ours")  # how many times longer ours takes
    best = {name: min(values) for name, values in seconds.items()}
    note = f"{best['ours']:.2f} and {best['theirs']:.2f} processor seconds"
    return Line(work, against, f"<= {most}", str(found), judge(most, found.median), note)


def _prepare(home: Path, n: int, out: Path, tokenization: str) -> float:
    source = home / f"{n}.jsonl"
    if not source.exists():
        drawn = random.Random(0)
        with source.open("w") as file:
            for _ in range(n):
                turns = [
                    {"role": role, "content": " ".join(drawn.choices(WORDS, k=drawn.randint(2, 6)))}
                    for _ in range(drawn.randint(1, 4))
                    for role in ("user", "assistant")
                ]
                file.write(json.dumps({"messages": turns}) + "\n")
    said = f"--tokenization {tokenization} --format messages --mask_role assistant"
    return _mypt(f"prepare --input_files {source} --out_dir {out} {said}")


def _mypt(words: str) -> float:
    return _seconds(["-c", _MYPT, *words.split()])


def _seconds(words: list[str]) -> float:
    """Return the processor seconds of a Python process from its start to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
