"""The words of the command line: what is missing, misplaced or misspelt, and how programs end."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from flows.cli import STAGES, app, main
from mypt.data.dataset import open_dataset
from mypt.errors import ConfigError
from tests.mypt.conftest import prepare_chat
from tests.pages import ROOT

MISSING = [
    "prepare --input_files gone --out_dir d",
    "prepare --config gone --out_dir d",
    "mask gone --out_dir d",
    "adopt gone",
    "adopt gone --out_dir d",
    "validate gone",
    "show gone",
    "show gone --html page.html",
    "plan gone",
    "plan {root}/configs/tiny.json --dataset_dir gone",
    "train --config_file gone --model_name m --dataset_dir gone",
    "train --config_file {root}/configs/tiny.json --model_name m --dataset_dir gone",
    "evaluate gone",
    "generate gone --prompt x",
    "chat gone",
    "serve gone --port 0",
    "export gone d --to hf",
    "export gone d --to mlflow",
    "export gone d --to parquet",
    "lineage gone",
    "lineage --uses gone",
    "reproduce gone",
    "sign gone --key k.pem",
    "verify gone --key k.pub",
    "diff gone gone",
    "run gone.json",
    "run {root}/configs/gone.jsn",
    "sweep gone.json --seeds 2",
]
WITHOUT_FILES = {"list", "up", "sync"}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)


def said(capsys, words, code=2):
    assert main(words.split()) == code
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1, text
    return text


@pytest.mark.parametrize("command", MISSING)
def test_a_file_that_is_not_there_is_wrong_use(capsys, tmp_path, command):
    assert "gone" in said(capsys, command.format(root=ROOT))
    assert {path.name for path in tmp_path.iterdir()} <= {"runs", ".d.lock"}, "it left something"


def test_every_command_that_reads_something_is_asked_for_what_is_not_there():
    commands = {name for name in app if not name.startswith("-")}
    assert {command.split()[0] for command in MISSING} == commands - WITHOUT_FILES


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train", "--config_file, --model_name, --dataset_dir are missing"),
        ("train --model_name m --bogus 3", "--config_file, --dataset_dir are missing"),
        ("train --model_name", "--model_name is the last word; expected its value"),
        ("generate", "MODEL, --prompt are missing"),
        ("export m", "OUT, --to are missing"),
        ("diff a", "B is missing"),
        ("evaluate a b", "'b' belongs to no flag and no name"),
        ("prepare --input_files x --out_dir d --mask_role asistant", "did you mean assistant?"),
    ],
)
def test_what_is_missing_or_too_much_is_named_at_once(capsys, words, says):
    Path("x").write_text("")
    assert says in said(capsys, words)


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("hlep", "help"),
        ("help trian", "train"),
        ("Gnerate m", "generate"),
        ("--vresion", "--version"),
    ],
)
def test_a_mistyped_command_is_offered_the_nearest(capsys, typed, nearest):
    assert f"is no command; the nearest is '{nearest}'" in said(capsys, typed)


def test_a_word_like_no_command_is_told_all_of_them(capsys):
    assert "expected prepare, mask, adopt" in (text := said(capsys, "zzz"))
    assert all(f" {name}" in text for name in ("list", "sync"))


def test_a_config_of_the_other_kind_is_told_where_it_belongs(capsys):
    pipeline, preset = ROOT / "configs" / "demo.json", ROOT / "configs" / "tiny.json"
    words = f"train --config_file {pipeline} --model_name m --dataset_dir d"
    assert "the config of a pipeline; expected a preset" in (text := said(capsys, words))
    assert f"or 'mypt run {pipeline}'" in text
    assert f"'mypt train --config_file {preset}'" in said(capsys, f"run {preset}")


def test_the_name_of_a_config_is_no_deployment_and_its_file_is_offered(
    capsys, monkeypatch, unused_port
):
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{unused_port}/api")
    Path("configs").mkdir()
    Path("configs/demo.json").write_text("{}")
    assert "mypt run configs/demo.json" in said(capsys, "run demo")
    assert "does not answer" in said(capsys, "run other", code=1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("help", "Usage: mypt COMMAND"),
        ("help train", "--config_file"),
        ("-V", ""),
        ("--version", ""),
    ],
)
def test_help_and_version_are_found_by_every_name(capsys, words, says):
    from mypt import __version__

    assert main(words.split()) == 0
    assert (says or __version__) in capsys.readouterr().out


def test_the_row_of_a_command_is_the_first_line_of_what_it_says_itself(capsys):
    for commands in STAGES.values():
        for word, (room, does) in commands.items():
            module = import_module(f"flows.commands.{room}")
            function = getattr(module, word, None) or getattr(module, f"{word}_")
            assert does == function.__doc__.partition("\n")[0], word
    assert main(["help", "sweep"]) == 0
    assert "What combinations have in common is made once." in capsys.readouterr().out


def test_the_help_shows_the_commands_by_stage(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line.split("─")[1].strip() for line in lines if line.startswith("╭")]
    assert titles == [*STAGES, "This program"]


@pytest.mark.parametrize(
    ("shell", "page"),
    [
        ("bash", ".local/share/bash-completion/completions/mypt"),
        ("zsh", ".zsh/completions/_cyclopts_mypt"),
        ("fish", ".config/fish/completions/mypt.fish"),
    ],
)
def test_tab_completes_commands_and_flags(capsys, monkeypatch, tmp_path, shell, page):
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--install-completion", "--shell", shell]) == 0
    assert str(tmp_path / page) in capsys.readouterr().out
    script = (tmp_path / page).read_text()
    assert "lineage" in script
    assert "dataset_dir" in script


def ended(command):
    """Return how the first program of a pipe ended, and what it complained of."""
    mypt = f"{sys.executable} -m flows.cli {command}"
    words = ["bash", "-c", f"{mypt} | head -n 1 > /dev/null; echo ${{PIPESTATUS[0]}}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    return int(done.stdout), done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    data = prepare_chat(tmp_path, n=400)
    for command in (f"show {data} --rows 300", f"show {data}", f"validate {data} --json", "--help"):
        code, complained = ended(command)
        assert code in (0, 141), command
        assert complained == ""


@pytest.mark.parametrize("closed", [">&-", "<&-", ">&- 2>&-"])
def test_a_process_without_standard_streams_does_its_work(tmp_path, closed):
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {i}" for i in range(4000)))
    made = tmp_path / "data"
    words = f"prepare --input_files {tmp_path / 'a.txt'} --tokenization byte --out_dir {made}"
    for command, code in ((words, 0), (f"show {made}", 0), ("no-such-command", 2)):
        line = f"{sys.executable} -m flows.cli {command} {closed}"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, env=environment, check=False
        )
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr
    open_dataset(made)  # nothing was printed into a file of it


def test_a_run_says_what_it_does_before_it_loads_anything(capsys, monkeypatch):
    def load():
        raise ConfigError("loaded")

    monkeypatch.setattr("flows.environment.prepare_environment", load)
    assert main(["run", str(ROOT / "configs" / "demo.json")]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["demo: raw files -> base model -> chat model", "Prefect starts, in seconds"]


def test_a_wrong_knob_is_refused_before_prefect_starts(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["run", "configs/demo.json", "--param", "sft.learning_rat=1"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "did you mean 'learning_rate'" in said.err
