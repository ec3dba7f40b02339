"""Inputs that reached something new, kept as one text file a target: an input a line, base64."""

import base64
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"


def read(name: str) -> list[bytes]:
    """Return the kept inputs of a target."""
    path = FOLDER / f"{name}.txt"
    return [base64.b64decode(line) for line in path.read_text().split()] if path.exists() else []


def write(name: str, inputs: list[bytes]) -> None:
    """Keep inputs, shortest first."""
    lines = [base64.b64encode(data).decode() for data in sorted(inputs, key=lambda d: (len(d), d))]
    (FOLDER / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
