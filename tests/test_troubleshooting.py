"""The five symptoms of docs/troubleshooting.md, provoked as a user would meet them."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from flows.cli import main
from mypt.config import Preset
from mypt.data.exchange.adoption import adopt
from mypt.data.tokenizer import load_tokenizer
from mypt.errors import MaskError, TrainingError
from mypt.inspection.validation import validate
from mypt.training.events import EvalReport
from mypt.training.loop import train
from mypt.training.plan import plan_run

PAGE = Path(__file__).parents[1] / "docs" / "troubleshooting.md"
TINY = Preset(
    n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=320, batch_size=2, max_iters=8,
    eval_interval=2, eval_iters=1, warmup_iters=0, use_loss_mask=True, device="cpu",
    dtype="float32", threads=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))


@pytest.fixture
def prepare(tmp_path):
    def make(*flags):
        chats = [
            json.dumps({"role": role, "content": f"{text} {n}"}) + "\n" + "\n" * (role != "user")
            for n in range(30)
            for role, text in (("user", "What is"), ("assistant", "It is"))
        ]
        (tmp_path / "chats.jsonl").write_text("".join(chats))
        words = ["prepare", "--input_files", str(tmp_path / "chats.jsonl"), "--out_dir"]
        assert main([*words, str(tmp_path / "data"), "--tokenization", "byte", *flags]) == 0
        return tmp_path / "data"

    return make


def by_hand(folder, tokens, mask):
    """Write shards as the guide's pseudocode does, the same in train and val."""
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        np.array(tokens, np.uint32).tofile(folder / split / "shard_000.bin")
        np.array(mask, np.uint8).tofile(folder / split / "shard_000_mask.bin")
    return folder


def shown(number):
    """What the page shows of a symptom, to the letter."""
    return PAGE.read_text().partition(f"## Issue {number}")[2].split("```")[1].strip()


def test_the_page_names_the_symptoms_as_the_guide_does():
    names = [line[3:] for line in PAGE.read_text().splitlines() if line.startswith("## ")]
    assert names == [
        'Issue 1: "No mask shards found"',
        "Issue 2: Mask/Token Length Mismatch",
        "Issue 3: Loss is NaN or Inf",
        "Issue 4: Model Only Generates Special Tokens",
        "Issue 5: No Improvement During SFT",
    ]


def test_1_missing_masks_are_refused_with_both_ways_out(prepare, capsys):
    data = prepare("--mask_role", "none")
    config = data.parent / "tiny.json"
    config.write_text(TINY.model_dump_json())
    command = ["train", "--config_file", str(config), "--model_name", "x", "--dataset_dir"]
    assert main([*command, str(data)]) == 1
    said = capsys.readouterr().err
    assert "shard_000_mask.bin" in said
    assert "mypt mask" in said
    assert "use_loss_mask: false" in said
    assert len(said.splitlines()) == 1
    assert shown(1) in said


def test_2_a_mask_shorter_than_its_tokens_is_named(tmp_path):
    folder = by_hand(tmp_path / "data", range(1, 257), [0, 1] * 100)
    with pytest.raises(MaskError, match=re.escape(shown(2))):
        adopt(folder, "byte")


def test_3_a_mask_of_zeros_is_refused_before_it_makes_a_nan(tmp_path):
    folder = by_hand(tmp_path / "data", range(1, 257), [0] * 256)
    with pytest.raises(MaskError, match="supervise"):
        adopt(folder, "byte")


def test_3_a_learning_rate_that_explodes_stops_before_the_update(prepare):
    wild = TINY.model_copy(update={"learning_rate": 1e30, "grad_clip": 0.0})
    with pytest.raises(TrainingError, match=r"step \d+"):
        for _ in train(plan_run(wild, "x", prepare())):
            pass


def test_4_supervised_headers_are_named_by_the_validator(tmp_path):
    tokenizer = load_tokenizer("byte")
    tag = tokenizer.special_id("<Assistant>")
    tokens = [*tokenizer.encode("hi").tolist(), tag, *tokenizer.encode("ho").tolist()] * 40
    folder = by_hand(tmp_path / "data", tokens, [0, 0, 1, 1, 1] * 40)
    adopt(folder, "byte", "mypt")
    report = validate(folder)
    assert not report.ok
    assert any("header" in finding.code for finding in report.findings)


def test_5_a_learning_rate_too_low_shows_as_losses_that_stand_still(prepare):
    slow = TINY.model_copy(update={"learning_rate": 1e-12})
    quick = TINY.model_copy(update={"learning_rate": 1e-2})
    data = prepare()
    moved = {}
    for name, config in (("slow", slow), ("quick", quick)):
        reports = [e for e in train(plan_run(config, name, data)) if isinstance(e, EvalReport)]
        moved[name] = reports[0].val_loss - reports[-1].val_loss
    assert math.isclose(moved["slow"], 0.0, abs_tol=1e-4)
    assert moved["quick"] > 0.1
