"""The checkpoint as MLflow's model, served by MLflow's own server in a process of its own."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
import torch

from flows.cli import main
from mypt.config import Preset
from mypt.errors import CheckpointError, DataError
from mypt.inference.chat import ask
from mypt.training.checkpoints.checkpoint import load_model
from mypt.training.loop import train
from mypt.training.plan import plan_run
from tasks.pyfunc import ChatModel
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


@pytest.fixture(scope="module")
def server(exported):
    """MLflow's own scoring server of the folder."""
    with closing(socket.create_server(("127.0.0.1", 0))) as found:
        port = found.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / "mlflow"), "models", "serve", "-m", str(exported[0]),
        "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
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
