"""What the README says of the project: its commands, its rooms, the way through its code."""

import ast
import re
from pathlib import Path

from tests.pages import README, ROOT

TEXT = README.read_text()


def test_it_can_be_read_in_a_few_minutes():
    assert len(TEXT.splitlines()) <= 150


def test_every_command_is_in_the_table():
    from flows.cli import app

    for name in app:
        if not name.startswith("-"):
            assert f"`mypt {name}" in TEXT, name


def rooms() -> list[str]:
    """The folders that the README's tree names, from the root."""
    tree = TEXT.partition("## The rooms")[2].split("```")[1]
    stack: list[str] = []
    found: list[str] = []
    for line in tree.strip("\n").splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.match(r"(?:\w+/ ?)+", line.lstrip())[0].split()
        stack[depth:] = names[:1]
        found += ["".join((*stack[:depth], name)).rstrip("/") for name in names]
    return found


def test_the_tree_names_every_room_and_no_other():
    packages = {
        str(file.parent.relative_to(ROOT))
        for room in ("mypt", "tasks", "flows")
        for file in (ROOT / room).rglob("*.py")
    }
    assert sorted(rooms()) == sorted(
        {*packages, "configs", "deployments", "docs", "examples", "tests"}
    )


def code_lines(path: Path) -> int:
    """Lines that are neither blank nor comment nor docstring."""
    text = path.read_text()
    said: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", ())
        for part in body if isinstance(body, list) else ():
            if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
                said |= set(range(part.lineno, (part.end_lineno or part.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in said
        for number, line in lines
    )


def path_of(beginning: str) -> list[Path]:
    """The files of the path that the README tells of in this paragraph."""
    paragraph = TEXT[TEXT.index(beginning) :].partition("\n\n")[0]
    return [ROOT / name for name in re.findall(r"`((?:flows|tasks|mypt)/[\w/]+\.py)`", paragraph)]


def test_the_path_of_one_run_is_short():
    files = path_of("The path of one run")
    assert len(files) >= 12
    assert sum(code_lines(file) for file in files) <= 1600


def test_the_path_of_the_data_exists():
    files = path_of("The path of the data")
    assert len(files) >= 7
    assert [file for file in files if not file.is_file()] == []
