"""Commands about models, where a person or a program types them."""

import json
from pathlib import Path

from flows.cli import main
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
