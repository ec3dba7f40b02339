"""What the README and the pages of docs/ tell people to type works as it is written."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from mypt import __version__
from tests.examples import paraphrases, share_right, taught
from tests.faults import table
from tests.pages import DOCS, PAGES, README, ROOT, commands_of, lines_of, rows_of

SERVED = ("mypt up", "mypt run sft-pipeline")
"""What serves until somebody ends it, or asks such a server; tested in tests/flows."""
LONG = ("mypt run", "mypt sweep")
"""What trains whole pipelines with Prefect and MLflow: slow."""
ANSWERS = ("--gate",)
"""Commands whose exit code 1 is an answer: the gate refuses a model that learned nothing."""


ROWS = {
    "`mypt prepare --input_files F --out_dir D`": [
        "prepare --input_files examples/chats/ --out_dir new"
    ],
    "`mypt mask DATASET --out_dir D --policy P`": ["mask data/chats --out_dir new --policy user"],
    "`mypt adopt DIR [--out_dir D] [--base M]`": [
        "adopt shards --tokenization byte",
        "export data/chats tables --to parquet",
        "adopt tables --out_dir new",
    ],
    "`mypt validate DATASET [--block_size N] [--prove]`": [
        "validate data/chats --block_size 128 --prove"
    ],
    "`mypt show DATASET [--why] [--search TEXT] [--html FILE]`": [
        "show data/chats --why --search Finland --rows 1",
        "show data/chats --html page.html",
    ],
    "`mypt plan CONFIG [--gpu h100 --count 8]`": [
        "plan configs/150M.json --gpu h100 --count 8",
        "plan configs/smoke.json --probe 2",
    ],
    "`mypt train --config_file C --model_name N --dataset_dir D`": [
        "train --config_file configs/small_chat.json --model_name new --dataset_dir data/chats"
    ],
    "`mypt evaluate MODEL [--questions FILE] [--gate] [--out_dir DIR]`": [
        "evaluate mine --eval_iters 1 --out_dir new",
        "evaluate mine --eval_iters 1 --gate",
    ],
    "`mypt generate MODEL [--adapter A] --prompt TEXT` / `mypt chat MODEL`": [
        "generate mine --prompt hi --max_tokens 2",
        "chat mine",
    ],
    "`mypt serve MODEL [MODEL ...] [--port N] [--trace]`": ["serve mine"],
    "`mypt export MODEL --to hf DIR`, `--to gguf FILE`, `--to mlflow DIR`, `--to peft DIR`;"
    " `mypt export DATASET --to parquet DIR`": [
        "export mine new --to hf",
        "export mine new.gguf --to gguf --quant q8_0",
        "export mine served --to mlflow",
        "export data/chats tables --to parquet",
    ],
    "`mypt list [models\\|datasets\\|runs]`": ["list", "list models"],
    "`mypt lineage CHECKPOINT [--verify]`, `--rows`, `--row FILE:LINE`, `--html FILE`;"
    " `mypt lineage --uses DATASET`": [
        "lineage mine --verify",
        "lineage mine --rows",
        "lineage mine --row examples/chats/places.jsonl:1",
        "lineage mine --html page.html",
        "lineage --uses data/chats",
    ],
    "`mypt reproduce CHECKPOINT`": ["reproduce mine"],
    "`mypt sign MODEL --key K`, `mypt verify MODEL --key K`; `mypt diff A B`": [
        "sign --help",
        "verify --help",
        "diff mine mine",
        "diff data/chats data/chats",
    ],
    "`mypt run CONFIG.json [--param KNOB=VALUE]`; `mypt run DEPLOYMENT [--detach]`": [
        "run configs/smoke.json --param sft.seed=1",
        "run --help",
    ],
    "`mypt sweep CONFIG.json --over KNOB=VALUE,VALUE [--seeds N]`": ["sweep --help"],
    "`mypt up [--auth USER:PASSWORD] [--host ADDRESS]`; `mypt sync [--forget RUN]`": [
        "up --help",
        "sync",
    ],
}
"""A short way to do what each row of the README's table says. What serves until somebody ends it,
asks such a server or wants a key only says what it would do; other tests do it."""


def quick(commands: list[str]) -> list[str]:
    """Return what is left without services and long trainings."""
    return [command for command in commands if not command.startswith((*SERVED, *LONG))]


def to_run(commands: list[str]) -> list[str]:
    """Return what is left without services."""
    return [command for command in commands if not command.startswith(SERVED)]


def furnish(folder: Path) -> Path:
    """Lay into a folder what the pages speak of: the project's configs and examples."""
    for name in ("configs", "examples"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a newcomer after the README's commands, its training shortened."""
    folder = furnish(tmp_path_factory.mktemp("newcomer"))
    for command in commands_of(README):
        run(shortened(command), folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a newcomer after the README's commands as they are written."""
    folder = furnish(tmp_path_factory.mktemp("reader"))
    for command in commands_of(README):
        run(command, folder)
    return folder


def copy_of(folder: Path, place: Path) -> Path:
    """Give a page a folder of its own; what is written once may be linked."""
    return Path(shutil.copytree(folder, place / "here", symlinks=True, copy_function=os.link))


def run(command: str, folder: Path) -> None:
    words = [str(Path(sys.executable).parent / "mypt"), *shlex.split(command)[1:]]
    environment = os.environ | {"MYPT_HOME": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    if words[1] == "serve":
        return talk([*words, "--port", "0"], folder, environment)
    done = subprocess.run(
        words,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    accepted = (0, 1) if command.endswith(ANSWERS) else (0,)
    assert done.returncode in accepted, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return None


def talk(words: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Start a server, ask it as the page's client does, and end it."""
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
        messages = [{"role": "user", "content": "What is 2+2?"}]
        with openai.OpenAI(base_url=address[1], api_key="any", max_retries=5) as client:
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
    assert len(quick(commands_of(README))) == len(commands_of(README)) == 5


def test_most_commands_of_the_pages_are_run():
    typed = [command for page in DOCS for command in commands_of(page)]
    assert len(quick(typed)) >= 35
    assert len(to_run(typed)) >= len(typed) - 3


def test_every_command_of_the_readme_works_in_the_order_given(begun):
    assert (begun / "runs" / "models" / "mine" / "latest").is_file()


@pytest.mark.parametrize("page", [p for p in DOCS if commands_of(p)], ids=lambda p: p.stem)
def test_every_quick_command_of_a_page_works_in_the_order_given(page, begun, tmp_path):
    here = copy_of(begun, tmp_path)
    for command in quick(commands_of(page)):
        run(shortened(command), here)


def test_every_row_of_the_table_of_commands_has_a_way_to_run_it():
    assert list(ROWS) == rows_of(README)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=[pytest.mark.slow] * row.startswith("`mypt run CONFIG"))
        for row in ROWS
    ],
)
def test_every_row_of_the_table_of_commands_works(row, begun, tmp_path):
    here = copy_of(begun, tmp_path)
    for split in ("train", "val"):
        (here / "shards" / split).mkdir(parents=True)
        (here / "shards" / split / "shard_000.bin").write_bytes(bytes([65, 0, 0, 0]) * 400)
        (here / "shards" / split / "shard_000_mask.bin").write_bytes(bytes([0, 1]) * 200)
    for command in ROWS[row]:
        run(shortened(f"mypt {command}"), here)


@pytest.mark.slow
@pytest.mark.timeout(900)  # two trainings, and one of them made again
@pytest.mark.parametrize("page", [p for p in DOCS if commands_of(p)], ids=lambda p: p.stem)
def test_every_command_works_as_it_is_written(page, finished, tmp_path):
    here = copy_of(finished, tmp_path)
    for command in to_run(commands_of(page)):
        run(command, here)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_readmes_model_answers_what_it_was_taught(finished):
    model = finished / "runs" / "models" / "mine"
    assert share_right(model, taught(finished / "data" / "chats")) >= 0.9
    assert share_right(model, paraphrases()) >= 0.65


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda p: p.stem)
def test_a_page_opens_with_its_most_frequent_task(page):
    """After the title and a few lines stands a block of commands."""
    title, *rest = page.read_text().splitlines()
    assert title.startswith("# ")
    before = rest[: rest.index("```bash")]
    assert sum(bool(line.strip()) for line in before) <= 4


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda p: p.stem)
def test_every_make_target_named_exists(page):
    makefile = (ROOT / "Makefile").read_text()
    typed = [line for line in lines_of(page) if line.startswith("make ")]
    for line in (*typed, *re.findall(r"`(make [^`]+)`", page.read_text())):
        assert f"\n{line.split()[1]}:" in makefile, line


@pytest.mark.skipif(not (ROOT / ".venv/bin/mypt").is_file(), reason="set up by other means")
def test_a_setup_says_at_its_end_what_is_there_and_what_to_type():
    made = ["make", "-s", "-o", ".venv/.ready", "setup"]
    said = subprocess.run(made, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"mypt {__version__}" in said
    assert "next: 'source .venv/bin/activate'" in said


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_picture_and_file_linked_exists(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).is_file(), target


def test_every_page_and_picture_is_linked_from_another():
    linked = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
        if (page.parent / target).resolve() != page
    }
    assert {file for file in (ROOT / "docs").iterdir() if file.is_file()} <= linked


def test_the_table_of_faults_has_every_row_and_no_failure():
    text = (ROOT / "docs" / "reliability.md").read_text()
    for row in table.ROWS.values():
        found = re.search(rf"^\| {re.escape(row.fault)} \| ([\d,]+) \| (.*) \|$", text, re.M)
        assert found, row.fault
        assert int(found[1].replace(",", "")) >= 16
        assert found[2] == row.outcome
