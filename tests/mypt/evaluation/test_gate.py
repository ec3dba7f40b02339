"""The gate: what is better by the rule becomes champion, and the reason is written either way."""

import json
from types import SimpleNamespace

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


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The folder of models; what each scores, which tokenizer it reads, and what was asked."""
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))
    made = SimpleNamespace(folder=tmp_path / "models", scores={}, tokenizers={}, asked=[])

    def add(name, loss=1.0, tokenizer="t", **changes):
        folder = made.folder / name / "step_000010"
        made.scores[name], made.tokenizers[name] = measured(folder, loss, **changes), tokenizer
        return made.scores[name].checkpoint

    def evaluate(model, dataset, config, form):
        made.asked.append((dataset, config.exercises, form))
        return made.scores[model if isinstance(model, str) else model.path.split("/")[-2]]

    def lineage(folder):
        name = folder.parent.name
        dataset = SimpleNamespace(tokenizer=made.tokenizers[name] * 64)
        return SimpleNamespace(model_name=name, dataset=dataset)

    made.add = add
    monkeypatch.setattr(gate, "evaluate_model", evaluate)
    monkeypatch.setattr(gate, "read_lineage", lineage)
    return made


DATA = DatasetRef(path="data", digest="d" * 64)


def test_the_champion_is_the_last_that_was_promoted_and_reasons_stay(models):
    first, *_ = [
        models.add(name, loss) for name, loss in (("first", 1.0), ("worse", 1.2), ("better", 0.8))
    ]
    assert gate.champion(first) is None
    assert [
        gate.judge(name, DATA, EvaluateConfig(exercises=0)).promoted
        for name in ("first", "worse", "better")
    ] == [True, False, True]
    assert set(models.asked) == {(DATA, gate.QUESTIONS, "chat")}
    assert gate.champion(first) == models.scores["better"].checkpoint
    folder = models.folder
    written = [json.loads(path.read_text()) for path in (folder / "verdicts").iterdir()]
    assert sorted(found["candidate"]["model"] for found in written) == ["better", "first", "worse"]
    refused = next(found for found in written if not found["promoted"])
    assert refused["reasons"] == ["loss 1.0000 -> 1.2000", "nothing is better"]
    (folder / "better" / "step_000010").rmdir()
    with pytest.raises(CheckpointError, match="which is gone"):
        gate.champion(first)
    (folder / "champion.json").write_text("{}")
    with pytest.raises(CheckpointError, match="move it away"):
        gate.champion(first)


def test_there_is_one_champion_for_each_pipeline_and_tokenizer(models):
    one, other, by_hand = ("demo-chat-" + "1" * 12, "smoke-chat-" + "2" * 12, "mine")
    promoted = [models.add(name) for name in (one, other, by_hand)]
    for name in (one, other, by_hand):
        assert gate.judge(name, DATA).reasons == ("there was no champion",)
    assert [gate.champion(reference) for reference in promoted] == promoted
    assert [found.pipeline for found in gate.champions()] == ["demo", "smoke", "by hand"]
    better = models.add("demo-chat-" + "3" * 12, loss=0.5)
    assert gate.judge("demo-chat-" + "3" * 12, DATA).champion.checkpoint == promoted[0]
    assert gate.champion(promoted[0]) == better
    assert gate.champion(promoted[1]) == promoted[1]
    assert not gate.judge(models.add("yours", loss=1.1) and "yours", DATA).promoted


def test_a_champion_of_another_tokenizer_is_not_measured_and_stays_one_of_its_kind(models):
    first = models.add("demo-chat-" + "1" * 12)
    gate.judge("demo-chat-" + "1" * 12, DATA)
    models.asked.clear()
    second = models.add("demo-chat-" + "2" * 12, loss=9.0, tokenizer="u")
    verdict = gate.judge("demo-chat-" + "2" * 12, DATA)
    assert verdict.promoted
    assert verdict.champion is None
    assert verdict.reasons == (
        "champion demo-chat-111111111111 reads another tokenizer: not comparable, promoted as the"
        " first of its kind",
    )
    assert len(models.asked) == 1
    assert [gate.champion(reference) for reference in (first, second)] == [first, second]
    careful = DATA, EvaluateConfig(gate_first="refuse")
    third = models.add("demo-chat-" + "4" * 12, tokenizer="w")
    assert gate.judge("demo-chat-" + "4" * 12, *careful).reasons == (
        "champion demo-chat-222222222222 reads another tokenizer: not comparable, refused by"
        " gate_first",
    )
    assert gate.champion(third) is None
    models.add("tiny-chat-" + "5" * 12, tokenizer="w")
    assert gate.judge("tiny-chat-" + "5" * 12, *careful).promoted, "the first of its pipeline"
    leaking = models.add("demo-chat-" + "3" * 12, tokenizer="v", leaks=0.5)
    assert not gate.judge("demo-chat-" + "3" * 12, DATA).promoted
    assert gate.champion(leaking) is None


def test_a_champion_that_an_earlier_version_wrote_is_of_its_own_kind(models):
    old, other = models.add("demo-chat-" + "1" * 12), models.add("smoke-chat-" + "2" * 12)
    path = models.folder / "champion.json"
    files.write_sealed(path, {"checkpoint": old.model_dump(mode="json")})
    assert gate.champion(old) == old
    assert gate.champion(other) is None
    gate.judge("smoke-chat-" + "2" * 12, DATA)
    assert gate.champion(old) == old
    # What an earlier version reads is the one that was promoted last.
    assert json.loads(path.read_text())["checkpoint"] == other.model_dump(mode="json")


def test_an_unmeasurable_champion_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))

    def fail(*_, **__):
        raise DataError("nothing of val is supervised")

    monkeypatch.setattr(gate, "evaluate_model", fail)
    with pytest.raises(DataError):
        gate.judge("any")
    assert not (tmp_path / "models").exists()
