"""What ``mypt plan`` says from one core to 1,024 GPUs, each line measured or calculated."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import Line

CONFIGS = Path(__file__).parents[2] / "configs"
SHARED = {"parallel": "ddp", "processes": 1, "grad_accumulation": 1024, "batch_size": 1}
"""A step of micro-batches that any power of two up to 1,024 processes can share."""
STEPS, BLOCK = 5800, 512
"""20 tokens a parameter of the 150M preset."""


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield a line for each machine: on this one 20 steps are timed, on GPUs formulas speak."""
    yield from _measured(CONFIGS / "demo.json", "demo")
    if quick:
        return
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "150M.json"
        preset = {"preset": str(CONFIGS / "150M.json"), "block_size": BLOCK, "max_iters": STEPS}
        config.write_text(json.dumps(_flat(preset) | SHARED))
        yield from _measured(config, "150M preset, 3.04 B tokens")
        for count in (1, 8, 64, 1024):
            words = ["--gpu", "h100", "--count", str(count), "--price_per_hour", "3"]
            (found,) = _plan(config, *words)
            note = (
                f"40 % of the published peak assumed, traffic between GPUs within it (D95); costs"
                f" {found['cost']:.2f} at 3 an hour"
            )
            yield _line(f"150M preset, 3.04 B tokens, {count:,} x H100, ddp", found, note)


def _measured(config: Path, name: str) -> Iterator[Line]:
    for found in _plan(config):
        rate = found["tokens_per_step"] / found["step_seconds"]
        note = f"{rate:,.0f} tokens a second in a probe, wall time at load {os.getloadavg()[0]:.0f}"
        yield _line(f"{name}: {found['name']}, this machine", found, note)


def _line(work: str, found: dict[str, Any], note: str) -> Line:
    size = f"{found['parameters'] / 1e6:.1f} M parameters, {found['steps']:,} steps"
    return Line(
        work=f"plan: {work}",
        against=size,
        reach="-",
        measured=_said(found["seconds"]),
        met="measured" if found["measured"] else "calculated",
        note=note,
    )


def _said(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def _flat(preset: dict[str, Any]) -> dict[str, Any]:
    from mypt.config import load_config

    own = load_config(preset.pop("preset")).model_dump(mode="json")
    return own | preset


def _plan(config: Path, *words: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "flows.cli", "plan", str(config), "--json", *words]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    trainings: list[dict[str, Any]] = json.loads(said)["trainings"]
    return trainings
