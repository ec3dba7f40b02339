"""``mypt export``: what other programs then read."""

import pytest
import torch

from flows.cli import main
from mypt.config import Preset
from mypt.training.checkpoint import load_model
from mypt.training.loop import train
from mypt.training.plan import plan_run
from tests.mypt.training.conftest import TINY, prepare_chat

transformers = pytest.importorskip("transformers", reason="pip install 'mypt[dev]'")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A chat model and its dataset; the folder of both."""
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    torch.set_num_threads(1)
    data = prepare_chat(tmp_path)
    list(train(plan_run(Preset.model_validate(TINY | {"max_iters": 2}), "chat", data)))
    return tmp_path


def test_a_model_answers_in_transformers_as_here_and_its_card_says_what_made_it(world, capsys):
    out = world / "out"
    assert main(["export", "chat", "--to", "hf", str(out)]) == 0
    assert f"written: {out}" in capsys.readouterr().out.replace("\n", "")
    model, tokenizer, checkpoint = load_model("chat")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    ids = torch.tensor([tokenizer.encode("say 1").tolist()])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids)[0], atol=1e-4, rtol=0)
    card = (out / "README.md").read_text()
    lineage = checkpoint.lineage
    source = lineage.dataset.sources[0]
    for fact in (lineage.digest, lineage.weights, source.files[0].sha256, "licence CC0"):
        assert fact in card


def test_what_is_there_is_never_overwritten(world, capsys):
    assert main(["export", "chat", "--to", "hf", str(world)]) == 2
    assert "exists and is never overwritten" in capsys.readouterr().err
