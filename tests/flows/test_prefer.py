"""A pipeline whose chat model learns from preference pairs last, and what it says of that."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.pipeline import run_pipeline
from mypt.config import load_pipeline
from mypt.errors import ConfigError
from mypt.training.lineage import read_lineage
from tests.flows.conftest import CONFIG, TRAINING


@pytest.fixture
def preferring(tmp_path):
    """The small pipeline with a section ``prefer``, its preset in a file of its own."""
    rows = [
        {"prompt": f"say {i}", "chosen": f"{i}!", "rejected": "no" + " no" * (i % 3)}
        for i in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    of_pairs = TRAINING | {"max_iters": 4, "batching": "packed", "objective": "dpo"}
    (tmp_path / "preset.json").write_text(json.dumps(of_pairs | {"beta": 1.0}))
    source = {"path": str(tmp_path / "pairs.jsonl"), "pairs": True}
    prefer = {
        "pairs": {"sources": [source], "val_fraction": 0.3},
        "train": {"preset": "preset.json", "beta": 0.2, "block_size": 64},
    }
    wide = {"pretrain": CONFIG["pretrain"] | {"block_size": 64}}
    path = tmp_path / "small.json"
    path.write_text(json.dumps(CONFIG | wide | {"prefer": prefer}))
    return path


def test_pairs_are_learned_after_fine_tuning_and_reported(
    prefect,  # noqa: ARG001
    preferring,
    tmp_path,
    monkeypatch,
    capsys,
):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "home"))
    run_pipeline(preferring)
    said = capsys.readouterr().out
    assert "held out moved towards the chosen side" in said
    assert "data of the base: loss" in said
    model = next((tmp_path / "home" / "models").glob("small-prefer-*"))
    lineage = read_lineage(model / "step_000004")
    assert lineage.config.objective == "dpo"
    assert lineage.config.beta == 0.2
    assert lineage.parent.model_name.startswith("small-chat-")
    assert lineage.parent.lineage.parent.model_name.startswith("small-base-")
    found = [
        json.loads(path.read_text())
        for path in (tmp_path / "home" / "evaluations").glob("small-prefer-*/evaluation.json")
    ]
    assert found[0]["pairs"]["pairs"] > 3
    client = MlflowClient(f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    parent = next(run for run in runs if "pretrain_tokens_read" in run.data.metrics)
    metrics = parent.data.metrics
    assert metrics["pairs/accuracy"] == found[0]["pairs"]["accuracy"]
    assert metrics["pairs/margin"] == pytest.approx(found[0]["pairs"]["margin"])
    assert {"pairs/change_chosen", "pairs/change_data_of_the_base"} <= metrics.keys()
    assert Path(parent.data.tags["preferred"]).name == "step_000004"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"train": {"objective": "nll"}}, "set dpo, ipo or simpo"),
        ({"pairs": {"sources": [{"path": "p.jsonl"}]}}, "set pairs: true"),
        ({"pairs": {"sources": [{"path": "p", "pairs": True}], "val_fraction": 0}}, "val_fraction"),
    ],
)
def test_a_section_that_means_nothing_is_refused(preferring, section, said):
    values = json.loads(preferring.read_text())
    values["prefer"] |= section
    preferring.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=said):
        load_pipeline(preferring)
