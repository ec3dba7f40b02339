"""What the README tells people to type works as it is written."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from tests.faults import table

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
LINES = [line.split("  #")[0] for block in BLOCKS for line in block.splitlines() if line.strip()]
TYPED = [line for line in LINES if line.startswith("mypt ")]
SERVICES = ("mypt run", "mypt up", "mypt sync")
"""What starts servers or trains for minutes; tested in tests/flows and by ``make demo``."""


@pytest.fixture
def newcomer(tmp_path):
    """A folder with the files that the README speaks of and the project's configs."""
    turns = [("user", "What is 2+2?"), ("assistant", "2+2 equals 4.")]
    lines = [json.dumps({"role": role, "content": text}) for role, text in turns]
    other = [line.replace("2+2", f"{n}+2") for n in range(40) for line in (*lines, "")]
    (tmp_path / "chats").mkdir()
    (tmp_path / "chats" / "some.jsonl").write_text("\n".join(line for line in other))
    lines = "".join(f"The capital of country {n} is city {n}.\n\n" for n in range(2000))
    (tmp_path / "corpus.txt").write_text(lines)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def run(command: str, folder: Path) -> None:
    words = [str(Path(sys.executable).parent / "mypt"), *shlex.split(command)[1:]]
    environment = os.environ | {"MYPT_HOME": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    if words[1] == "serve":
        return talk([*words, "--port", "0"], folder, environment)
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return None


def talk(words: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Start a server, ask it as the README's client does, and end it."""
    with subprocess.Popen(
        words,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        address = re.search(r"for clients (\S+);", process.stdout.readline())
        assert address, process.stderr.read()
        client = openai.OpenAI(base_url=address[1], api_key="any", max_retries=5)
        messages = [{"role": "user", "content": "What is 2+2?"}]
        said = client.chat.completions.create(model="mine", messages=messages, max_tokens=4)
        assert 1 <= said.usage.completion_tokens <= 4
        assert isinstance(said.choices[0].message.content, str)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors


def shortened(command: str) -> str:
    """The same command with two steps of training on small batches."""
    if not command.startswith("mypt train"):
        return command
    return re.sub(r" --max_iters \d+", "", command) + " --max_iters 2 --batch_size 1"


def test_the_readme_has_commands_to_run():
    assert sum(not line.startswith(SERVICES) for line in TYPED) >= 9


def test_every_quick_command_works_in_the_order_given(newcomer):
    for command in TYPED:
        if not command.startswith(SERVICES):
            run(shortened(command), newcomer)


@pytest.mark.slow
def test_every_command_works_as_it_is_written(newcomer):
    for command in TYPED:
        if not command.startswith(SERVICES):
            run(command, newcomer)


def test_every_make_target_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    for line in LINES:
        if line.startswith("make "):
            assert f"\n{line.split()[1]}:" in makefile


def test_every_picture_and_file_linked_exists():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).is_file(), target


def test_every_command_is_in_the_table():
    from flows.cli import app

    table = (ROOT / "README.md").read_text()
    for name in app:
        if not name.startswith("-"):
            assert f"`mypt {name}" in table, name


def test_the_table_of_faults_has_every_row_and_no_failure():
    text = (ROOT / "README.md").read_text()
    for row in table.ROWS.values():
        found = re.search(rf"^\| {re.escape(row.fault)} \| ([\d,]+) \| (.*) \|$", text, re.M)
        assert found, row.fault
        assert int(found[1].replace(",", "")) >= 16
        assert found[2] == row.outcome


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


def test_the_path_of_one_run_is_short():
    text = (ROOT / "README.md").read_text()
    path = text[text.index("The path of one run") : text.index("The path of the data")]
    files = re.findall(r"`((?:flows|tasks|mypt)/[\w/]+\.py)`", path)
    assert len(files) >= 12
    assert sum(code_lines(ROOT / file) for file in files) <= 1500
