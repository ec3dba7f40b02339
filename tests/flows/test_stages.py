import json
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from flows import stages
from mypt.config import MaskPolicy, load_pipeline
from mypt.training.lineage import read_lineage
from tests.flows.conftest import CONFIG

pytestmark = pytest.mark.usefixtures("prefect")


@pytest.fixture(scope="module")
def made(prefect, tmp_path_factory, _mlflow_database):  # noqa: ARG001
    """What the four stages make of the small pipeline's config, one flow after the other."""
    home = tmp_path_factory.mktemp("stages")
    path = home / "small.json"
    path.write_text(json.dumps(CONFIG))
    config = load_pipeline(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPT_HOME", str(home))
        text = stages.prepare(config.base, "text", None)
        talk_config = config.chat.model_copy(update={"tokenizer_from": text.path})
        talk = stages.prepare(talk_config, "talk", MaskPolicy(), config.sft)
        base = stages.pretrain(config.pretrain, text.path, "base")
        chat = stages.sft(config.sft, talk.path, base.path, "chat")
        summary = stages.evaluate(base.path, chat.path, talk.path, config.evaluate)
        again = stages.sft(config.sft, talk.path, base.path, "chat")
    return {
        "config": config,
        "text": text,
        "talk": talk,
        "base": base,
        "chat": chat,
        "summary": summary,
        "again": again,
    }


def test_the_stages_one_by_one_make_what_the_pipeline_makes(made):
    summary = made["summary"]
    assert summary.digests["chat_dataset"] == made["talk"].digest
    assert summary.digests["base_checkpoint"] == made["base"].digest
    assert summary.digests["checkpoint"] == made["chat"].digest
    assert Path(summary.evaluation).is_file()


def test_a_stage_run_again_is_the_same_and_makes_nothing(made):
    assert made["again"] == made["chat"]


def test_each_run_is_named_by_its_model_and_its_data(made):
    with get_client(sync_client=True) as client:
        names = {run.name for run in client.read_flow_runs()}
    data = Path(made["talk"].path).name
    assert {
        "text from exercises_text",
        "talk from exercises_chat",
        f"chat on {data}",
        f"evaluation on {data}",
    } <= names


def test_a_stages_own_run_names_what_the_model_was_trained_with(made):
    params = {}
    for path in (Path(made["chat"].path).parents[2] / "tracking").glob("pipeline-*.jsonl"):
        opened, *records = map(json.loads, path.read_text().splitlines())
        asked = [record["values"] for record in records if record["kind"] == "params"]
        params[opened["title"]] = {key: value for values in asked for key, value in values.items()}
    tuned, first = (
        params[f"{name} on {Path(made[data].path).name}"]
        for name, data in (("chat", "talk"), ("base", "text"))
    )
    assert (tuned["n_embd"], tuned["block_size"], tuned["use_loss_mask"]) == ("16", "32", "True")
    assert first["use_loss_mask"] == "False"


def test_what_is_no_knob_is_refused_before_anything_runs():
    with pytest.raises(Exception, match="learning_rat"):
        stages.pretrain({"learning_rat": 1.0}, "nowhere")
    with pytest.raises(Exception, match=r"overrides: unknown key 'learning_rat'; did you mean"):
        stages.pretrain("configs/tiny.json", "nowhere", overrides={"learning_rat": 1.0})


@pytest.mark.slow
def test_a_stage_trains_in_several_processes_to_the_same_weights(made, tmp_path, monkeypatch):
    tree = {"reduction": "tree", "grad_accumulation": 4}
    weights = []
    for name, words in (("one", {}), ("two", {"parallel": "ddp", "processes": 2})):
        monkeypatch.setenv("MYPT_HOME", str(tmp_path / name))
        preset = made["config"].pretrain.model_copy(update=tree | words)
        lineage = read_lineage(Path(stages.pretrain(preset, made["text"].path, "base").path))
        assert lineage.compute.processes == preset.processes
        assert lineage.context.prefect_flow_run_id
        weights.append(lineage.weights)
    assert weights[0] == weights[1]
