"""Generation: the same tokens with and without a cache, alone and in a batch, up to the edge."""

import pytest
import torch

from mypt.config import GPTConfig
from mypt.data.tokenizer import load_tokenizer
from mypt.errors import ConfigError
from mypt.inference.chat import answer_prompts, prompt_of
from mypt.inference.generation import (
    OpenRow,
    Together,
    generate,
    generate_batch,
    known_tokens,
    stream,
)
from mypt.inference.sampling import Sampling
from mypt.model.gpt import GPT

BLOCK = 24
HOT = Sampling(temperature=1.0, seed=7)


@pytest.fixture
def model() -> GPT:
    """A GPT whose untrained logits differ enough for argmax to be no toss-up."""
    torch.manual_seed(3)
    config = GPTConfig(
        block_size=BLOCK, vocab_size=64, n_layer=2, n_head=2, n_embd=32, bias=True, dropout=0.5
    )
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.dim() == 2 else None
    return model


def naive_greedy(model: GPT, ids: list[int], n: int) -> list[int]:
    """Read everything again for each token."""
    model.eval()
    new: list[int] = []
    for _ in range(n):
        with torch.no_grad():
            logits, _ = model(torch.tensor([ids + new]))
        new.append(int(logits[0, -1].argmax()))
    return new


def test_greedy_equals_reading_everything_again_for_each_token(model):
    for prompt in ([5], [1, 2, 3], list(range(10))):
        assert generate(model, prompt, max_tokens=9) == naive_greedy(model, prompt, 9)
    assert generate(model, torch.tensor([1, 2, 3]), max_tokens=9) == naive_greedy(
        model, [1, 2, 3], 9
    )


@pytest.mark.parametrize("sampling", [Sampling(), HOT])
def test_a_batch_of_different_lengths_writes_what_each_prompt_gives_alone(model, sampling):
    prompts = [list(range(1, n + 1)) for n in (11, 3, 24, 7, 1, 3)] * 12  # more than one load
    alone = [list(stream(model, p, max_tokens=8, sampling=sampling)) for p in prompts]
    assert generate_batch(model, prompts, max_tokens=8, sampling=sampling) == alone


@pytest.mark.parametrize(
    "sampling", [Sampling(), HOT, HOT.model_copy(update={"repetition_penalty": 1.7})]
)
def test_rows_that_come_and_go_write_what_each_gives_alone(model, sampling):
    prompts = [[1, 2, 3], [9], list(range(15)), [4, 5], list(range(20)), [7] * 6]
    alone = [
        list(stream(model, p, max_tokens=n + 2, sampling=sampling)) for n, p in enumerate(prompts)
    ]
    rows = [OpenRow(p, len(one), sampling=sampling) for p, one in zip(prompts, alone, strict=True)]
    together, written = Together(model), {id(row): [] for row in rows}
    sizes, waiting = [], list(rows)
    while waiting or together.rows:
        if waiting:  # one more before each step
            together.add([waiting.pop()])
        sizes.append(len(together.rows))
        for row, token in together.step():
            written[id(row)].append(token)
        together.tidy()
        assert together.size == len(together.rows)
    assert [written[id(row)] for row in rows] == alone
    assert max(sizes) >= 4


def test_a_row_that_stops_early_does_not_disturb_the_others(model):
    prompts = [[1, 2, 3], [9], list(range(20))]
    free = [generate(model, p, max_tokens=12) for p in prompts]
    stop = free[0][1]
    rows = generate_batch(model, prompts, max_tokens=12, stop_ids=(stop,))
    for row, alone in zip(rows, free, strict=True):
        end = alone.index(stop) + 1 if stop in alone else len(alone)
        assert row == alone[:end]
    assert rows[0][-1] == stop


def test_a_full_context_ends_the_row_at_the_last_place_the_model_knows(model):
    prompt = list(range(1, BLOCK - 3))  # 20 tokens: four more places, and one never read
    written = generate(model, prompt, max_tokens=1000)
    assert len(written) == BLOCK - len(prompt) + 1
    assert written == naive_greedy(model, prompt, len(written))
    assert len(generate(model, list(range(BLOCK)), max_tokens=5)) == 1


def test_a_prompt_that_is_empty_or_too_long_is_refused(model):
    with pytest.raises(ConfigError, match=r"the prompt is empty"):
        generate(model, [], max_tokens=5)
    with pytest.raises(ConfigError, match=r"has 25 tokens, the model reads at most 24"):
        generate(model, [1] * 25, max_tokens=5)


def test_nothing_asked_is_nothing_written(model):
    assert generate(model, [1], max_tokens=0) == []
    assert generate_batch(model, [], max_tokens=4) == []


def test_the_seed_decides_and_another_seed_decides_otherwise(model):
    drawn = [generate(model, [1, 2], max_tokens=20, temperature=1.5, seed=s) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_dropout_is_off_while_writing_and_as_before_afterwards(model):
    model.train()
    written = generate(model, [1, 2, 3], max_tokens=9)
    assert model.training
    assert written == naive_greedy(model, [1, 2, 3], 9)


def test_global_randomness_is_left_alone(model):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    generate(model, [1, 2], max_tokens=5, temperature=1.0)
    assert torch.equal(torch.rand(1), expected)


def test_a_stream_gives_each_token_as_it_is_made(model):
    written = stream(model, [1, 2, 3], max_tokens=9)
    first = next(written)
    assert [first, *written] == generate(model, [1, 2, 3], max_tokens=9)


def test_ids_that_are_no_tokens_are_never_written():
    torch.manual_seed(0)
    tokenizer = load_tokenizer("byte")
    wide = GPT(GPTConfig(block_size=64, vocab_size=2000, n_layer=1, n_head=1, n_embd=8))
    known = known_tokens(wide, tokenizer)
    assert known.sum() == tokenizer.n_vocab
    ids = generate_batch(wide, [[1]], max_tokens=60, known=known, sampling=HOT)[0]
    assert max(ids) < tokenizer.n_vocab
    assert max(generate(wide, [1], max_tokens=60, temperature=1.0, seed=7)) >= tokenizer.n_vocab


@pytest.mark.parametrize("text", ["ab", ""])
def test_text_goes_on_to_its_end_and_nothing_follows_an_end(text):
    tokenizer = load_tokenizer("byte")
    end = tokenizer.end_of_text
    torch.manual_seed(5)
    model = GPT(GPTConfig(block_size=400, vocab_size=272, n_layer=1, n_head=1, n_embd=8))
    known = known_tokens(model, tokenizer)
    fed = [*text.encode()] or [end]
    whole = list(stream(model, fed, max_tokens=390, known=known, sampling=HOT))
    assert end in whole
    prompts = [prompt_of(tokenizer, text, "plain")]
    (got,) = answer_prompts(model, tokenizer, prompts, form="plain", max_tokens=390, sampling=HOT)
    assert got.text == tokenizer.decode(whole[: whole.index(end)])


def test_a_base_that_was_tuned_on_short_rows_reads_and_writes_all_that_it_holds(model):
    held = model.state_dict()
    tuned = GPT(model.config.model_copy(update={"block_size": 8, "longest_context": BLOCK}))
    tuned.load_state_dict(held)
    prompt = list(range(1, BLOCK - 3))
    assert generate(tuned, prompt, max_tokens=99) == generate(model, prompt, max_tokens=99)
    with pytest.raises(ConfigError, match=r"the model reads at most 24 .its longest context"):
        generate(tuned, [1] * 25, max_tokens=5)
