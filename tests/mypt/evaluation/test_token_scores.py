"""Token scores against one conversation at a time, and what is made of them against arithmetic."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from mypt.config import GPTConfig, MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import open_dataset, prepare
from mypt.errors import ConfigError
from mypt.evaluation.breakdown import describe, difference
from mypt.evaluation.token_scores import PLACES, TokenScores, score_tokens
from mypt.model.gpt import GPT
from mypt.training.batches.groups import CLASSES

TOOL = {"name": "add", "arguments": {"a": 1}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    talks = [
        [
            {"role": "user", "content": f"q{n}"},
            {"role": "assistant", "content": f"größer {n}"},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "reasoning_content": "hm", "content": "so", "tool_calls": [TOOL]},
        ]
        for n in range(12)
    ]
    raw = folder / "raw.jsonl"
    raw.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    config = PrepareConfig(
        sources=(Source(path=str(raw), name="talks"),),
        tokenization="byte",
        template="chatml",
        val_fraction=0.4,
    )
    return open_dataset(prepare(config, MaskPolicy(), folder / "made").path)


def model_of(dataset, seed=0):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(block_size=200, vocab_size=280, n_layer=1, n_head=2, n_embd=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    assert dataset.tokenizer.n_vocab <= 280
    return model


def naive(model, dataset):
    """Return (token, loss, hit) of every supervised token, conversation by conversation."""
    for shard in dataset.shards("val"):
        for row in shard.rows:
            ids = torch.tensor(shard.tokens[row["start"] : row["stop"]].astype(np.int64))
            with torch.no_grad():
                sure = torch.log_softmax(model(ids[None, :-1])[0][0], dim=-1)
            for at in np.flatnonzero(shard.mask[row["start"] : row["stop"]]).tolist():
                token = int(ids[at])
                yield token, -float(sure[at - 1, token]), int(sure[at - 1].argmax()) == token


def test_every_token_is_scored_once_as_alone(dataset):
    model = model_of(dataset).eval()
    scores = score_tokens(model, dataset)
    found = sorted(zip(scores.places["token"].tolist(), scores.loss.tolist(), strict=True))
    expected = sorted((token, loss) for token, loss, _ in naive(model, dataset))
    assert [token for token, _ in found] == [token for token, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], abs=1e-4)
    assert scores.hit.sum() == sum(hit for _, _, hit in naive(model, dataset))
    assert len(scores.loss) == scores.available


def test_classes_turns_and_bytes_are_what_the_spans_say(dataset):
    scores = score_tokens(model_of(dataset), dataset)
    n = len(set(scores.places["row"].tolist()))
    classes = [CLASSES[index] for index in scores.places["klass"].tolist()]
    assert classes.count("stop") == classes.count("first token") == 2 * n
    assert {"reasoning", "tool call", "answer content"} <= set(classes) <= set(CLASSES[:5])
    assert set(scores.places["turn"].tolist()) == {1, 3}
    text = scores.places["n_bytes"][scores.places["turn"] == 1].sum()
    assert text == sum(
        len(dataset.tokenizer.decode(shard.tokens[s["start"] : s["stop"]]).encode())
        for shard in dataset.shards("val")
        for s in shard.spans
        if s["message"] == 1 and s["kind"] == 1
    )


def test_groups_weigh_every_token_the_same(dataset):
    """Pain 25: a class of few tokens that is always right is not half of the accuracy."""
    scores = score_tokens(model_of(dataset), dataset)
    stops = scores.places["token"] == dataset.tokenizer.stop_id
    scores = dataclasses.replace(scores, hit=stops)
    report = describe(scores, dataset)
    assert report.all.loss == pytest.approx(scores.loss.mean())
    assert report.all.accuracy == pytest.approx(stops.sum() / len(stops))
    assert report.groups["class"]["stop"].accuracy == 1.0
    for members in report.groups.values():
        total = sum(group.loss * group.tokens for group in members.values())
        assert total / report.all.tokens == pytest.approx(report.all.loss)
        right = sum(group.accuracy * group.tokens for group in members.values())
        assert right == pytest.approx(stops.sum())
        assert sum(group.tokens for group in members.values()) == report.all.tokens
    n_bytes = scores.places["n_bytes"].sum()
    assert report.bits_per_byte == pytest.approx(scores.loss.sum() / math.log(2) / n_bytes)
    assert report.stop_recall == pytest.approx(scores.said_stop[stops].mean())
    assert report.false_stops == pytest.approx(scores.said_stop[~stops].mean())
    assert sum(found.tokens for found in report.calibration) == report.all.tokens
    assert report.groups["source"].keys() == {"talks"}


def by_hand(loss, row):
    places = np.zeros(len(loss), PLACES)
    places["row"] = row
    nothing = np.zeros(len(loss), bool)
    return TokenScores(np.array(loss, np.float32), nothing, nothing, np.zeros(len(loss)), places, 9)


def test_a_difference_is_paired_and_weighs_tokens():
    random = np.random.default_rng(1)
    hard, row = random.normal(5, 3, 400), np.repeat(np.arange(100), 4)
    before = by_hand(hard, row)
    better = difference(before, by_hand(hard - 0.1 + random.normal(0, 0.05, 400), row))
    assert better.change == pytest.approx(-0.1, abs=0.02)
    assert better.low < better.change < better.high < 0  # far less than what rows differ by
    same = difference(before, before)
    assert (same.change, same.low, same.high, same.rows) == (0, 0, 0, 100)
    with pytest.raises(ConfigError, match="different tokens"):
        difference(before, by_hand(hard[:4], row[:4]))
