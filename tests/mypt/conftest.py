"""A tiny dataset, a tiny preset, and a home of its own for each test that trains."""

import json
from pathlib import Path

import pytest
import torch

from mypt.config import MaskPolicy, PrepareConfig, Preset, Source
from mypt.data.dataset import prepare
from mypt.training.events import EvalReport, Finished, StepReport
from mypt.training.loop import train
from mypt.training.plan import plan_run

TINY = {
    "block_size": 16, "vocab_size": 272, "n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.1,
    "use_loss_mask": True, "batch_size": 4, "grad_accumulation": 2, "max_iters": 12,
    "learning_rate": 1e-2, "warmup_iters": 2, "eval_interval": 4, "eval_iters": 2,
    "checkpoint_interval": 3, "threads": 1, "device": "cpu", "dtype": "float32",
}  # fmt: skip

ROOMS = {"training", "provenance", "planning"}


def write_chat(path: Path, n: int, answer: str = "{i} it is") -> Path:
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"say {i}"},
                    {"role": "assistant", "content": answer.format(i=i)},
                ]
            }
        )
        for i in range(n)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def prepare_chat(folder: Path, n: int = 80, answer: str = "{i} it is", **changes) -> Path:
    raw = write_chat(folder / "chat.jsonl", n, answer)
    values = {"tokenization": "byte", "val_fraction": 0.25} | changes
    config = PrepareConfig(sources=(Source(path=str(raw), licence="CC0"),), **values)
    return Path(prepare(config, MaskPolicy(), folder / "datasets" / "chat").path)


@pytest.fixture(autouse=True)
def _own_home(request, monkeypatch):
    """Whatever trains leaves its run in the test's own folder."""
    if ROOMS.intersection(request.path.parts):
        monkeypatch.setenv("MYPT_HOME", str(request.getfixturevalue("tmp_path") / "runs"))
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def chat_dataset(tmp_path_factory):
    return prepare_chat(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="session")
def other_dataset(tmp_path_factory):
    return prepare_chat(tmp_path_factory.mktemp("raw"), answer="no {i}")


@pytest.fixture
def tiny():
    """A preset of the tiniest model, with changes."""
    return lambda **changes: Preset.model_validate(TINY | changes)


@pytest.fixture
def plan(tiny, chat_dataset):
    """A plan under a name, with changes to the preset."""
    return lambda name="m", init_from=None, dataset=None, **changes: plan_run(
        tiny(**changes), name, dataset or chat_dataset, init_from=init_from
    )


@pytest.fixture
def finish():
    """Train to the end; return the events by kind."""

    def run(plan, **choices):
        events = list(train(plan, **choices))
        return {
            "all": events,
            "steps": [e for e in events if isinstance(e, StepReport)],
            "evals": [e for e in events if isinstance(e, EvalReport)],
            "end": next(e for e in events if isinstance(e, Finished)),
        }

    return run


@pytest.fixture
def make_chat():
    """The function that prepares a chat dataset in a folder."""
    return prepare_chat


def prepare_pairs(folder: Path, n: int = 60, **changes) -> Path:
    """Pairs of all lengths, every third with a prompt of several turns."""
    rows = []
    for i in range(n):
        asked = f"say {i}"
        if i % 3 == 0:
            asked = [
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": "hello yourself"[: 5 + i % 9]},
                {"role": "user", "content": asked},
            ]
        worse = "no, I will not say it"[: 4 + i % 17]
        rows.append({"prompt": asked, "chosen": f"{i} it is", "rejected": worse})
    raw = folder / "pairs.jsonl"
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"tokenization": "byte", "val_fraction": 0.25} | changes
    config = PrepareConfig(sources=(Source(path=str(raw), pairs=True),), **values)
    return Path(prepare(config, MaskPolicy(), folder / "datasets" / "pairs").path)


@pytest.fixture(scope="session")
def pair_dataset(tmp_path_factory):
    return prepare_pairs(tmp_path_factory.mktemp("pairs"))
