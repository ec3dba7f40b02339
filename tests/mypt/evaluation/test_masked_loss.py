"""The validation loss: every supervised token once and alike, whatever the batches are."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mypt.config import GPTConfig, MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import open_dataset, prepare, tokenize
from mypt.errors import DataError, MaskError
from mypt.evaluation import token_scores
from mypt.evaluation.token_scores import TokenScores, score_tokens
from mypt.model.gpt import GPT

BLOCK = 48


def chat_lines(n):
    """Conversations whose answers are of very different lengths."""
    for i in range(n):
        yield json.dumps({"role": "user", "content": f"count to {i}"})
        yield json.dumps({"role": "assistant", "content": "so " * (i % 9) + str(i)})
        yield ""


def make(folder, weights=(1.0, 1.0), policy=MaskPolicy(), fraction=0.3):
    sources = []
    for index, (weight, n) in enumerate(zip(weights, (60, 25), strict=True)):
        raw = folder / f"raw{index}.jsonl"
        raw.write_text("\n".join(list(chat_lines(n * (index + 1)))[3 * n * index :]) + "\n")
        sources.append(Source(path=str(raw), weight=weight, format="chat"))
    config = PrepareConfig(sources=tuple(sources), tokenization="byte", val_fraction=fraction)
    out = folder / f"made_{weights[0]}_{fraction}"
    made = prepare(config, policy, out) if policy else tokenize(config, out)
    return open_dataset(made.path)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = GPTConfig(block_size=BLOCK, vocab_size=272, n_layer=2, n_head=2, n_embd=16)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def naive(model, dataset):
    """One conversation at a time, one position at a time."""
    total, count = 0.0, 0
    for shard in dataset.shards("val"):
        for row in shard.rows:
            ids = torch.tensor(shard.tokens[row["start"] : row["stop"]].astype(np.int64))
            mask = shard.mask[row["start"] : row["stop"]]
            with torch.no_grad():
                logits, _ = model(ids[None, :-1])
            for place in range(1, len(ids)):
                if mask[place]:
                    total -= float(F.log_softmax(logits[0, place - 1], -1)[ids[place]])
                    count += 1
    return total, count


def test_equals_a_walk_over_every_supervised_token(model, tmp_path):
    dataset = make(tmp_path)
    scores = score_tokens(model, dataset)
    total, count = naive(model, dataset)
    assert (len(scores.loss), scores.available) == (count, count)
    assert scores.mean == pytest.approx(total / count, rel=1e-5)
    assert scores.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)


def test_tokens_weigh_alike_not_batches():
    """Batches of 1 and 99 tokens with losses 1 and 0 give 0.01, not 0.5."""
    losses, rest = np.zeros(100, np.float32), [np.empty(0)] * 4
    losses[0] = 1.0
    assert TokenScores(losses, *rest, available=100).mean == 0.01


def test_how_rows_fall_into_batches_changes_nothing(model, tmp_path, monkeypatch):
    dataset = make(tmp_path)
    whole = score_tokens(model, dataset)
    for rows in (1, 3, 1000):
        monkeypatch.setattr(token_scores, "_ROWS", rows)
        found = score_tokens(model, dataset)
        assert len(found.loss) == len(whole.loss)
        assert found.mean == pytest.approx(whole.mean, rel=1e-5)


def test_a_source_shown_more_often_in_training_is_scored_once(model, tmp_path):
    plain = score_tokens(model, make(tmp_path, weights=(1.0, 1.0)))
    weighted = score_tokens(model, make(tmp_path, weights=(5.0, 1.0)))
    assert len(weighted.loss) == len(plain.loss)
    assert weighted.mean == pytest.approx(plain.mean, rel=1e-5)


def test_some_batches_are_a_part_of_the_split_and_say_so(model, tmp_path, monkeypatch):
    monkeypatch.setattr(token_scores, "_ROWS", 2)
    dataset = make(tmp_path)
    some = score_tokens(model, dataset, max_batches=2)
    assert 0 < len(some.loss) < some.available == len(score_tokens(model, dataset).loss)
    assert score_tokens(model, dataset, max_batches=2).mean == some.mean


def test_what_does_not_fit_the_block_shows_in_the_counts(tmp_path):
    torch.manual_seed(0)
    narrow = GPT(GPTConfig(block_size=16, vocab_size=272, n_layer=1, n_head=1, n_embd=8))
    scores = score_tokens(narrow, make(tmp_path))
    assert len(scores.loss) < scores.available


def test_without_masks_every_token_counts(model, tmp_path):
    dataset = make(tmp_path, policy=None)
    scores = score_tokens(model, dataset)
    tokens = sum(shard.record.n_tokens for shard in dataset.shards("val"))
    rows = sum(shard.record.n_rows for shard in dataset.shards("val"))
    assert scores.available == tokens
    assert len(scores.loss) == tokens - rows  # nothing comes before a row's first token


def test_dropout_is_off(tmp_path):
    torch.manual_seed(0)
    config = GPTConfig(block_size=BLOCK, vocab_size=272, n_layer=1, n_head=1, n_embd=8, dropout=0.9)
    model, dataset = GPT(config).train(), make(tmp_path)
    assert score_tokens(model, dataset).mean == score_tokens(model, dataset).mean


def test_an_empty_validation_split_is_refused(model, tmp_path):
    with pytest.raises(DataError, match="no rows in its split 'val'"):
        score_tokens(model, make(tmp_path, fraction=0.0))


def test_a_missing_mask_is_refused_not_skipped(model, tmp_path):
    dataset = make(tmp_path)
    (dataset.path / dataset.shards("val")[0].record.mask.name).unlink()
    with pytest.raises((MaskError, DataError), match="mask"):
        score_tokens(model, open_dataset(dataset.path, verify=False))
