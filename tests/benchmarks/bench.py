"""``make bench``: every area in a process of its own, one table, and BENCHMARKS.md."""

import argparse
import importlib
import os
import statistics
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / ".benchmarks" / "results.json"
REPORT = HERE.parents[1] / "BENCHMARKS.md"
AREAS = (
    "masked_step", "objective_step", "lora_step", "trl_step", "reading", "chat_data", "loading",
    "packing", "packed_attention", "generating", "evaluating", "answering", "text_data", "workers",
    "waiting", "planning", "tracking", "shakespeare", "gpu",
)  # fmt: skip
PEERS = ("tiktoken", "gigatoken", "transformers", "peft", "trl", "datasets")


def main() -> None:
    """Run what is asked for, or one area of it inside a process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("areas", nargs="*", default=AREAS)
    parser.add_argument("--quick", action="store_true", help="few rounds; writes nothing")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        _measure(asked.areas[0], quick=asked.quick)
        return
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "0"}
    failed = []
    for area in asked.areas:
        command = [sys.executable, __file__, area, "--inside", *["--quick"] * asked.quick]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        done = subprocess.run(command, env=os.environ | one_thread | offline, check=False)
        failed += [area] * (done.returncode != 0)
    if not asked.quick:
        write_report()
    if failed:
        sys.exit(f"these areas ended with an error: {', '.join(failed)}")


def _measure(area: str, *, quick: bool) -> None:
    import torch
    from harness import keep
    from rich.console import Console

    torch.set_num_threads(1)
    console = Console(width=150, soft_wrap=True)
    for line in importlib.import_module(area).lines(quick=quick):
        colour = {"yes": "green", "no": "red"}.get(line.met, "yellow")
        console.print(
            f"[bold]{line.work}[/] · {line.against} · {line.reach} ·"
            f" [{colour}]{line.measured}[/] · {line.note}",
            highlight=False,
        )
        if not quick:
            keep([line], RESULTS)


def write_report() -> None:
    """Write BENCHMARKS.md from the results that are there."""
    import json

    rows = json.loads(RESULTS.read_text())
    table = [
        f"| {row['work']} | {row['against']} | {row['reach']} | {row['measured']} | {row['met']} |"
        f" {row['note']} |"
        for row in rows
    ]
    text = (HERE / "preface.md").read_text()
    versions = ", ".join(f"{name} {_version(name)}" for name in PEERS)
    heads = ["| work | against | to reach | measured | met | note |", "|---|---|---|---|---|---|"]
    parts = [text, *_machines(rows), f"Peers: {versions}.", "", *heads, *table, ""]
    REPORT.write_text("\n".join(parts))


def _machines(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each machine and day; areas measure its products again."""
    from harness import PRODUCTS

    said = []
    for machine, date in sorted({(row["machine"], row["date"]) for row in rows}):
        here = [row for row in rows if (row["machine"], row["date"]) == (machine, date)]
        rates = {name: statistics.median(row[name] for row in here) for name in PRODUCTS}
        products = ", ".join(f"{rate:.0f} GFLOP/s in {name}" for name, rate in rates.items())
        said.append(f"{machine} ({date}); its products: {products}.")
    return said


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
