"""The gate: what is better by the rule becomes champion, and the reason is written either way."""

import json

import pytest

from mypt import files
from mypt.config import EvaluateConfig
from mypt.errors import CheckpointError, DataError
from mypt.evaluation import gate
from mypt.evaluation.scores import ModelScores
from mypt.references import CheckpointRef, DatasetRef


def measured(folder, loss=1.0, right=0.5, stops=0.9, leaks=0.0):
    folder.mkdir(parents=True, exist_ok=True)
    return ModelScores(
        model=folder.parent.name,
        checkpoint=CheckpointRef(
            path=str(folder), digest=files.digest_bytes(bytes(folder)), step=10
        ),
        form="chat",
        val_loss=loss,
        perplexity=2.0,
        supervised=9,
        available=9,
        exact_match={"overall": right},
        stop_recall=stops,
        asked=4,
        leak_rate=leaks,
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"loss": 0.9}, None),
        ({"right": 0.6}, None),
        ({"stops": 1.0, "right": 0.51}, None),
        ({}, "nothing is better"),
        ({"loss": 0.9, "right": 0.4}, "exact match 0.5000 -> 0.4000"),
        ({"right": 0.9, "loss": 1.1}, "loss 1.0000 -> 1.1000"),
        ({"loss": 0.5, "stops": 0.8}, "stop recall 0.9000 -> 0.8000"),
        ({"loss": 0.5, "leaks": 0.25}, "25.0% of answers leak tags"),
    ],
)
def test_the_rule(tmp_path, changes, reason):
    before = measured(tmp_path / "old" / "step_000010")
    found = gate.decide(measured(tmp_path / "new" / "step_000010", **changes), before)
    assert found.promoted == (reason is None)
    assert reason is None or reason in found.reasons


def test_the_champion_is_the_last_that_was_promoted_and_reasons_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))
    models = tmp_path / "models"
    scores = {
        name: measured(models / name / "step_000010", loss=loss)
        for name, loss in (("first", 1.0), ("worse", 1.2), ("better", 0.8))
    }
    asked = []

    def evaluate(model, dataset, config, form):
        asked.append((dataset, config.exercises, form))
        name = model if isinstance(model, str) else model.path.split("/")[-2]
        return scores[name]

    monkeypatch.setattr(gate, "evaluate_model", evaluate)
    data = DatasetRef(path="data", digest="d" * 64)
    assert gate.champion() is None
    assert [
        gate.judge(name, data, EvaluateConfig(exercises=0)).promoted
        for name in ("first", "worse", "better")
    ] == [True, False, True]
    assert set(asked) == {(data, gate.QUESTIONS, "chat")}
    assert gate.champion() == scores["better"].checkpoint
    written = [json.loads(path.read_text()) for path in (models / "verdicts").iterdir()]
    assert sorted(found["candidate"]["model"] for found in written) == ["better", "first", "worse"]
    refused = next(found for found in written if not found["promoted"])
    assert refused["reasons"] == ["loss 1.0000 -> 1.2000", "nothing is better"]
    (models / "better" / "step_000010").rmdir()
    with pytest.raises(CheckpointError, match="which is gone"):
        gate.champion()
    (models / "champion.json").write_text("{}")
    with pytest.raises(CheckpointError, match="move it away"):
        gate.champion()


def test_an_unmeasurable_champion_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))

    def fail(*_, **__):
        raise DataError("nothing of val is supervised")

    monkeypatch.setattr(gate, "evaluate_model", fail)
    with pytest.raises(DataError):
        gate.judge("any")
    assert not (tmp_path / "models").exists()
