"""The checkpoint as MLflow's model, served by MLflow's own server in a process of its own."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
import torch

from flows.cli import main
from mypt.config import Preset
from mypt.errors import CheckpointError, DataError
from mypt.home import place_now
from mypt.inference.chat import ask
from mypt.training.checkpoints.checkpoint import load_model
from mypt.training.checkpoints.folder import checkpoint_ref
from mypt.training.lineage import read_lineage
from mypt.training.loop import train
from mypt.training.plan import plan_run
from tasks.pyfunc import ChatModel
from tasks.reporting.trainings import TrainingReport
from tasks.tracking.client import Tracker, make_database
from tasks.tracking.mirror import sync
from tasks.tracking.recording import recorded
from tasks.tracking.records import Upload
from tests.mypt.conftest import TINY, prepare_chat

ASKED = {"messages": [{"role": "user", "content": "say 1"}], "temperature": 0.0, "max_tokens": 6}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPT_HOME", str(folder / "runs"))
        torch.set_num_threads(1)
        data = prepare_chat(folder)
        list(train(plan_run(Preset.model_validate(TINY | {"max_iters": 2}), "chat", data)))
        assert main(["export", "chat", "--to", "mlflow", str(folder / "out")]) == 0
        model, tokenizer, _ = load_model("chat")
        (folder / "runs").rename(folder / "gone")  # the folder stands alone
    wanted = ask(model, tokenizer, "say 1", form="chat", max_tokens=6).text
    return folder / "out", wanted


def test_the_folder_answers_as_the_model_does_and_refuses_what_it_cannot(exported):
    folder, wanted = exported
    (step,) = folder.glob("step_*")
    model = ChatModel(step)
    found = model.predict(ASKED)
    assert found["choices"][0]["message"]["content"] == wanted
    assert [one["choices"] for one in model.predict([ASKED, ASKED])] == [found["choices"]] * 2
    for odd in ({"stream": True}, {"messages": []}, {"colour": 1}, {"max_tokens": 0}):
        with pytest.raises(DataError, match=next(iter(odd))):
            model.predict(ASKED | odd)


def test_an_answer_holds_to_its_schema_here_too(exported):
    pytest.importorskip("llguidance", reason="pip install 'mypt[structured]'")
    (step,) = exported[0].glob("step_*")
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": 7}}}
    found = ChatModel(step).predict(ASKED | {"response_format": form})
    assert found["choices"][0]["message"]["content"] == "7"


def test_nothing_in_the_folder_can_execute_and_a_changed_byte_is_found(exported, tmp_path):
    folder, _ = exported
    names = {path.suffix or path.name for path in folder.rglob("*") if path.is_file()}
    assert not names & {".py", ".pkl", ".pickle", ".pt", ".bin"}
    (step,) = folder.glob("step_*")
    copy = tmp_path / step.name
    copy.mkdir()
    for path in step.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        ChatModel(copy)


@pytest.mark.filterwarnings("default")  # MLflow's own type hints warn while they are read
def test_mlflow_loads_it_with_its_chat_signature(exported):
    from mlflow import pyfunc

    folder, wanted = exported
    model = pyfunc.load_model(str(folder))
    names = [column.name for column in model.metadata.get_input_schema().inputs]
    assert names[0] == "messages"
    found = model.predict(ASKED)
    assert found["choices"][0]["message"]["content"] == wanted


@contextmanager
def served(model, **environment):
    """MLflow's own scoring server of a model; yields its address."""
    with closing(socket.create_server(("127.0.0.1", 0))) as found:
        port = found.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / "mlflow"), "models", "serve", "-m", model,
        "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path} | environment
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(600):
                assert process.poll() is None
                try:
                    urllib.request.urlopen(f"{url}/ping", timeout=5).close()
                    break
                except (URLError, ConnectionError):
                    time.sleep(0.2)
            yield url
        finally:
            os.killpg(process.pid, 15)


@pytest.fixture(scope="module")
def server(exported):
    with served(str(exported[0])) as url:
        yield url


