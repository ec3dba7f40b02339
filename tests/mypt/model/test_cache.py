"""Reading each token once must give what reading everything again gives."""

import copy
import weakref

import pytest
import torch

from mypt.config import GPTConfig
from mypt.inference.generation import generate
from mypt.model.cache import KVCache
from mypt.model.gpt import GPT
from mypt.training.optim import narrow

CONFIG = GPTConfig(block_size=24, vocab_size=61, n_layer=2, n_head=2, n_embd=16)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    with torch.no_grad():  # a larger spread, so that greedy choices are far apart
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def greedy_uncached(model, prompt, n):
    row = list(prompt)
    for _ in range(n):
        row.append(int(model(torch.tensor([row]))[0][0, -1].argmax()))
    return row[len(prompt) :]


def greedy_cached(model, prompts, n):
    """Prompts of any lengths in one batch: one ragged step, then single tokens."""
    lengths = torch.tensor([len(p) for p in prompts])
    width = int(lengths.max())
    ids = torch.tensor([[*p, *[0] * (width - len(p))] for p in prompts])
    cache = model.new_cache(len(prompts), width + n)
    positions = torch.arange(width).expand_as(ids)
    logits = model.step(ids, cache, positions, last=lengths - 1)
    found = [logits.argmax(-1)]
    for i in range(n - 1):
        logits = model.step(found[-1][:, None], cache, (lengths + i)[:, None])
        found.append(logits.argmax(-1))
    return torch.stack(found, dim=1).tolist()


def test_cached_logits_agree_with_uncached_ones_token_by_token(model):
    row = torch.randint(61, (3, 20), generator=torch.Generator().manual_seed(1))
    expected = model(row)[0]
    cache = model.new_cache(3, 20)
    torch.testing.assert_close(model.step(row[:, :7], cache, torch.arange(7).expand(3, 7)),
                               expected[:, 6])  # fmt: skip
    for t in range(7, 20):
        got = model.step(row[:, t : t + 1], cache, torch.full((3, 1), t))
        torch.testing.assert_close(got, expected[:, t], rtol=1e-5, atol=1e-5)


def test_greedy_tokens_are_those_of_the_uncached_path(model):
    prompt = [5, 9, 13]
    assert greedy_cached(model, [prompt], 20)[0] == greedy_uncached(model, prompt, 20)


def test_prompts_of_different_lengths_answer_as_one_by_one(model):
    """Pain 16: lengths 3, 11 and 1 in one batch."""
    prompts = [[5, 9, 13], list(range(30, 41)), [2]]
    together = greedy_cached(model, prompts, 12)
    assert together == [greedy_uncached(model, prompt, 12) for prompt in prompts]
    assert len({tuple(answer) for answer in together}) == 3


def test_padding_of_a_ragged_prompt_is_never_seen(model):
    lengths = torch.tensor([2, 5])
    answers = []
    for pad in (0, 60):
        ids = torch.tensor([[7, 8, pad, pad, pad], [1, 2, 3, 4, 5]])
        cache = model.new_cache(2, 9)
        model.step(ids, cache, torch.arange(5).expand(2, 5), last=lengths - 1)
        answers.append(model.step(torch.tensor([[9], [6]]), cache, lengths[:, None]))
    assert torch.equal(*answers)


def test_a_position_outside_the_cache_is_refused(model):
    cache = model.new_cache(1, 4)
    with pytest.raises(ValueError, match="do not fit a cache of 4 tokens"):
        model.step(torch.tensor([[1]]), cache, torch.tensor([[4]]))
    with pytest.raises(ValueError, match="25 tokens does not fit block_size 24"):
        KVCache(CONFIG, 1, 25)


def test_reading_into_the_cache_builds_no_graph(model):
    cache = model.new_cache(1, 4)
    assert not model.step(torch.tensor([[1]]), cache, torch.tensor([[0]])).requires_grad


def turned(model):
    """The head as a row by itself reads it."""
    model.step(torch.tensor([[1]]), model.new_cache(1, 4), torch.tensor([[0]]))
    return model._turned._made[2]


def test_the_head_is_turned_once_a_model_and_anew_where_it_changed(model):
    first, again = (turned(model) for _ in range(2))
    assert again is first
    assert torch.equal(first, model.lm_head.weight.T)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert torch.equal(turned(model), 2 * first)
    model.lm_head.weight.data = torch.ones_like(model.lm_head.weight)
    assert (turned(model) == 1).all()
    alone = copy.deepcopy(model)
    model.lm_head.weight.data.zero_()
    assert (turned(alone) == 1).all()


def test_a_model_that_is_trained_keeps_no_turned_head(model):
    kept = weakref.ref(turned(model))
    model.eval()
    assert kept() is not None
    model.train()
    assert kept() is None


def test_a_model_in_bfloat16_keeps_keys_and_values_so_and_answers_alike(model):
    prompt = [5, 9, 13]
    expected = model(torch.tensor([prompt]))[0][0, -1]
    low = narrow(model, "bfloat16")
    for rows in (1, 2):
        cache = low.new_cache(rows, 23)
        assert {part.dtype for part in (*cache._keys, *cache._values)} == {torch.bfloat16}
        ids = torch.tensor([prompt] * rows)
        found = low.step(ids, cache, torch.arange(3).expand(rows, 3))
        torch.testing.assert_close(found[-1].float(), expected, rtol=0.05, atol=0.05)
    assert len(generate(low, prompt, max_tokens=5)) == 5


def test_memory_is_taken_as_rows_get_longer_and_no_bit_changes(model, monkeypatch):
    ids = torch.randint(61, (2, 23), generator=torch.Generator().manual_seed(1))
    found = {}
    for first in (24, 2):
        monkeypatch.setattr("mypt.model.cache._FIRST", first)
        cache = model.new_cache(2, 24)
        room, logits = [cache._keys[0].shape[1]], []
        for start, stop in ((0, 3), *((t, t + 1) for t in range(3, 23))):
            places = torch.arange(start, stop).expand(2, -1)
            logits.append(model.step(ids[:, start:stop], cache, places))
            room.append(cache._keys[0].shape[1])
        found[first] = torch.stack(logits)
        assert sorted(set(room)) == ([24] if first == 24 else [2, 4, 8, 16, 24])
    assert torch.equal(found[24], found[2])
