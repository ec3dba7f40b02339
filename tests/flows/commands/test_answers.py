"""generate, chat and serve over a real checkpoint, as people start them."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
import torch
from mlflow import MlflowClient

from flows.cli import main
from mypt.config import MaskPolicy, PrepareConfig, Preset, Source
from mypt.data.dataset import prepare
from mypt.model import compiling
from mypt.training.checkpoints import checkpoint
from mypt.training.loop import train
from mypt.training.plan import plan_run

TINY = {
    "block_size": 64, "vocab_size": 272, "n_layer": 1, "n_head": 2, "n_embd": 16,
    "batch_size": 4, "max_iters": 2, "learning_rate": 1e-3, "warmup_iters": 1,
    "use_loss_mask": True, "eval_interval": 2, "eval_iters": 1, "threads": 1, "device": "cpu",
    "batching": "packed",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPT_HOME", str(home))
        torch.set_num_threads(1)
        source = Source(exercises="chat", count=60)
        config = PrepareConfig(sources=(source,), tokenization="byte")
        data = prepare(config, MaskPolicy(), home / "datasets" / "chat")
        list(train(plan_run(Preset.model_validate(TINY), "tiny", Path(data.path))))
        yield home


def typed(monkeypatch, *lines):
    waiting = iter(lines)
    monkeypatch.setattr("builtins.input", lambda _: next(waiting, ""))


@pytest.mark.usefixtures("home")
def test_generate_takes_every_choice(capsys):
    choices = (
        "--temperature 0.9 --top_k 9 --top_p 0.9 --min-p 0.01 --repetition_penalty 1.2 --seed 3"
    )
    words = f"generate tiny --prompt Hi --max_tokens 5 --json {choices}".split()
    assert main(words) == main(words) == 0
    first, second = capsys.readouterr().out.split("}\n{")
    assert json.loads(first + "}") == json.loads("{" + second)
    assert main(["generate", "tiny", "--prompt", "Hi", "--repetition_penalty", "0"]) == 2


def test_a_model_whose_training_is_not_finished_says_so_beside_its_answer(
    home, capsys, monkeypatch
):
    words = ["generate", "tiny", "--prompt", "Hi", "--max_tokens", "2"]
    assert main(words) == 0
    assert "not finished" not in capsys.readouterr().err
    preset = Preset.model_validate(TINY | {"max_iters": 9, "eval_interval": 3})
    steps = iter(range(99))
    data = home / "datasets" / "chat"
    list(train(plan_run(preset, "begun", data), should_stop=lambda: next(steps) >= 4))
    typed(monkeypatch)
    for said in (["generate", "begun", *words[2:]], ["chat", "begun"]):
        assert main(said) == 0
        told = capsys.readouterr().err.splitlines()
        assert re.fullmatch(r"begun: its training is not finished, step \d of 9", told[0])


def test_an_adapter_is_asked_beside_its_base_whichever_form_it_has(home, tmp_path, capsys):
    data = home / "datasets" / "chat"
    preset = Preset.model_validate(TINY | {"lora": {"rank": 2, "tokens": []}, "learning_rate": 0.1})
    list(train(plan_run(preset, "beside", data, init_from="tiny")))
    assert main(["export", "beside", str(tmp_path / "peft"), "--to", "peft"]) == 0
    card = (tmp_path / "peft" / "README.md").read_text()
    assert 'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), ".")' in card
    asked = ["--prompt", "Hi", "--max_tokens", "5", "--form", "chat", "--json"]
    capsys.readouterr()
    said = []
    for words in (["beside"], ["tiny", "--adapter", "beside"],
                  ["tiny", "--adapter", str(tmp_path / "peft")], ["tiny"]):  # fmt: skip
        assert main(["generate", *words, *asked]) == 0
        said.append(json.loads(capsys.readouterr().out)["text"])
    assert said[0] == said[1] == said[2] != said[3]
    losses = []
    for words in ([], ["--adapter", "beside"]):
        assert main(["evaluate", "tiny", *words, "--eval_iters", "2", "--json"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["val_loss"])
    assert losses[0] != losses[1]
    judged = ["evaluate", "tiny", "--adapter", "beside", "--gate", "--eval_iters", "2", "--json"]
    assert main(judged) in (0, 1)
    assert json.loads(capsys.readouterr().out)["candidate"]["model"] == "beside"
    assert main(["adopt", str(tmp_path / "peft"), "--base", "tiny", "--model_name", "again"]) == 0
    assert "again: rank 2 beside tiny" in " ".join(capsys.readouterr().out.split())
    assert main(["adopt", str(data), "--base", "tiny"]) == 2
    assert "--base and --model_name are an adapter's" in capsys.readouterr().err
    assert main(["generate", "beside", "--adapter", "tiny", *asked]) == 2
    assert "whole weights and no adapter" in capsys.readouterr().err


@pytest.mark.usefixtures("home")
def test_generate_says_what_cut_an_answer_off(capsys):
    words = ["generate", "tiny", "--prompt", "Hi", "--temperature", "5", "--max_tokens"]
    for most, ending, note in (
        ("2", "length", "[cut off after 2 tokens]\n"),
        ("9999", "context", "[cut off: the model's context of 64 tokens is full]\n"),
    ):
        assert main([*words, most]) == 0
        assert capsys.readouterr().err == note
        assert main([*words, most, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["ending"] == ending


@pytest.mark.usefixtures("home")
def test_compile_compiles_or_names_what_is_missing(capsys, monkeypatch):
    compiled = []
    monkeypatch.setattr(compiling, "missing_compiler", lambda _device: "")
    monkeypatch.setattr(compiling, "compile_reading", compiled.append)
    words = ["generate", "tiny", "--prompt", "Hi", "--max_tokens", "5"]
    assert main(words) == 0
    assert not compiled
    assert main([*words, "--compile"]) == 0
    assert len(compiled) == 1
    monkeypatch.setattr(compiling, "missing_compiler", lambda _device: "a C++ compiler")
    assert main([*words, "--compile"]) == 2
    assert "--compile: a C++ compiler is not on this machine" in capsys.readouterr().err


@pytest.mark.usefixtures("home")
def test_a_model_trained_compiled_answers_so_and_says_where_it_cannot(capsys, monkeypatch):
    compiled, true_load = [], checkpoint.load_model

    def trained_compiled(name):
        gpt, tokenizer, found = true_load(name)
        preset = found.preset.model_copy(update={"compile": True})
        return gpt, tokenizer, dataclasses.replace(found, preset=preset)

    monkeypatch.setattr(checkpoint, "load_model", trained_compiled)
    monkeypatch.setattr(compiling, "compile_reading", compiled.append)
    monkeypatch.setattr(compiling, "missing_compiler", lambda _device: "")
    typed(monkeypatch, "hi")
    assert main(["chat", "tiny", "--max_tokens", "2"]) == 0
    assert len(compiled) == 1
    monkeypatch.setattr(compiling, "missing_compiler", lambda _device: "a C++ compiler")
    assert main(["generate", "tiny", "--prompt", "Hi", "--max_tokens", "2"]) == 0
    assert len(compiled) == 1
    assert "nothing is compiled" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["auto", "chat", "plain"])
@pytest.mark.usefixtures("home")
def test_an_empty_prompt_asks_nothing_and_is_refused(capsys, form):
    assert main(["generate", "tiny", "--prompt", "", "--form", form]) == 2
    assert capsys.readouterr().err.startswith("mypt: --prompt is empty; expected ")


def talked(monkeypatch, capsys, *lines):
    """Return what ``mypt chat`` printed to somebody who typed these lines."""
    typed(monkeypatch, *lines)
    assert main(["chat", "tiny", "--max_tokens", "3", "--temperature", "0"]) == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures("home")
def test_chat_streams_resets_saves_and_says_where_it_was_cut(capsys, monkeypatch, tmp_path):
    path = tmp_path / "talk.jsonl"
    save = f"/save {path}"
    said = talked(monkeypatch, capsys, "Hi", save, save, "/reset", "Ho", "x" * 64)
    assert said.count("[cut off after 3 tokens]") == 2
    assert f"[saved as {path}]" in said
    assert "never overwritten" in said
    assert "[a new conversation]" in said
    assert "shorten it" in said.splitlines()[-1]
    assert len(json.loads(path.read_text())["messages"]) == 2


@pytest.mark.usefixtures("home")
def test_a_long_conversation_goes_on_and_is_told_once_what_leaves_it(capsys, monkeypatch, tmp_path):
    path = tmp_path / "talk.jsonl"
    asked = [f"a longer question {n:02}" for n in range(9)]
    said = talked(monkeypatch, capsys, *asked, f"/save {path}")
    assert said.count("[cut off after 3 tokens]") == 9
    (told,) = (line for line in said.splitlines() if "no longer reads the oldest turns" in line)
    assert "(1 so far)" in told
    assert len(json.loads(path.read_text())["messages"]) == 18
    again = talked(monkeypatch, capsys, *asked, "/reset", *asked)
    assert again.count("no longer reads the oldest turns") == 2  # another conversation


@pytest.mark.usefixtures("home")
def test_words_end_take_back_and_explain_and_others_are_told_not_sent(
    capsys, monkeypatch, tmp_path
):
    said = talked(monkeypatch, capsys, "/help", "Hi", "/quit", "never asked")
    assert re.findall(r"^/\w+", said, re.MULTILINE) == [
        "/undo", "/reset", "/save", "/help", "/quit",
    ]  # fmt: skip
    assert said.count("[cut off") == 1
    path = tmp_path / "talk.jsonl"
    said = talked(monkeypatch, capsys, "/undo", "Hi", "Ho", "/undo", "/save", f"/save {path}")
    assert "[nothing was said yet; there is nothing to take back]" in said
    assert "[taken back]" in said
    assert "[/save: expected a file to write" in said
    assert json.loads(path.read_text())["messages"][0]["content"] == "Hi"
    said = talked(monkeypatch, capsys, "/udno now", "/QUIT")
    assert "[/udno is no word here, and was not sent; /help lists them]" in said
    assert "cut off" not in said


@pytest.mark.usefixtures("home")
def test_a_conversation_goes_on_where_it_cannot_be_saved(capsys, monkeypatch, tmp_path):
    names = (f"/save {tmp_path}/none/talk.jsonl", f"/save {tmp_path}/talk.jsonl")
    said = talked(monkeypatch, capsys, "Hi", *names)
    assert f"[{tmp_path}/none/talk.jsonl: No such file or directory; check the path]" in said
    assert f"[saved as {tmp_path}/talk.jsonl]" in said


@pytest.mark.parametrize(
    "statement",
    [
        "from flows.cli import main; main(['generate', 'tiny', '--prompt', 'Hi'])",
        "import mypt.inference.server.serving, mypt.inference.server.answering",
        "import mypt.training.loop",  # torch's own optimizer imports them at its first use
    ],
)
def test_one_process_loads_nothing_that_only_several_need(home, statement):
    several = ("sympy", "torch.distributed.fsdp", "torch.distributed.checkpoint")
    program = f"import sys; {statement}; print([m for m in {several} if m in sys.modules])"
    environment = os.environ | {"MYPT_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.splitlines()[-1] == "[]"


def started(home, *flags, models=("tiny",), **environment):
    words = [str(Path(sys.executable).parent / "mypt"), "serve", *models, "--port", "0", *flags]
    environment = os.environ | {"MYPT_HOME": str(home), "OMP_NUM_THREADS": "1"} | environment
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as from a terminal
    )  # fmt: skip
    line = process.stdout.readline()
    return process, re.search(r"for clients (\S+);", line)[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_serve_answers_and_ends_when_it_is_told_to(home, number, code):
    process, url = started(home)
    client = openai.OpenAI(base_url=url, api_key="any", max_retries=5)
    (model,) = client.models.list().data
    messages = [{"role": "user", "content": "Hi"}]
    found = client.chat.completions.create(
        model=model.id, messages=messages, max_tokens=4, temperature=0
    )
    assert found.usage.completion_tokens <= 4
    client.close()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count("\n")) == (code, 1)


def test_several_models_are_served_by_their_names_steps_of_one_by_theirs(home, capsys):
    preset = Preset.model_validate(TINY | {"max_iters": 4, "checkpoint_interval": 2})
    list(train(plan_run(preset, "stepped", home / "datasets" / "chat")))
    steps = [home / "models" / "stepped" / f"step_{n:06}" for n in (2, 4)]
    process, url = started(home, models=("tiny", *map(str, steps)))
    with openai.OpenAI(base_url=url, api_key="any", max_retries=5) as client:
        names = [model.id for model in client.models.list().data]
        assert names == ["tiny", "stepped/step_000002", "stepped/step_000004"]
        for name in names:
            found = client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": "Hi"}], max_tokens=2
            )
            assert (found.model, found.usage.completion_tokens <= 2) == (name, True)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count("\n")) == (143, 1), errors
    assert main(["serve", "tiny", "stepped", "tiny", "--port", "0"]) == 2
    assert "tiny step_000002 is named twice" in capsys.readouterr().err


def test_a_traced_server_leaves_a_trace_a_request_and_an_untraced_one_no_journal(home, own_home):
    uri = f"sqlite:///{own_home / 'mlflow.db'}"
    journals = home / "tracking"
    for flags, count in (((), 0), (("--trace",), 2)):
        process, url = started(home, *flags, MLFLOW_TRACKING_URI=uri)
        client = openai.OpenAI(base_url=url, api_key="any", max_retries=5)
        (model,) = client.models.list().data
        for text in ("Hi", "Ho"):
            messages = [{"role": "user", "content": text}]
            client.chat.completions.create(
                model=model.id, messages=messages, max_tokens=4, temperature=0
            )
        client.close()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors.count("\n")) == (143, 1), errors
        assert len(list(journals.glob("serve-*.jsonl"))) == bool(count)
    found = MlflowClient(uri)
    place = found.get_experiment_by_name("served").experiment_id
    (run,) = found.search_runs([place])
    assert (run.info.run_name, run.info.status) == ("serve tiny step 2", "FINISHED")
    traces = found.search_traces([place])
    assert sorted(trace.info.request_preview for trace in traces) == ["Hi", "Ho"]
    assert {trace.info.state for trace in traces} == {"OK"}
    assert traces[0].data.spans[0].inputs["max_tokens"] == 4


def test_serve_ends_by_a_line_though_half_a_request_has_come(home):
    process, url = started(home)
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as opened:
        opened.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        )
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert errors.count("\n") <= 2


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("named", "said"),
    [
        (["--allow_origin", "https://a.example", "--allow_origin", "*"], "'*': expected a site"),
        (["--allow_host", "http://a"], "'http://a': expected a name"),
    ],
)
def test_serve_lets_in_sites_and_names_alone(capsys, named, said):
    assert main(["serve", "tiny", "--port", "0", *named]) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert "http://127.0.0.1" not in found.out + found.err


@pytest.mark.usefixtures("home")
def test_serve_refuses_the_world_a_taken_port_and_no_model(capsys, unused_port):
    assert main(["serve", "tiny", "--host", "0.0.0.0"]) == 2
    with socket.create_server(("127.0.0.1", unused_port)):
        assert main(["serve", "tiny", "--port", str(unused_port)]) == 1
    assert main(["serve", "none", "--port", "0"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "MYPT_API_KEY" in errors[0]
    assert "another program listens there" in errors[1]
