"""What an earlier mypt left on disk opens, verifies, goes on and is made again as before.

``tests/kept`` holds two datasets, one masked anew from the other, and a base with its fine-tuning,
all made by commit 654e372; nobody makes them again.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mypt.training.circumstances import changes
from mypt.training.lineage import read_lineage

KEPT = Path(__file__).parent / "kept"
HERE = {"PYTHONPATH": str(KEPT.parents[1]), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
"""The code beside these tests is run, wherever another one is installed."""
COMMIT = "654e3725d55eaddc3847b7b57b73e0a730cf671c"
WEIGHTS = "65ff7dd20a0b"
"""The fine-tuned ones, by their first digits."""


@pytest.fixture
def kept(tmp_path):
    return Path(shutil.copytree(KEPT, tmp_path / "kept"))


def mypt(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "mypt"), *words],
        cwd=folder,
        env=HERE | {"MYPT_HOME": "home"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def weights(step_folder: Path) -> str:
    (record,) = (r for r in read_lineage(step_folder).files if r.name == "model.safetensors")
    return record.digest[: len(WEIGHTS)]


def same_machine(step_folder: Path) -> bool:
    """Whether this machine is of the kind that made them: other processors round otherwise."""
    return not any("device_name" in line for line in changes(read_lineage(step_folder)))


def test_the_kept_files_are_of_that_commit():
    lineage = read_lineage(KEPT / "home/models/kept-chat/step_000004")
    assert lineage.code.commit == COMMIT
    assert not lineage.code.dirty


@pytest.mark.parametrize("dataset", ["talk", "talk_last"])
def test_a_kept_dataset_is_sound(kept, dataset):
    report = json.loads(mypt(kept, "validate", dataset, "--json"))
    assert report["findings"] == []


def test_a_kept_checkpoint_leads_back_to_its_raw_files(kept):
    lines = mypt(kept, "lineage", "kept-chat", "--verify").splitlines()
    verified = [line.split("file ")[-1].split()[0] for line in lines if line.endswith("verified")]
    assert len(verified) == 6
    assert {"talk.jsonl", "corpus.jsonl"} <= set(verified)


def test_a_kept_model_answers(kept):
    assert mypt(kept, "generate", "kept-chat", "--prompt", "Hi", "--max_tokens", "2").endswith("\n")


def test_a_kept_training_goes_on_from_its_middle_to_the_same_end(kept):
    models = kept / "home" / "models"
    last = models / "kept-chat" / "step_000004"
    shutil.rmtree(last)
    (models / "kept-chat" / "latest").write_text("step_000002\n")
    words = ["--config_file", "sft.json", "--model_name", "kept-chat", "--dataset_dir", "talk"]
    said = mypt(kept, "train", *words, "--init_from_model", "kept-base")
    assert "from step 2 to 4" in said
    assert weights(last) == WEIGHTS or not same_machine(KEPT / last.relative_to(kept))


def test_a_kept_checkpoint_is_made_again(kept):
    report = json.loads(mypt(kept, "reproduce", "kept-chat", "--json"))
    outcomes = {stage["name"]: stage["outcome"] for stage in report["stages"]}
    assert outcomes["dataset corpus"] == outcomes["dataset talk"] == "same"
    assert set(outcomes.values()) == {"same"} or not same_machine(
        KEPT / "home/models/kept-chat/step_000004"
    )
