"""Commands about models, where a person or a program types them."""

import json
from pathlib import Path

import pytest

from flows.cli import main
from mypt.training.lineage import read_lineage
from tests.mypt.conftest import TINY, prepare_chat


def test_a_program_reads_what_training_ended_with(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    data, preset = prepare_chat(tmp_path, n=20), tmp_path / "preset.json"
    preset.write_text(json.dumps(TINY))
    words = ["--config_file", preset, "--dataset_dir", data, "--model_name", "m", "--max_iters", 2]
    told = []
    for _ in range(2):
        assert main(["train", *map(str, words), "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert [found["reason"] for found in told] == ["max_iters", "already finished"]
    assert told[0]["step"] == told[0]["checkpoint"]["step"] == 2
    assert told[0]["checkpoint"] == told[1]["checkpoint"]
    assert (Path(told[0]["checkpoint"]["path"]) / "lineage.json").is_file()


@pytest.mark.parametrize(("flag", "used"), [("--use_loss_mask", True), ("=false", False)])
def test_who_does_not_say_whether_masks_are_used_is_asked_and_may_answer_on_the_line(
    tmp_path, monkeypatch, capsys, flag, used
):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    data, preset = prepare_chat(tmp_path, n=20), tmp_path / "preset.json"
    preset.write_text(json.dumps({k: v for k, v in TINY.items() if k != "use_loss_mask"}))
    words = ["train", "--config_file", preset, "--dataset_dir", data, "--model_name", "m"]
    words = [*map(str, words), "--max_iters", "1"]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "use_loss_mask: true (or --use_loss_mask)" in said
    assert "use_loss_mask: false (--use_loss_mask=false)" in said
    assert main([*words, flag if used else f"--use_loss_mask{flag}"]) == 0
    assert read_lineage(tmp_path / "runs/models/m/step_000001").config.use_loss_mask is used
