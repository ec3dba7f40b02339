"""Checkpoints, datasets and the overview as MLflow keeps them."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mypt import files
from mypt.text import visible
from tasks.tracking.destination import overview_url, read_sent, ui_page, write_sent
from tasks.tracking.journal import Journal
from tasks.tracking.mirror import Mirror, mirror_champion, sync
from tasks.tracking.records import CheckpointRecord, DatasetInput, MeasuredOn, Metrics, Opened, Text


@pytest.fixture(autouse=True)
def _home(own_home):
    return own_home


@pytest.fixture
def client(own_home):
    return MlflowClient(f"sqlite:///{own_home / 'mlflow.db'}")


def begun(name="train", **opened):
    journal = Journal(name)
    journal.write(Opened(**({"experiment": "demo", "title": name} | opened)))
    return journal


def subject(digest):
    return MeasuredOn(checkpoint=digest, dataset="chat/val", digest="d" * 64)


def checkpoint(folder, step, **values):
    """Return the record of a checkpoint whose folder is there."""
    path = folder / f"step_{step}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "lineage.json").write_text("{}")
    given = {
        "name": f"chat.v1 step {step}",
        "step": step,
        "path": str(path),
        "digest": f"{folder.name}{step}" * 4,
        "weights": "w" * 64,
        "parent": None,
        "params": {"policy": "assistant"},
        "aliases": ("newest", "best"),
        "kept": tuple(range(1, step + 1)),
    }
    return CheckpointRecord(**(given | values))


def models(client):
    (experiment,) = client.search_experiments(filter_string="name = 'demo'")
    return {m.name: m for m in client.search_logged_models([experiment.experiment_id])}


def versions(client):
    return {v.description: v for v in client.search_model_versions("name = 'demo'")}


def test_a_checkpoint_is_a_logged_model_with_its_run_dataset_and_figures(client, tmp_path):
    journal = begun()
    measured = Metrics(step=1, values={"val_loss": 2.0})
    journal.write(measured)
    first = checkpoint(tmp_path / "a", 1)
    about = measured.model_copy(update={"subject": subject(first.digest)})
    journal.write(first.model_copy(update={"measured": about}))
    journal.end("FINISHED")
    assert sync() == 4
    model = models(client)["chat-v1-step-1"]
    run = client.get_run(model.source_run_id)
    assert run.info.run_name == "train"
    assert [(output.model_id, output.step) for output in run.outputs.model_outputs] == [
        (model.model_id, 1)
    ]
    (metric,) = model.metrics
    assert (metric.key, metric.value, metric.dataset_name) == ("val_loss", 2.0, "chat/val")
    assert metric.dataset_digest == "d" * 36
    assert model.params == {"policy": "assistant"}
    assert (model.tags["digest"], model.tags["path"]) == (first.digest, first.path)
    assert len(client.get_metric_history(run.info.run_id, "val_loss")) == 1


def test_what_is_fine_tuned_and_what_is_measured_later_is_linked_to_the_checkpoint(
    client, tmp_path
):
    base, chat = (
        checkpoint(tmp_path / "base", 1),
        checkpoint(tmp_path / "chat", 2, parent="base1" * 4),
    )
    # The names sort otherwise than the runs began: a figure goes where its checkpoint is.
    for time, (name, record) in enumerate([("z", base), ("y", chat)], 1):
        journal = begun(name, time=time)
        journal.write(record)
        journal.end("FINISHED")
    journal = begun("evaluate", time=3)
    journal.write(Metrics(values={"exact_match": 0.5}, subject=subject(chat.digest)))
    journal.end("FINISHED")
    sync()
    found = models(client)
    tuned = found["chat-v1-step-2"]
    assert [(m.key, m.value) for m in tuned.metrics] == [("exact_match", 0.5)]
    inputs = client.get_run(tuned.source_run_id).inputs.model_inputs
    assert [one.model_id for one in inputs] == [found["chat-v1-step-1"].model_id]


def test_checkpoints_are_registered_under_the_pipelines_name_with_aliases(client, tmp_path):
    journal = begun()
    journal.write(checkpoint(tmp_path / "a", 1))
    journal.write(checkpoint(tmp_path / "a", 2))
    journal.write(checkpoint(tmp_path / "a", 3, aliases=("newest",)))
    journal.end("FINISHED")
    sync()
    found = versions(client)
    aliases = client.get_registered_model("demo").aliases
    assert aliases == {
        "newest": found["chat.v1 step 3"].version,
        "best": found["chat.v1 step 2"].version,
    }
    names = json.loads(models(client)["chat-v1-step-3"].tags["mlflow.modelVersions"])
    assert names == [{"name": "demo", "version": str(aliases["newest"])}]


def test_what_was_pruned_is_registered_no_more(client, tmp_path):
    journal = begun()
    journal.write(checkpoint(tmp_path / "a", 1))
    sync()
    assert set(versions(client)) == {"chat.v1 step 1"}
    journal.write(checkpoint(tmp_path / "a", 2, kept=(2,)))
    gone = checkpoint(tmp_path / "a", 3)
    (tmp_path / "a" / "step_3" / "lineage.json").unlink()
    (tmp_path / "a" / "step_3").rmdir()
    journal.write(gone)
    journal.end("FINISHED")
    sync()
    assert set(versions(client)) == {"chat.v1 step 2"}
    assert len(models(client)) == 3


def test_sending_checkpoints_again_changes_nothing(client, tmp_path):
    for time, name in enumerate(("old", "new"), 1):
        journal = begun(name, time=time)
        journal.write(checkpoint(tmp_path / name, 1, name=name, time=time))
        journal.end("FINISHED")
    sync()
    before = {name: version.version for name, version in versions(client).items()}
    aliases = client.get_registered_model("demo").aliases
    for name in ("new", "old"):
        write_sent(name, read_sent(name).model_copy(update={"offset": 0}))
        assert sum(Mirror().send(name)) == 3
    assert {name: version.version for name, version in versions(client).items()} == before
    assert (
        client.get_registered_model("demo").aliases
        == aliases
        == dict.fromkeys(("newest", "best"), before["new"])
    )
    assert len(models(client)) == 2


def test_both_splits_of_a_dataset_are_inputs_with_their_sizes(client):
    journal = begun()
    for name, context in (("chat", "train"), ("chat/val", "validation")):
        journal.write(
            DatasetInput(
                name=name, digest="d" * 64, path="/d", context=context, profile={"rows": 7}
            )
        )
    journal.end("FINISHED")
    sync()
    (experiment,) = client.search_experiments(filter_string="name = 'demo'")
    (run,) = client.search_runs([experiment.experiment_id])
    found = {one.dataset.name: one for one in run.inputs.dataset_inputs}
    contexts = {name: [t.value for t in one.tags if t.key.endswith("context")]
                for name, one in found.items()}  # fmt: skip
    assert contexts == {"chat": ["train"], "chat/val": ["validation"]}
    assert json.loads(found["chat"].dataset.profile) == {"rows": 7}


def test_an_experiment_links_to_its_pipelines_ranked_and_keeps_what_people_wrote(client):
    journal = begun()
    journal.end("FINISHED")
    sync()
    (experiment,) = client.search_experiments(filter_string="name = 'demo'")
    view = json.loads(experiment.tags["mlflow.sharedViewState.pipelines"])
    assert view["orderByKey"] == "metrics.`exact_match_overall`"
    assert "params.`policy`" in view["selectedColumns"]
    assert view["columnWidths"] == dict.fromkeys(view["columnOrder"], 300)
    link = overview_url("", experiment.experiment_id)
    assert link in experiment.tags["mlflow.note.content"]
    client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "mine")
    begun("another").end("FINISHED")
    sync()
    (experiment,) = client.search_experiments(filter_string="name = 'demo'")
    assert experiment.tags["mlflow.note.content"] == "mine"


def test_a_page_of_mlflow_opens_in_its_mode_for_training():
    runs = ui_page("http://host:5000", "/experiments/1/runs", viewStateShareKey="x")
    assert runs == (
        "http://host:5000/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=x"
    )


def champions(home, *made):
    """Write who is champion, the last promoted last."""
    references = [{"path": found.path, "digest": found.digest, "step": 1} for found in made]
    listed = [
        {"pipeline": str(number), "tokenizer": "t", "checkpoint": reference}
        for number, reference in enumerate(references)
    ]
    files.make_folder(home / "models")
    content = {"checkpoint": references[-1], "champions": listed}
    files.write_sealed(home / "models" / "champion.json", content)
    mirror_champion()


def test_each_champion_of_the_gate_is_its_pipelines_alias_that_moves_with_the_file(
    client, own_home, tmp_path, capsys
):
    made = {}
    for name in ("demo", "other"):
        journal = begun(f"train-{name}", experiment=name)
        for step in (1, 2):
            made[name, step] = checkpoint(tmp_path / name, step)
            journal.write(made[name, step])
        journal.end("FINISHED")
    sync()

    def crowned(name):
        return client.get_model_version_by_alias(name, "champion").tags["digest"]

    champions(own_home, made["demo", 1])
    assert crowned("demo") == made["demo", 1].digest
    assert "champion" not in client.get_registered_model("other").aliases
    champions(own_home, made["other", 1], made["demo", 2], made["demo", 1])
    assert crowned("demo") == made["demo", 1].digest, "of two tokenizers, the last promoted"
    assert crowned("other") == made["other", 1].digest
    assert capsys.readouterr().err == ""
    champions(own_home, made["other", 1].model_copy(update={"digest": "e" * 64}), made["demo", 1])
    assert "does not list the champion other" in capsys.readouterr().err
    assert "champion" not in client.get_registered_model("other").aliases


def test_no_report_hides_a_character_or_steers_a_terminal(client, tmp_path):
    hostile = "a\u202eb\x9b31mc\x1b]0;d\u200b Grüß"
    run = begun("texts")
    run.write(Text(name="config.json", text=json.dumps({"a": hostile}, ensure_ascii=False)))
    run.write(Text(name="said.txt", text=hostile))
    run.end("FINISHED")
    sync()
    (found,) = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    texts = {
        name: Path(client.download_artifacts(found.info.run_id, name, tmp_path)).read_text()
        for name in ("config.json", "said.txt")
    }
    assert {text: visible(text) for text in texts.values()} == {t: t for t in texts.values()}
    assert json.loads(texts["config.json"]) == {"a": hostile}
    assert texts["said.txt"] == visible(hostile)