def invoke(url, body):
    head = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/invocations", json.dumps(body).encode(), head)
    with urllib.request.urlopen(request, timeout=60) as answered:
        return json.loads(answered.read())


def test_mlflow_models_serve_answers_chats(server, exported):
    found = invoke(server, ASKED)
    assert found["choices"][0]["message"] == {
        "role": "assistant", "content": exported[1], "refusal": None,
    }  # fmt: skip
    assert found["usage"]["completion_tokens"] == 6
    assert found["model"] == "chat"
    assert len(invoke(server, {"inputs": [ASKED, ASKED]})["predictions"]) == 2
    with pytest.raises(HTTPError):
        invoke(server, ASKED | {"max_tokens": 0})


@pytest.fixture
def registered(own_home, monkeypatch):
    """A home whose MLflow lists a training's checkpoints, with a champion; what that answers."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    torch.set_num_threads(1)
    data = prepare_chat(own_home)
    plan = plan_run(Preset.model_validate(TINY | {"max_iters": 2}), "demo-chat", data)
    with recorded("train-demo-chat", "fine-tune", experiment="demo") as run:
        report = TrainingReport(run, plan)
        for event in train(plan):
            report.take(event)
    sync()
    assert not Tracker().crown([event.checkpoint.digest])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{own_home / 'mlflow.db'}")
    model, tokenizer, _ = load_model("demo-chat")
    return own_home, ask(model, tokenizer, "say 1", form="chat", max_tokens=6).text


def loaded(alias):
    from mlflow import MlflowClient, pyfunc

    model = pyfunc.load_model(f"models:/demo@{alias}")
    version = MlflowClient().get_model_version_by_alias("demo", alias)
    assert model.metadata.metadata["digest"] == version.tags["digest"]
    assert read_lineage(Path(place_now(version.tags["path"]))).digest == version.tags["digest"]
    return model


@pytest.mark.filterwarnings("default")  # MLflow's own type hints warn while they are read
def test_every_version_of_the_registry_loads_by_its_alias_and_answers(registered):
    home, wanted = registered
    for alias in ("best", "newest", "champion"):
        found = loaded(alias).predict(ASKED)
        assert found["choices"][0]["message"]["content"] == wanted
    assert not list((home / "artifacts").rglob("models/*/artifacts/step_*/*.safetensors"))


@pytest.mark.filterwarnings("default")
def test_a_reference_follows_its_home_and_says_what_is_missing(registered, monkeypatch):
    home, wanted = registered
    moved = home.with_name("moved")
    home.rename(moved)
    monkeypatch.setenv("MYPT_HOME", str(moved))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{moved / 'mlflow.db'}")
    make_database()
    assert loaded("champion").predict(ASKED)["choices"][0]["message"]["content"] == wanted
    (moved / "models").rename(moved / "gone")
    from mlflow import pyfunc

    with pytest.raises(CheckpointError, match=r"step_000002: not there; .* set MYPT_HOME"):
        pyfunc.load_model("models:/demo@champion")


@pytest.mark.filterwarnings("default")
def test_uploaded_weights_load_without_the_home_and_are_uploaded_once(registered, monkeypatch):
    home, wanted = registered
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    seen = []
    for name in ("one", "two"):
        with recorded(name, "upload weights", experiment="demo") as run:
            run.write(Upload(name="demo-chat", checkpoint=checkpoint_ref(Path("demo-chat"))))
        files = list((home / "artifacts").rglob("models/*/artifacts/step_*/*.safetensors"))
        seen.append({path: path.stat().st_mtime_ns for path in files})
    assert len(seen[0]) > 1  # weights and optimizer
    assert seen[0] == seen[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    assert loaded("champion")
    (home / "models").rename(home / "gone")
    from mlflow import pyfunc

    found = pyfunc.load_model("models:/demo@champion").predict(ASKED)
    assert found["choices"][0]["message"]["content"] == wanted


@pytest.mark.slow
def test_mlflow_models_serve_answers_as_the_champion(registered):
    home, wanted = registered
    with served("models:/demo@champion", MYPT_HOME=str(home)) as url:
        assert invoke(url, ASKED)["choices"][0]["message"]["content"] == wanted
