"""``mypt list``: what there is, without a server and without torch."""

import json
import os
import subprocess
import sys

import pytest

from flows.cli import main
from mypt.home import datasets_dir, models_dir
from tasks.tracking.recording import recorded
from tasks.tracking.records import DatasetInput, Metrics, Params, Tags, journal_path
from tests.mypt.conftest import TINY, prepare_chat


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory, _mlflow_database):
    """A base and its fine-tuning, two datasets, and a run of a pipeline with one stage."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPT_HOME", str(folder))
        (folder / "here").mkdir()
        patch.chdir(folder / "here")
        (folder / "mlflow.db").write_bytes(_mlflow_database.read_bytes())
        data = prepare_chat(folder, n=20)
        words = ["--out_dir", datasets_dir() / "asked", "--policy", "user"]
        assert main(["mask", str(data), *map(str, words)]) == 0
        for name, mask, more in (
            ("base", False, []),
            ("chat", True, ["--init_from_model", "base"]),
        ):
            preset = folder / f"{name}.json"
            preset.write_text(json.dumps(TINY | {"max_iters": 4, "use_loss_mask": mask}))
            words = ["--config_file", preset, "--dataset_dir", data, "--model_name", name, *more]
            assert main(["train", *map(str, words)]) == 0
        os.utime(models_dir() / "base" / "step_000004" / "lineage.json", (1000, 1000))
        with recorded("pipeline-1", "chats: assistant") as run:
            run.write(Params(values={"policy": "assistant"}))
            run.write(Metrics(values={"pretrain_best_val_loss": 2.5}))
            run.write(Metrics(values={"sft_best_val_loss": 1.5}))
            run.write(Metrics(values={"val_loss": 1.7}))  # of the evaluation, on other rows
            with recorded("train-chat", "fine-tune chat"):
                pass
        yield folder


def listed(capsys, *words, code=0):
    capsys.readouterr()
    assert main(["list", *words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_models_are_listed_newest_first_with_what_they_learned(capsys):
    chat, base = listed(capsys, "models")["models"]
    assert (chat["name"], base["name"]) == ("chat", "base")
    assert chat["about"] == "step 4 of 4"
    assert chat["size"] > 0
    assert chat["loss"] > 0
    assert chat["parent"] == "base step 4"
    assert chat["mask"].startswith("assistant, ")
    assert (base["mask"], base["parent"]) == ("every token", "none")


def test_datasets_and_whole_runs_are_listed(capsys):
    found = listed(capsys)
    asked, chat = found["datasets"]
    assert (asked["name"], chat["name"]) == ("asked", "chat")
    assert asked["mask"].startswith("user, ")
    assert asked["parent"] == "chat"
    (run,) = found["runs"]
    assert (run["name"], run["about"]) == ("chats: assistant", "finished")
    assert (run["loss"], run["mask"]) == (1.5, "assistant")


def test_what_pairs_were_learned_with_is_no_loss_of_the_run(capsys):
    with recorded("pipeline-3", "chats: assistant, then pairs") as run:
        for context, figures in (
            ("train", {"chat_best_val_loss": 1.5}),
            ("prefer", {"prefer_best_val_loss": 0.4}),
        ):
            run.write(DatasetInput(name="d", digest="0", path="d", context=context))
            run.write(Metrics(values=figures))
    found = {run["name"]: run for run in listed(capsys, "runs")["runs"]}
    assert found["chats: assistant, then pairs"]["loss"] == 1.5
    journal_path("pipeline-3").unlink()


def test_a_run_that_made_nothing_new_says_so_and_has_no_loss_of_its_own(capsys):
    with recorded("pipeline-2", "chats: assistant, again") as run:
        run.write(Metrics(values={"sft_best_val_loss": 1.5}))
        run.write(Tags(values={"reused": "everything"}))
    found = {run["name"]: run for run in listed(capsys, "runs")["runs"]}
    again = found["chats: assistant, again"]
    assert (again["about"], again["loss"]) == ("nothing new: all of it was reused", None)
    journal_path("pipeline-2").unlink()


def test_datasets_that_no_model_used_are_found_where_people_put_them(capsys, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    for place in ("here", "data/new"):
        assert main(["mask", str(datasets_dir() / "chat"), "--out_dir", place]) == 0
    names = {found["name"] for found in listed(capsys, "datasets")["datasets"]}
    assert names == {"asked", "chat", "here", "new"}


def test_a_person_reads_tables(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if "date" in line] == [
        "models",
        "datasets",
        "runs",
    ]
    assert "base step 4" in said


def test_what_is_damaged_is_a_line_and_a_finding(capsys, home):
    pages = (
        models_dir() / "chat" / "step_000004" / "lineage.json",
        datasets_dir() / "asked" / "dataset_metadata.json",
        home / "tracking" / "pipeline-1.jsonl",
    )
    kept = [page.read_bytes() for page in pages]
    for page in pages:
        page.write_text("{}\n")
    found = listed(capsys, code=1)
    assert main(["list"]) == 1
    said = capsys.readouterr().out
    for page, text in zip(pages, kept, strict=True):
        page.write_bytes(text)
    damaged = [one["name"] for items in found.values() for one in items if one["problem"]]
    assert damaged == ["chat", "asked", "pipeline-1"]
    assert all(f"damaged: {name}: " in said for name in damaged)


def test_a_model_that_has_only_begun_is_no_damage(capsys):
    folder = models_dir() / "begun"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    found = listed(capsys, "models")["models"]
    (folder / "run.json").unlink()
    folder.rmdir()
    assert found[0]["about"] == "no checkpoint yet"


def test_an_empty_home_is_told_so(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    assert main(["list"]) == 0
    assert capsys.readouterr().out.split() == [
        "models:",
        "none",
        "datasets:",
        "none",
        "runs:",
        "none",
    ]


def test_listing_starts_nothing_heavy():
    heavy = ("torch", "mlflow", "prefect", "pandas")
    program = (
        "import sys; from flows.cli import main; assert main(['list']) == 0;"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
