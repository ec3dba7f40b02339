"""Every command, started in a folder whose files bear the names of what mypt imports."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.cli import STAGES
from tests.flows.conftest import CONFIG
from tests.flows.processes import free_ports, soon_alone
from tests.mypt.provenance.keys import key_pair

MYPT = Path(sys.executable).with_name("mypt")
NAMES = (
    "blake3", "cyclopts", "filelock", "flows", "json5", "logging", "matplotlib", "mlflow", "mypt",
    "numpy", "prefect", "psutil", "pydantic", "rich", "sitecustomize", "tasks", "tiktoken", "torch",
    "usercustomize", "uvicorn",
)  # fmt: skip
TRAP = "import pathlib; pathlib.Path({!r}).touch()\n"
TRAINING = {
    "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 32, "vocab_size": 320, "batch_size": 2,
    "max_iters": 2, "eval_interval": 2, "eval_iters": 1, "warmup_iters": 0, "device": "cpu",
    "dtype": "float32", "threads": 1, "grad_accumulation": 2, "use_loss_mask": True,
}  # fmt: skip
EVERY = [
    "prepare --input_files chats.jsonl --out_dir d --tokenization byte --format chat",
    "prepare --input_files big.txt --out_dir big --tokenization byte",
    "mask d --out_dir e --policy user",
    "validate d --prove",
    "show d --html d.html",
    "plan tiny.json",
    "train --config_file tiny.json --model_name m --dataset_dir d",
    "evaluate m --out_dir report",
    "generate m --prompt hi --max_tokens 2",
    "chat m",
    "export m --to hf exported",
    "adopt made",
    "list",
    "lineage m --verify --html m.html",
    "reproduce m",
    "sign d --key key.pem",
    "verify d --key key.pub",
    "diff d e",
    "run small.json",
    "sweep small.json --seeds 2",
    "sync",
]
"""All but the servers; two of them, and the run, start processes of their own."""
SERVERS = ["serve m --port {}", "up --prefect_port {} --mlflow_port {}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traps")
    lay_traps(folder)
    rows = [
        json.dumps({"role": role, "content": f"{text} {n}"}) + "\n" + "\n" * (role != "user")
        for n in range(30)
        for role, text in (("user", "What is"), ("assistant", "It is"))
    ]
    (folder / "chats.jsonl").write_text("".join(rows))
    (folder / "big.txt").write_text("a line of text, one of many\n\n" * 1_200_000)
    for number, end in enumerate(("pem", "pub")):
        (folder / f"key.{end}").write_bytes(key_pair()[number])
    (folder / "tiny.json").write_text(json.dumps(TRAINING | {"parallel": "ddp", "processes": 2}))
    (folder / "small.json").write_text(json.dumps(CONFIG))
    return folder


def lay_traps(folder):
    for name in NAMES:
        trap = TRAP.format(str(folder / f"sprung-{name}"))
        (folder / f"{name}.py").write_text(trap)
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(trap)


def start(folder, command):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    return subprocess.Popen(
        [MYPT, *command.split()],
        env=kept | {"MYPT_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}, cwd=folder,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def sprung(folder):
    return sorted(path.name for path in folder.glob("sprung-*"))


def run(folder, command, code=0):
    process = start(folder, command)
    said, _ = process.communicate(timeout=280)
    assert process.returncode == code, said
    assert sprung(folder) == [], said
    return said


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_command_runs_a_file_of_the_folder_that_it_is_started_in(folder):
    names = {command for commands in STAGES.values() for command in commands}
    assert {command.split()[0] for command in (*EVERY, *SERVERS)} == names
    for command in EVERY:
        if command.startswith("adopt"):
            for split in ("train", "val"):
                (folder / "made" / split).mkdir(parents=True)
                for name in ("shard_000.bin", "shard_000_mask.bin"):
                    shutil.copy(folder / "d" / split / name, folder / "made" / split / name)
            shutil.copy(folder / "d" / "tokenizer_state.json", folder / "made")
        run(folder, command)
    for command in SERVERS:
        process = start(folder, command.format(*free_ports(command.count("{}"))))
        said = ""
        while not re.search(r"Ctrl-C stops|/v1", said):
            line = process.stdout.readline()
            assert line, said
            said += line
        time.sleep(3)  # the served flows' process looks for work by then
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
        assert sprung(folder) == []
    assert soon_alone(folder / "home", 10)


def test_children_run_no_file_of_the_folder(tmp_path):
    lay_traps(tmp_path)
    preset = TRAINING | {"parallel": "ddp", "processes": 2}
    (tmp_path / "tiny.json").write_text(json.dumps(preset))
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {i}" for i in range(8000)))
    run(tmp_path, "prepare --input_files a.txt --out_dir d --tokenization byte")
    train = "train --config_file tiny.json --model_name m --dataset_dir d --use_loss_mask=false"
    assert "max_iters at step 2" in run(tmp_path, train)


@pytest.mark.parametrize("command", ["run small.json", "run sft-pipeline", "up"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prefect.toml", "[logging]\nsettings_path = 'logging.yml'\n"),
        ("pyproject.toml", "[tool.prefect.logging]\nsettings_path = 'logging.yml'\n"),
        (".env", "export prefect_logging_settings_path=logging.yml\n"),
    ],
)
def test_a_folder_that_would_set_prefect_is_refused(tmp_path, command, name, text):
    (tmp_path / name).write_text(text)
    (tmp_path / "small.json").write_text(json.dumps(CONFIG))
    said = run(tmp_path, command, code=2)
    assert said.count("\n") == 1
    assert f"{name} would set Prefect" in said
