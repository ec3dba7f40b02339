"""A pipeline small enough to run in a test, and one real run of it for all that look at it."""

import json
from types import SimpleNamespace

import pytest

ARCHITECTURE = {"block_size": 32, "vocab_size": 288, "n_layer": 1, "n_head": 2, "n_embd": 16}
TRAINING = {
    "batch_size": 4,
    "eval_interval": 5,
    "eval_iters": 2,
    "warmup_iters": 2,
    "learning_rate": 1e-2,
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
}
SECRETS = ("MYPT_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD")
SECRET = "open-sesame-4711"
"""Stands in the environment while the pipeline runs."""
CONFIG = {
    "name": "small",
    "base": {
        "sources": [{"exercises": "text", "count": 200, "seed": 0}],
        "tokenization": "byte",
    },
    "chat": {
        "sources": [{"exercises": "chat", "count": 200, "seed": 0}],
        "tokenization": "byte",
    },
    "pretrain": ARCHITECTURE | TRAINING | {"max_iters": 10},
    "sft": TRAINING | {"max_iters": 8},
    "evaluate": {"exercises": 4, "max_tokens": 6, "eval_iters": 2, "prompts": ["Hi", "Bye"]},
}


@pytest.fixture
def small_config(tmp_path):
    """The pipeline's config in a file of its own."""
    path = tmp_path / "small.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture(scope="session")
def ran(prefect, tmp_path_factory):  # noqa: ARG001
    """The same pipeline run twice in one home: where it lies, and what both runs printed."""
    from contextlib import redirect_stdout
    from io import StringIO

    from flows.pipeline import run_pipeline

    folder = tmp_path_factory.mktemp("pipeline")
    config = folder / "small.json"
    config.write_text(json.dumps(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPT_HOME", str(folder))
        for name in SECRETS:
            patch.setenv(name, SECRET)
        printed, paths = [], []
        for _ in range(2):
            with redirect_stdout(StringIO()) as out:
                paths.append(run_pipeline(config).path)
            printed.append(out.getvalue())
    return SimpleNamespace(home=folder, first=printed[0], second=printed[1], paths=paths)


@pytest.fixture
def preferring(tmp_path):
    """The small pipeline with a section ``prefer``, its preset in a file of its own."""
    rows = [
        {"prompt": f"say {i}", "chosen": f"{i}!", "rejected": "no" + " no" * (i % 3)}
        for i in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    of_pairs = TRAINING | {"max_iters": 4, "batching": "packed", "objective": "dpo", "seed": 7}
    (tmp_path / "preset.json").write_text(json.dumps(of_pairs | {"beta": 1.0}))
    source = {"path": str(tmp_path / "pairs.jsonl"), "pairs": True}
    prefer = {
        "pairs": {"sources": [source], "val_fraction": 0.3},
        "train": {"preset": "preset.json", "beta": 0.2, "block_size": 64},
    }
    wide = {"pretrain": CONFIG["pretrain"] | {"block_size": 64}}
    path = tmp_path / "small.json"
    path.write_text(json.dumps(CONFIG | wide | {"prefer": prefer}))
    return path
