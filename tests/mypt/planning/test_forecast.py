"""What is said before a training is what the training then does."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from flows.commands.planning import render
from mypt.config import Preset
from mypt.errors import ConfigError, TrainingError
from mypt.parsing import read_json
from mypt.planning import configs
from mypt.planning.configs import plan, read_presets
from mypt.planning.forecast import Data, best_interval, forecast
from mypt.planning.machines import GPUS, Machine, Probe, find_gpu
from mypt.planning.sizes import count_operations

H100 = GPUS["h100"]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_a_checkpoint_is_as_large_as_was_said(optimizer, tiny, chat_dataset, plan, finish):
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes", reason="pip install 'mypt[bitsandbytes]'")
    end = finish(plan(n_embd=64, optimizer=optimizer))["end"]
    written = sum(file.stat().st_size for file in Path(end.checkpoint.path).iterdir())
    size = (chat_dataset / "tokenizer_state.json").stat().st_size
    found = forecast(
        tiny(n_embd=64, optimizer=optimizer), Machine(), Data(1000, 10, 0.5, other_bytes=size)
    )
    assert found.checkpoints.bytes == pytest.approx(written, rel=0.05)


def test_tokens_steps_and_density_are_those_of_the_loader(tiny, chat_dataset, plan, finish):
    from mypt.planning.configs import plan as forecasts

    for batching in ("windows", "packed"):
        preset = tiny(batching=batching, max_lost=1.0)
        (found,) = forecasts((preset,), Machine(), dataset_dir=chat_dataset)
        steps = finish(plan(f"m-{batching}", batching=batching, max_lost=1.0))["steps"]
        assert found.tokens_per_epoch is not None
        assert sum(s.tokens for s in steps) == pytest.approx(
            len(steps) * found.tokens_per_epoch / found.steps_per_epoch, rel=0.1
        )
        learned = sum(step.supervised for step in steps) / len(steps)
        assert learned == pytest.approx(found.density * found.tokens_per_step, rel=0.1)


@pytest.mark.parametrize(("write", "failure"), [(1, 100), (8, 86400), (60, 3600), (0.1, 1e7)])
def test_the_best_interval_is_where_the_expected_time_is_least(write, failure):
    """Against a search over Daly's expected time, with failures at random."""
    intervals = np.geomspace(write / 10, 10 * failure, 200_001)
    expected = np.expm1((intervals + write) / failure) / intervals
    best = intervals[np.argmin(expected)]
    assert best_interval(write, failure) == pytest.approx(best, rel=0.01)


def test_young_is_the_limit_of_few_failures():
    assert best_interval(8, 24 * 3600 * 1000) == pytest.approx(
        math.sqrt(2 * 8 * 24 * 3600 * 1000), rel=0.01
    )
    assert best_interval(100, 50) == 50  # writing takes longer than a machine lives


def test_a_gpu_is_as_quick_as_its_peak_and_the_share_say(tiny):
    preset = tiny(grad_accumulation=8, eval_iters=1, eval_interval=12, n_embd=8192)
    found = forecast(preset, Machine(8, gpu=H100, utilisation=0.5, price_per_hour=3.0))
    work = count_operations(preset, 4 * 8).total
    assert found.step_seconds == pytest.approx(work / (8 * 0.5 * H100.peak))
    # two evaluations of one micro-batch of each split, of which 24 cost what a step does
    assert found.seconds == pytest.approx(found.step_seconds * (12 + 2 * 2 / 24))
    assert found.cost == pytest.approx(found.seconds / 3600 * 8 * 3.0)
    assert not found.measured


def test_no_step_is_quicker_than_its_kernels_start(tiny):
    preset = tiny(grad_accumulation=8, n_layer=3)
    found = forecast(preset, Machine(2, gpu=H100))
    assert found.step_seconds == pytest.approx(4 * 3 * 100 * 5e-6)
    assert any(line.startswith("no step is quicker than 6 ms") for line in found.assumed)


def test_a_probe_is_scaled_by_micro_batches(tiny):
    probe = Probe("CPU", "cpu", "float32", 20, micro_seconds=0.5, update_seconds=0.1)
    found = forecast(tiny(grad_accumulation=8, parallel="ddp"), Machine(2, probe=probe))
    assert found.step_seconds == pytest.approx(4 * 0.5 + 0.1)
    assert found.measured
    assert "processes do not slow each other down" in found.assumed


