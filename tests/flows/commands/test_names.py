"""Names of models as people type them: the beginning will do, and which one it is is said."""

import json
import os
import shutil

import pytest

from flows.cli import main
from flows.commands.names import full_name
from mypt.errors import MissingModelError
from mypt.home import checkpoint_to_use, find_checkpoint, models_dir
from tests.mypt.conftest import TINY, prepare_chat


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """A home with two models whose names begin alike, the second the newer one."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPT_HOME", str(folder))
        patch.chdir(folder)
        data, preset = prepare_chat(folder, n=20), folder / "preset.json"
        preset.write_text(json.dumps(TINY | {"max_iters": 1}))
        for name in ("demo-chat-1", "demo-chat-2"):
            words = ["--config_file", preset, "--dataset_dir", data, "--model_name", name]
            assert main(["train", *map(str, words)]) == 0
        yield folder


def test_the_newest_model_is_meant_and_said(capsys):
    os.utime(models_dir() / "demo-chat-1" / "latest", (1000, 1000))
    assert full_name("demo-chat") == "demo-chat-2"
    assert capsys.readouterr().err == "demo-chat: demo-chat-2, the newest of 2\n"
    assert full_name("demo-chat-1") == "demo-chat-1"
    assert full_name("other") == "other"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "command",
    [
        "generate demo-chat --prompt say --max_tokens 1",
        "evaluate demo-chat --eval_iters 1",
        "lineage demo-chat",
        "reproduce demo-chat",
        "export demo-chat out-{n} --to hf",
        "diff demo-chat-1 demo-chat",
        "train --config_file preset.json --model_name on-{n} --dataset_dir datasets/chat"
        " --init_from_model demo-chat",
        "prepare --input_files chat.jsonl --tokenizer_from demo-chat --out_dir out-{n}",
    ],
)
def test_every_command_that_takes_a_model_takes_the_beginning_of_its_name(home, capsys, command):
    n = len(list(home.glob("*")))
    assert main(command.format(n=n).split()) == 0
    assert "demo-chat: demo-chat-2, the newest of 2" in capsys.readouterr().err


def test_chat_takes_the_beginning_of_a_name(capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: "")
    assert main(["chat", "demo-chat"]) == 0
    assert "demo-chat: demo-chat-2" in capsys.readouterr().err


def test_a_step_of_a_model_is_called_by_both_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no folder is called so
    folder = models_dir() / "demo-chat-1" / "step_000001"
    copied = shutil.copytree(folder, models_dir() / "demo-chat-1" / "step_000000")
    for step in (folder, copied):
        name = full_name(f"demo-chat-1/{step.name}")
        assert find_checkpoint(name) == checkpoint_to_use(name) == step
    shutil.rmtree(copied)
    with pytest.raises(MissingModelError, match="step_000009"):
        find_checkpoint("demo-chat-1/step_000009")


def test_what_is_no_beginning_of_a_name_is_told_the_nearest(capsys):
    assert main(["generate", "dmeo-chat-2", "--prompt", "say"]) != 0
    assert ": demo-chat-2, demo-chat-1 under" in capsys.readouterr().err
