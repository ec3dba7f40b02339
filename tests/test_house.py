"""What holds for every file of the project."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = sorted(p for room in ("mypt", "tasks", "flows") for p in (ROOT / room).rglob("*.py"))
HEAVY = ("torch", "mlflow", "prefect", "pandas", "pyarrow", "matplotlib")


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def imported(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", PRODUCT, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_that_is_read_can_execute(path):
    tree = ast.parse(path.read_text())
    assert not imported(tree) & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal"}
    for name, call in calls(tree):
        assert name not in {"torch.load", "torch.save", "eval", "exec", "yaml.load", "os.system"}
        keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert keywords.get("shell") != "True"
        assert keywords.get("allow_pickle") != "True"


@pytest.mark.parametrize("path", PRODUCT, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_one_file_renames(path):
    if path != ROOT / "mypt" / "files.py":
        names = {name.rpartition(".")[2] for name, _ in calls(ast.parse(path.read_text()))}
        assert not names & {"rename", "renames"}, "write through mypt.files"


@pytest.mark.parametrize(
    "statement",
    [
        "from flows.cli import app; app(['--help'])",
        "from mypt.config import load_config; load_config('configs/tiny_sft.json')",
        "import mypt.data.masking, mypt.inspection.validation, mypt.training.lineage",
    ],
)
def test_light_work_imports_nothing_heavy(statement):
    program = f"import sys; {statement}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_pain_is_held_by_tests_that_exist():
    table = (ROOT / "docs" / "pains.md").read_text()
    rows = re.findall(r"^\| (\d+) \| .+ \| (.+) \|$", table, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 34))
    for number, names in rows:
        assert re.fullmatch(r"`[\w/]+\.py::test_\w+`(, `[\w/]+\.py::test_\w+`)*", names), number
        for path, name in re.findall(r"`(.+?)::(.+?)`", names):
            tests = ast.walk(ast.parse((ROOT / "tests" / path).read_text()))
            assert name in {node.name for node in tests if isinstance(node, ast.FunctionDef)}


def test_every_decision_is_short_and_in_the_index():
    text = (ROOT / "DESIGN.md").read_text()
    _, index, *decisions = re.split(r"^## ", text, flags=re.MULTILINE)
    assert index.startswith("Index by room")
    numbers = [decision.split(" ")[0] for decision in decisions]
    assert len(numbers) == len(set(numbers))
    assert set(re.findall(r"\bD\d+\b", index)) == set(numbers)
    for decision in decisions:
        assert sum(bool(line.strip()) for line in decision.splitlines()) <= 15, decision[:40]


def test_every_decision_that_is_cited_exists():
    numbers = set(re.findall(r"^## (D\d+) ·", (ROOT / "DESIGN.md").read_text(), re.MULTILINE))
    for path in (*PRODUCT, ROOT / "pyproject.toml", *(ROOT / "docs").glob("*.md")):
        assert set(re.findall(r"\bD\d{1,2}\b", path.read_text())) <= numbers, path


def test_figures_that_decisions_leave_to_the_benchmarks_outlive_the_next_run():
    """``make bench`` writes BENCHMARKS.md anew, from its preface on."""
    preface = (ROOT / "tests" / "benchmarks" / "preface.md").read_text()
    assert (ROOT / "BENCHMARKS.md").read_text().startswith(preface)
    for number in re.findall(r"BENCHMARKS\.md, (D\d+)", (ROOT / "DESIGN.md").read_text()):
        assert f"**{number}.**" in preface, number
