"""No memory left: one line that says what to change, and nothing is lost."""

import json
import resource
from pathlib import Path

import pytest

from mypt.config import MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import prepare
from mypt.training.loop import train
from mypt.training.plan import plan_run
from tests.faults import children, pipeline

pytestmark = [pytest.mark.faults, pytest.mark.row("memory")]
MIB = 1 << 20


def limit_memory(more):
    """Let this process have ``more`` bytes and no byte above."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def assert_says(ended, kind, *words):
    """Check that a child ended with one line of that kind, with these words in it."""
    assert kind in ended.kind.split(), ended.trace
    assert len(ended.message.splitlines()) == 1
    for word in words:
        assert word in ended.message


@pytest.mark.trials(quick=3, full=30)
def test_tokenizing_says_to_cut_the_longest_rows(trials, house, dice, row):
    """Wherever the memory runs out, also inside a library that would rather end the process."""
    long = house.root / "long.jsonl"
    long.write_text(json.dumps({"text": "word " * (2 * MIB)}) + "\n")
    config = PrepareConfig(sources=(Source(path=str(long)),), tokenization="byte", val_fraction=0.0)
    out = house.home / "datasets/long"

    def work(left):
        limit_memory(left)
        prepare(config, MaskPolicy(), out)

    for trial in trials:
        left = dice.randrange(16 * MIB) if trial < 2 else dice.randrange(200 * MIB)
        house.clear()
        ended = children.run(lambda left=left: work(left))
        if trial >= 2 and ended:
            continue  # it was enough, and counts for nothing
        with row.trial():
            assert_says(ended, "DataError", str(out), "cut the longest documents")
            assert not out.exists()
    children.run_whole(lambda: work(1000 * MIB))


@pytest.mark.parametrize("moment", ["step", "evaluation"])
def test_a_step_says_to_halve_the_batch(moment, house, row):
    rows = {"step": {"batch_size": 1 << 14, "eval_iters": 1}, "evaluation": {"batch_size": 1 << 14}}
    preset = pipeline.Preset.model_validate(pipeline.TINY | rows[moment])

    def work():
        base, _ = house.make_datasets()
        events = train(plan_run(preset, "m", base.path))
        if moment == "step":
            next(events), next(events)
        limit_memory(200 * MIB)
        list(events)

    with row.trial():
        assert_says(children.run(work), "TrainingError", "halve batch_size")
