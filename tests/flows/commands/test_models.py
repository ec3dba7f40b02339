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


def test_epochs_typed_end_the_presets_steps_and_the_other_way_round(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    data, preset = prepare_chat(tmp_path, n=20), tmp_path / "preset.json"
    words = ["train", "--config_file", str(preset), "--dataset_dir", str(data), "--json"]
    preset.write_text(json.dumps(TINY | {"batching": "packed", "batch_size": 1}))
    assert main([*words, "--model_name", "a", "--epochs", "1"]) == 0
    steps = json.loads(capsys.readouterr().out)["step"]
    assert steps != TINY["max_iters"]
    by_epochs = {k: v for k, v in TINY.items() if k != "max_iters"} | {"epochs": 1}
    preset.write_text(json.dumps(by_epochs))
    assert main([*words, "--model_name", "b", "--max_iters", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2
    assert main([*words, "--model_name", "c", "--max_iters", "2", "--epochs", "1"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.endswith("are both given; leave one out")
    assert len(said.splitlines()) == 1


def test_fine_tuning_of_random_weights_at_a_bases_rate_is_refused_with_what_would_work(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    data, preset = prepare_chat(tmp_path, n=20), tmp_path / "preset.json"
    preset.write_text(json.dumps(TINY | {"max_iters": 1, "learning_rate": 3e-5}))
    words = ["train", "--config_file", str(preset), "--dataset_dir", str(data), "--model_name"]
    assert main([*words, "slow"]) == 2
    said = capsys.readouterr().err
    for part in ("learning_rate 3e-05", "--init_from_model", "--learning_rate 1e-3", "small_chat"):
        assert part in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()
    assert main([*words, "base", "--learning_rate", "1e-3"]) == 0
    assert main([*words, "chat", "--init_from_model", "base"]) == 0


def test_more_steps_are_asked_for_by_a_flag(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    data, preset = prepare_chat(tmp_path, n=20), tmp_path / "preset.json"
    preset.write_text(json.dumps(TINY))
    words = ["train", "--config_file", preset, "--dataset_dir", data, "--model_name", "m"]
    words = [*map(str, words), "--max_iters"]
    assert main([*words, "2"]) == 0
    assert main([*words, "3"]) == 2
    assert "--extend" in capsys.readouterr().err
    assert main([*words, "3", "--extend"]) == main([*words, "3"]) == 0
    said = capsys.readouterr().out
    assert "extended at step 2, from 2 steps to 3" in said
    assert "already finished at step 3" in said


def test_a_champion_of_another_tokenizer_stops_nobody(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    preset = tmp_path / "preset.json"
    preset.write_text(json.dumps(TINY | {"block_size": 64}))
    for name, template in (("one", "mypt"), ("two", "chatml")):
        (tmp_path / name).mkdir()
        data = prepare_chat(tmp_path / name, n=20, template=template)
        words = ["--config_file", preset, "--dataset_dir", data, "--max_iters", 2]
        assert main(["train", "--model_name", name, *map(str, words)]) == 0
        assert main(["evaluate", name, "--gate", "--exercises", "1", "--eval_iters", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "one promoted: there was no champion" in said
    assert (
        "two promoted: champion one reads another tokenizer: not comparable, promoted as the first"
        " of its kind"
    ) in said