def test_what_is_timed_is_what_training_takes(tiny, plan, finish):
    """Loosely: another program may take the processor meanwhile."""
    sizes = {"n_embd": 64, "batch_size": 16, "grad_accumulation": 2}
    steps = finish(plan(**sizes))["steps"]
    taken = sorted(step.seconds for step in steps)[len(steps) // 2]
    (found,) = configs.plan((tiny(**sizes),), Machine(), probe_steps=5)
    assert taken / 4 < found.step_seconds < taken * 4
    assert found.where.endswith("1 threads")


def test_memory_that_runs_out_while_timing_says_what_to_change(tiny, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(configs, "_time_steps", full)
    with pytest.raises(TrainingError, match=r"the probe.*: out of memory .*halve batch_size"):
        configs.plan((tiny(),), Machine(), probe_steps=5)


@pytest.mark.parametrize(("processes", "micros"), [(1, 6), (2, 6), (4, 8), (8, 8), (5, 10)])
def test_processes_share_the_fewest_micro_batches_that_they_divide(tiny, processes, micros):
    preset = tiny(grad_accumulation=6)
    found = forecast(preset, Machine(processes))
    assert found.tokens_per_step == micros * preset.batch_size * preset.block_size
    said = [line for line in found.assumed if "grad_accumulation" in line]
    if micros == 6:
        assert said == []
    else:
        (line,) = said
        assert f"grad_accumulation {micros} instead of 6, which {processes} processes" in line


def test_a_model_that_fits_no_gpu_says_so():
    large = Preset(n_layer=48, n_embd=8192, n_head=64, batch_size=1, grad_accumulation=8)
    found = forecast(large, Machine(8, gpu=H100))
    assert not found.fits
    assert forecast(large.model_copy(update={"parallel": "fsdp"}), Machine(8, gpu=H100)).fits is (
        found.memory["fsdp"].peak <= H100.memory
    )


def test_every_figure_is_printed(tiny):
    said = _said(forecast(tiny(), Machine(gpu=H100), Data(1000, 8, 0.5)))
    for part in ("parameters", "memory of one process", "FLOPs a step", "a checkpoint", "an epoch",
                 "50.0% supervised", "calculated", "40% of the peak", "50,000 hours"):  # fmt: skip
        assert part in said


def test_epochs_are_planned_by_the_dataset_and_no_number_of_steps_is_made_up(tiny, chat_dataset):
    preset = tiny(batching="packed").model_copy(update={"max_iters": 5000, "epochs": 2})
    (bare,) = plan((preset,), Machine(gpu=H100))
    assert (bare.steps, bare.seconds, bare.cost) == (None, None, None)
    assert bare.step_seconds is not None
    assert any(line.startswith("2 epochs; --dataset_dir") for line in bare.assumed)
    (known,) = plan((preset,), Machine(gpu=H100), dataset_dir=chat_dataset)
    assert known.steps == 2 * known.steps_per_epoch
    assert known.seconds is not None
    assert not any("epochs" in line for line in known.assumed)


def test_a_pipeline_has_two_trainings_of_one_architecture():
    base, chat = read_presets(Path("configs/demo.json"))
    assert base.architecture() == chat.architecture()
    found = plan((base, chat), Machine())
    assert [one.parameters for one in found] == [646_272] * 2


def test_unknown_gpus_and_datasets_of_pipelines_are_refused(chat_dataset):
    with pytest.raises(ConfigError, match="did you mean h100"):
        find_gpu("h1000")
    with pytest.raises(ConfigError, match="the config of a pipeline"):
        plan(read_presets(Path("configs/demo.json")), Machine(), dataset_dir=chat_dataset)


def test_a_plan_of_pairs_is_what_their_training_reads_and_keeps(tiny, pair_dataset, plan, finish):
    from mypt.planning.configs import plan as forecasts

    words = {
        "block_size": 256, "batching": "packed", "objective": "dpo", "use_loss_mask": None,
        "batch_size": 2, "grad_accumulation": 2, "max_iters": 12, "dropout": 0.0,
    }  # fmt: skip
    (found,) = forecasts((tiny(**words),), Machine(), dataset_dir=pair_dataset, probe_steps=3)
    finish(plan("base", block_size=256, max_iters=1))
    steps = finish(plan("p", init_from="base", dataset=pair_dataset, **words))["steps"]
    assert found.steps == len(steps) == 12
    read = sum(step.tokens for step in steps) / len(steps)
    assert read == pytest.approx(found.tokens_per_epoch / found.steps_per_epoch, rel=0.1)
    learned = sum(step.supervised for step in steps) / len(steps)
    assert learned == pytest.approx(found.density * found.tokens_per_step, rel=0.1)
    alone = forecast(tiny(**words | {"reference": "none"}), Machine())
    assert found.memory["none"].weights == 2 * alone.memory["none"].weights
    assert found.measured
    assert "base and pairs' sides add" in _said(found)


def test_a_pipeline_that_prefers_has_three_trainings(tmp_path):
    config = Path("configs/demo.json").resolve()
    pairs = {"sources": [{"path": "p.jsonl", "pairs": True}]}
    prefer = {"pairs": pairs, "train": {"batching": "packed", "objective": "ipo"}}
    values = read_json(config) | {"prefer": prefer}
    for stage in ("pretrain", "sft"):
        if "preset" in values[stage]:
            values[stage]["preset"] = str(config.parent / values[stage]["preset"])
    (tmp_path / "c.json").write_text(json.dumps(values))
    base, _, last = read_presets(tmp_path / "c.json")
    assert (last.objective, last.architecture()) == ("ipo", base.architecture())


def _said(found):
    from rich.console import Console

    console = Console(width=200, record=True)
    console.print(render(found))
    return console.export_text()
