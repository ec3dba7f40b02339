"""How a training ends where a person reads it."""

import json
import re
from uuid import uuid4

import pytest

from flows.cli import main
from flows.service.parameters import _made
from mypt.home import models_dir
from tasks.tracking.recording import recorded
from tasks.tracking.records import Tags
from tests.mypt.conftest import TINY, prepare_chat


@pytest.fixture
def words(own_home):
    data, preset = prepare_chat(own_home, n=20), own_home / "preset.json"
    preset.write_text(json.dumps(TINY | {"max_iters": 4}))
    words = ["train", "--config_file", preset, "--dataset_dir", data, "--model_name", "m"]
    return list(map(str, words))


def test_a_training_ends_with_figures_the_checkpoint_and_the_next_commands(words, capsys):
    assert main(words) == 0
    figures, row, checkpoint, *following = capsys.readouterr().out.splitlines()[-6:]
    assert re.split("  +", figures.strip()) == [
        "steps", "train loss", "val loss", "best val loss", "tokens", "supervised", "seconds",
    ]  # fmt: skip
    assert re.split("  +", row.strip())[0] == "4 of 4"
    assert checkpoint.startswith(f"checkpoint: {models_dir() / 'm'}")
    assert following == [
        "next: mypt generate m --prompt 'Hello'",
        "      mypt evaluate m",
        "      mypt serve m",
    ]
    for line in following[:2]:
        command = line.removeprefix("next:").replace("'", "").split()[1:]
        assert main([*command, *["--max_tokens", "1"][: 2 * (command[0] == "generate")]]) == 0


def test_a_training_that_was_stopped_says_of_which_step_its_losses_are(words, capsys, monkeypatch):
    looked = []
    monkeypatch.setattr(
        "flows.commands.models._Stop.__call__", lambda _: len(looked) >= 3 or looked.append(0)
    )
    main([*words, "--eval_interval", "2"])
    out = capsys.readouterr().out
    assert "losses of step 2, which was evaluated last" in out
    assert "3 of 4" in out


def test_a_second_identical_training_ends_alike(words, capsys):
    assert main(words) == main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "      mypt serve m"


def test_the_checkpoint_of_a_run_elsewhere_is_found_by_its_journal_or_its_stage(own_home):
    run, alone, checkpoint = uuid4(), uuid4(), own_home / "step_000004"
    checkpoint.mkdir()
    assert _made(run) is None
    with recorded(f"pipeline-{run}", "demo on chats") as journal:
        journal.write(Tags(values={"checkpoint": str(checkpoint)}))
    with recorded(f"pipeline-{alone}", "chat on chats"), recorded("train-m", "fine-tune") as stage:
        stage.write(Tags(values={"checkpoint": str(checkpoint)}))
    assert _made(run) == _made(alone) == checkpoint
    checkpoint.rmdir()
    assert _made(run) is None
