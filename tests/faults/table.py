"""What is injected and what must happen, as the table that the faults run prints."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Row:
    """One fault of the table and its count."""

    fault: str
    outcome: str
    """What must happen each time."""
    begun: int = 0
    as_expected: int = 0

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Count one injection; an exception in the block is a failure."""
        self.begun += 1
        yield
        self.as_expected += 1

    def __str__(self) -> str:
        missed = self.begun - self.as_expected
        verdict = self.outcome if not missed else f"**{missed} not as expected:** {self.outcome}"
        return f"| {self.fault} | {self.begun} | {verdict} |"


ROWS = {
    "crash": Row(
        "crash at a write, sync, rename or removal of the whole pipeline",
        "the same again completes; every file bit-identical",
    ),
    "kill": Row(
        "SIGKILL at a random instant, and a second one during recovery",
        "bit-identical; nothing half-written under a final name",
    ),
    "kill flow": Row(
        "SIGKILL of the whole flow with Prefect and MLflow; an operation that fails once in it",
        "finished by the next run, or by Prefect's retry: bit-identical, no step twice in MLflow",
    ),
    "database": Row(
        "SIGKILL while the database of MLflow or of Prefect is made",
        "the next start makes it; nothing half-made under its name",
    ),
    "terminate": Row(
        "SIGTERM at a random instant of a training",
        "checkpoint of the step it was in, exit 143; resumed bit-identical",
    ),
    "flip": Row(
        "one bit flipped anywhere in a file of a dataset or a checkpoint",
        "detected before use, the file named",
    ),
    "tear": Row(
        "file cut, zero-tailed, emptied, taken from another shard or step, missing",
        "detected before use, the file named",
    ),
    "full": Row(
        "disk full, folder read-only, file vanishing, at each stage and operation",
        "one line that names the path; nothing torn; goes on when the cause is gone",
    ),
    "race": Row(
        "two runs at once on one dataset or model",
        "one works, the other waits or is refused; bit-identical",
    ),
    "service": Row(
        "MLflow or Prefect away at the start, in the middle, always; answering 500 or nothing",
        "training goes on, at most 2 s of waiting, no metric lost",
    ),
    "number": Row(
        "loss or gradient not finite, at a random step and micro-batch",
        "stops before the update, rows named by file and line; the same again goes on",
    ),
    "memory": Row(
        "no memory left while tokenizing or in a step",
        "one line that says what to change",
    ),
    "cache": Row(
        "source edited under a cached run (same size, same time); output changed or deleted",
        "noticed by content; the stage runs again",
    ),
    "clock": Row(
        "clock set back and forth by years, file times scrambled",
        "bit-identical",
    ),
}


def counts() -> dict[str, tuple[int, int]]:
    """Return what was begun and what went as expected, by row."""
    return {name: (row.begun, row.as_expected) for name, row in ROWS.items()}


def add(found: dict[str, tuple[int, int]]) -> None:
    """Add what another process counted."""
    for name, (begun, as_expected) in found.items():
        ROWS[name].begun += begun
        ROWS[name].as_expected += as_expected


def render() -> list[str]:
    """Return the table in Markdown, with the rows that were injected at all."""
    rows = [str(row) for row in ROWS.values() if row.begun]
    return ["| fault | injected | outcome |", "|---|---|---|", *rows] if rows else []
