"""The script that waits for a GPU does not rot meanwhile."""

from importlib import import_module

import pytest

from tests.pages import ROOT


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    small = {"n_layer": 1, "n_head": 3, "n_kv_head": 1, "n_embd": 48, "mlp_width": 64}
    sizes = import_module("generating").SMOLLM2
    monkeypatch.setattr(
        import_module("lora_step"), "SMOLLM2", sizes.model_copy(update=small | {"vocab_size": 300})
    )
    return import_module("gpu")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers in an old way
def test_what_a_gpu_is_to_measure_runs_on_a_processor_in_miniature(gpu):
    small = {"block_size": 64, "n_layer": 1, "n_head": 2, "n_embd": 32, "vocab_size": 300}
    place = gpu.Place("cpu", gpu.PRESET.model_copy(update=small), rows=2, rounds=1)
    found = [line.work for line in gpu.measure(place)]
    firsts = [work.split(",")[0] for work in gpu.WORKS]
    assert len(firsts) == 6
    for first in firsts:
        assert any(work.startswith(first) for work in found), first


def test_without_a_gpu_the_table_says_so(gpu, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [line.met for line in gpu.lines(quick=True)] == ["no GPU was at hand"] * 6
