"""What holds for every file of the project."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.pages import README, ROOT

PRODUCT = sorted(p for room in ("mypt", "tasks", "flows") for p in (ROOT / room).rglob("*.py"))
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in PRODUCT
}
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


def named_imports(tree: ast.AST) -> set[str]:
    """The project's own modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (within & MODULES.keys()) or {node.module}
    return names & MODULES.keys()


IMPORTS = {name: named_imports(ast.parse(path.read_text())) for name, path in MODULES.items()}


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
    _, laws, index, *decisions = re.split(r"^## ", text, flags=re.MULTILINE)
    assert laws.startswith("The laws")
    assert index.startswith("Index by room")
    numbers = [decision.split(" ")[0] for decision in decisions]
    assert len(numbers) == len(set(numbers))
    assert set(re.findall(r"\bD\d+\b", index)) == set(numbers)
    for decision in decisions:
        assert sum(bool(line.strip()) for line in decision.splitlines()) <= 15, decision[:40]


def test_every_law_that_is_cited_exists():
    laws = (ROOT / "DESIGN.md").read_text().partition("## The laws")[2].partition("\n## ")[0]
    numbers = re.findall(r"^(\d+)\. \*\*", laws, re.MULTILINE)
    for path in (*PRODUCT, ROOT / "DESIGN.md", *(ROOT / "docs").glob("*.md")):
        assert set(re.findall(r"\blaws? (\d+)\b", path.read_text())) <= set(numbers), path


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


def test_a_folder_is_seen_at_a_glance():
    files = (p for room in ("mypt", "tasks", "flows") for p in (ROOT / room).rglob("*.*"))
    counts = Counter(p.parent for p in files if p.is_file() and p.suffix != ".pyc")
    assert {str(folder): n for folder, n in counts.items() if n > 16} == {}


@pytest.mark.parametrize("path", PRODUCT, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_have_walls(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


def test_a_crumb_that_one_file_imports_says_why_it_stands_alone():
    for name, path in MODULES.items():
        text = path.read_text()
        importers = [other for other, names in IMPORTS.items() if name in names]
        if len(text.splitlines()) < 60 and len(importers) == 1:
            assert "\nA file of its own: " in text, f"{path}: only {importers[0]} imports it"


def test_imports_make_no_circle():
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which names the circle


def test_every_package_can_be_imported_alone():
    """Whichever of its files is read first: no order of imports is needed."""
    packages = [name for name, path in MODULES.items() if path.name == "__init__.py"]
    program = f"""
import importlib, sys
modules = {sorted(MODULES)!r}
for package in {packages!r}:
    for name in modules:
        sys.modules.pop(name, None)
    for name in modules:
        if name.rpartition(".")[0] == package:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:  # an extra that is not installed
                assert error.name.partition(".")[0] not in ("mypt", "tasks", "flows"), error
print("all")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("all\n"), done.stderr


def test_every_room_has_its_layer():
    """What ``lint-imports`` holds: a room that no layer names could import what it likes."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (inside,) = (c for c in contracts["contracts"] if c.get("containers") == ["mypt"])
    named = {room.strip() for layer in inside["layers"] for room in re.split("[|:]", layer)}
    there = {name.split(".")[1] for name in MODULES if name.startswith("mypt.")}
    assert named == there


def test_no_two_files_of_a_tree_share_a_name():
    for tree in ("mypt", "tasks", "flows"):
        names = Counter(p.name for p in PRODUCT if p.relative_to(ROOT).parts[0] == tree)
        del names["__init__.py"]
        assert [name for name, n in names.items() if n > 1] == []


def test_no_two_public_classes_share_a_name():
    names = Counter(
        node.name
        for path in PRODUCT
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, n in names.items() if n > 1] == []


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
    text = README.read_text()
    paragraph = text[text.index(beginning) :].partition("\n\n")[0]
    return [ROOT / name for name in re.findall(r"`((?:flows|tasks|mypt)/[\w/]+\.py)`", paragraph)]


def test_the_path_of_one_run_is_short():
    files = path_of("The path of one run")
    assert len(files) >= 12
    assert sum(code_lines(file) for file in files) <= 1600


def test_the_path_of_the_data_exists():
    files = path_of("The path of the data")
    assert len(files) >= 7
    assert [file for file in files if not file.is_file()] == []
