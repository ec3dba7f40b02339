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


def test_every_pain_in_the_design_is_held_by_tests_that_exist():
    text = (ROOT / "DESIGN.md").read_text()
    table = text.partition("Pains, and the test that holds each")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| .+ \| (.+) \|$", table, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 34))
    for number, names in rows:
        assert re.fullmatch(r"`[\w/]+\.py::test_\w+`(, `[\w/]+\.py::test_\w+`)*", names), number
        for path, name in re.findall(r"`(.+?)::(.+?)`", names):
            tests = ast.walk(ast.parse((ROOT / "tests" / path).read_text()))
            assert name in {node.name for node in tests if isinstance(node, ast.FunctionDef)}
