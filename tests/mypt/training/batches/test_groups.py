"""What a loss is made of: against one token at a time, and against the whole."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mypt.config import MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import open_dataset, prepare
from mypt.data.spans import KINDS, ROLES
from mypt.model.loss import supervised_positions
from mypt.training.batches.groups import CLASSES, LossGroups
from mypt.training.checkpoints.state import read_state
from mypt.training.distributed import ALONE
from mypt.training.events import EvalReport
from mypt.training.lineage import RunContext
from mypt.training.loader import GPTDataLoader
from mypt.training.loop import evaluate, train
from mypt.training.run import open_run
from mypt.training.step import take_step
from tests.mypt.conftest import write_chat
from tests.mypt.training.gloo import together

POLICY = MaskPolicy(roles=("user", "assistant"), weights={"user": 0.1, "stop": 2.0})
TOOL = {"name": "add", "arguments": {"a": 1}}
NAMES = {"content": "answer content", "end": "stop", "tool_call": "tool call"}


def write_tools(path, n):
    talks = [
        [
            {"role": "system", "content": "sums"},
            {"role": "user", "content": f"q{i} and so on"},
            {"role": "assistant", "reasoning_content": "hm " * (i % 4), "tool_calls": [TOOL]},
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": f"it is {i}"},
        ]
        for i in range(n)
    ]
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    return path


@pytest.fixture(scope="module")
def weighed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weighed")
    files = [write_tools(folder / "tools.jsonl", 40), write_chat(folder / "chat.jsonl", 40, "{i}!")]
    config = PrepareConfig(
        sources=tuple(Source(path=str(file)) for file in files),
        tokenization="byte",
        val_fraction=0.25,
        shard_tokens=700,
    )
    return Path(prepare(config, POLICY, folder / "dataset").path)


def by_token(dataset, places, length):
    """Class, role and source of each place, found by looking through all spans for each token."""
    found = {}
    for row, pieces in enumerate(places):
        at = row * length
        for piece in pieces:
            read = [*range(*piece.system), *range(piece.start, piece.stop)]
            for token in read[1:]:
                spans = piece.shard.spans
                (number,) = np.flatnonzero((spans["start"] <= token) & (token < spans["stop"]))
                kind, role = KINDS[spans[number]["kind"]], ROLES[spans[number]["role"]]
                name = NAMES.get(kind, kind) if role == "assistant" else "other"
                opened = number and KINDS[spans[number - 1]["kind"]] == "header"
                first = opened and token == spans[number]["start"]
                if role == "assistant" and first and kind not in ("end", "header"):
                    name = "first token"
                source = dataset.manifest.sources[piece.shard.record.source].name
                found[at] = {"source": source, "class": name, "role": role}
                at += 1
    return found


@pytest.mark.parametrize("block", [24, 64])
@pytest.mark.parametrize("how", ["windows", "keep_system", "split"])
def test_each_token_is_of_the_group_that_its_span_says(weighed, how, block):
    data = open_dataset(weighed)
    batching = {"batching": "windows"} if how == "windows" else {
        "batching": "packed", "length_policy": how, "max_lost": 1.0}  # fmt: skip
    loader = GPTDataLoader(data, batch_size=4, block_size=block, use_loss_mask=True, **batching)
    groups = LossGroups([source.name for source in data.manifest.sources])
    seen = set()
    for step in range(6):
        batch, places = loader.batch_at("train", step), loader.places_at("train", step)
        where = supervised_positions(batch.targets, batch.loss_mask).numpy()
        cells = groups.of(places, batch.targets.shape[1], where)
        expected = by_token(data, places, batch.targets.shape[1])
        for place, cell in zip(where.tolist(), cells, strict=True):
            means = groups.means(groups.sums(np.array([cell]), np.ones(1), None))
            assert {by: next(iter(named)) for by, named in means.items()} == expected[place]
            seen.add(expected[place]["class"])
    assert seen >= {*CLASSES} - {"text"} - ({"reasoning"} if block == 24 else set())


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


HOW = {"block_size": 64, "grad_accumulation": 3, "dropout": 0.0, "batch_size": 2}


def whole(groups):
    total = sum(mean.loss * mean.weight for mean in groups.values())
    return total / sum(mean.weight for mean in groups.values())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batching": "packed", "normalisation": "conversation", "objective": "dft", "z_loss": 1e-3},
    ],
)
def test_groups_add_up_to_the_loss(plan, weighed, changes):
    run = open_run(plan(dataset=weighed, **HOW | changes), None, RunContext(), None, ())
    evaluate(run)
    loss = take_step(run).loss
    report = evaluate(run)
    assert report.learned.keys() == report.val.keys() == {"source", "class", "role"}
    for learned, val in zip(report.learned.values(), report.val.values(), strict=True):
        assert whole(learned) == pytest.approx(loss, rel=1e-12)
        assert whole(val) == pytest.approx(report.val_loss, rel=1e-12)
        assert all(math.isfinite(mean.loss) for mean in (learned | val).values())
    assert set(report.val["source"]) == {"tools.jsonl", "chat.jsonl"}
    assert report.learned["class"]["stop"].weight != report.val["class"]["stop"].weight
    assert evaluate(run).learned["class"] == {}, "each step is told of once"


def told(plan, dataset, ranks, **changes):
    how = HOW | {"max_iters": 4, "eval_interval": 2, "dataset": dataset} | changes
    events = train(plan(**how), ranks=ranks)
    return [[e.learned, e.val] for e in events if isinstance(e, EvalReport)]


def test_ranks_tell_the_same_as_one_process(plan, weighed):
    alone = told(partial(plan, "alone"), weighed, ALONE, reduction="tree")
    how = {"parallel": "ddp", "reduction": "tree"}
    for said in together(2, lambda ranks: told(plan, weighed, ranks, **how)):
        assert said == json.loads(json.dumps(alone))


def test_a_run_that_was_stopped_between_evaluations_tells_the_same(plan, finish, weighed):
    how = HOW | {"max_iters": 5, "eval_interval": 3, "dataset": weighed}
    straight = finish(plan("straight", **how))["evals"]
    done = []
    made = plan("stopped", **how)
    first = list(train(made, should_stop=lambda: len(done) >= 2 or done.append(0)))
    (folder,) = Path(first[-1].checkpoint.path).parent.glob("step_000002")
    assert read_state(folder).learned
    again = finish(made)["evals"]
    assert again == straight[1:]
