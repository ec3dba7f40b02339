"""Token by token from a model: streamed, many prompts at once, or as text.

A model holds the places of its longest context and no more. When a row has filled them it ends
there, as it does at ``max_tokens``; nothing slides out of its sight unnoticed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mypt.data.tokenizer import Tokenizer
from mypt.errors import ConfigError
from mypt.inference.sampling import GREEDY, Penalty, Sampler, Sampling
from mypt.model.gpt import GPT
from mypt.parsing import parse_config

Prompt = Sequence[int] | Tensor
ROWS_AT_ONCE = 64


def generate(
    model: GPT,
    ids: Prompt,
    *,
    max_tokens: int,
    stop_ids: Sequence[int] = (),
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
) -> list[int]:
    """Return the tokens that the model writes after ``ids``.

    Args:
        model: On any device.
        ids: The prompt, at least one token and at most the longest context.
        max_tokens: The most to write.
        stop_ids: Tokens that end the writing.
        temperature: As the other choices, see :class:`mypt.inference.sampling.Sampling`.
        top_k: Likewise.
        top_p: Likewise.
        min_p: Likewise.
        repetition_penalty: Likewise.
        seed: Likewise.

    Returns:
        New tokens only. The last one is in ``stop_ids`` if the model stopped by itself; else
        ``max_tokens`` or the longest context was reached.

    Raises:
        ConfigError: If the prompt is empty or too long, or a choice out of range.
    """
    sampling = sampling_of(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed,
    )  # fmt: skip
    return list(stream(model, ids, max_tokens=max_tokens, stop_ids=stop_ids, sampling=sampling))


def generate_batch(
    model: GPT,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    stop_ids: Sequence[int] = (),
    known: Tensor | None = None,
    sampling: Sampling = GREEDY,
) -> list[list[int]]:
    """Return for each prompt what :func:`stream` would yield for it alone.

    Prompts may be of different lengths; similar ones are read together, 64 at a time.

    Raises:
        ConfigError: As :func:`generate`.
    """
    written: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(prompts), ROWS_AT_ONCE):
        chosen = by_length[start : start + ROWS_AT_ONCE]
        steps = _write(model, [prompts[i] for i in chosen], max_tokens, stop_ids, known, sampling)
        for row, token in steps:
            written[chosen[row]].append(token)
    return written


def stream(
    model: GPT,
    ids: Prompt,
    *,
    max_tokens: int,
    stop_ids: Sequence[int] = (),
    known: Tensor | None = None,
    sampling: Sampling = GREEDY,
) -> Iterator[int]:
    """Yield the tokens of :func:`generate` as they are made.

    Args:
        model: As in :func:`generate`, as are the prompt, ``max_tokens`` and ``stop_ids``.
        ids: The prompt.
        max_tokens: The most to write.
        stop_ids: Tokens that end the writing.
        known: (V,) bool, tokens that may be written; see :func:`known_tokens`. None: all.
        sampling: How each token is chosen.

    Raises:
        ConfigError: As :func:`generate`.
    """
    for _, token in _write(model, [ids], max_tokens, stop_ids, known, sampling):
        yield token


def text_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text to go on with, begun as the base begins its documents.

    Where there is nothing to read, they are those of what ends a text before it.
    """
    ids: list[int] = [*tokenizer.begin_of_text, *tokenizer.encode(text).tolist()]
    return ids or [tokenizer.end_of_text]


def known_tokens(model: GPT, tokenizer: Tokenizer) -> Tensor:
    """Return (V,) bool: which of the model's ids stand for a token.

    A model may have more rows than its tokenizer has tokens, and ids have gaps; an untrained
    model would write some that nothing can decode.
    """
    known = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    known[tokenizer.vocabulary.ids] = True
    known[list(tokenizer.special_tokens.values())] = True
    return known.to(model.lm_head.weight.device)


def sampling_of(**choices: float | None) -> Sampling:
    """Return ``choices`` as a :class:`Sampling`.

    Raises:
        ConfigError: If one is out of range.
    """
    return parse_config(choices, Sampling, "sampling")


def _write(
    model: GPT,
    prompts: Sequence[Prompt],
    max_tokens: int,
    stop_ids: Sequence[int],
    known: Tensor | None,
    sampling: Sampling,
) -> Iterator[tuple[int, int]]:
    """Yield (row, new token) step after step; a row that ended yields nothing more."""
    rows = [torch.as_tensor(ids, dtype=torch.int64).tolist() for ids in prompts]
    room = [room_for(model, len(row), max_tokens) for row in rows]
    going = [index for index, tokens in enumerate(room) if tokens > 0]
    if not going:
        return
    samplers = [Sampler(sampling) for _ in rows]
    lengths = torch.tensor([len(row) for row in rows], device=model.lm_head.weight.device)
    width = int(lengths.max())
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=lengths.device)
    cache = model.new_cache(len(rows), min(width + max_tokens, model.config.longest))
    places = torch.arange(width, device=lengths.device).expand_as(ids)
    with _answering(model):
        logits = model.step(ids, cache, places, last=lengths - 1)
        factor = sampling.repetition_penalty
        penalty = Penalty(rows, stop_ids, factor, logits) if factor != 1 else None
        while going:
            if penalty:
                logits = penalty.apply(logits)
            if known is not None:
                logits.masked_fill_(~known, -torch.inf)
            newest = logits.argmax(dim=-1).tolist()  # one call for all rows
            for row in going:
                if sampling.temperature:
                    newest[row] = samplers[row].choose(logits[row])
                room[row] -= 1
                yield row, newest[row]
            going = [row for row in going if room[row] and newest[row] not in stop_ids]
            if going:
                if penalty:
                    penalty.add(newest)
                ids = torch.tensor(newest, device=lengths.device)[:, None]
                places = lengths.clamp(max=cache.max_length - 1)[:, None]
                logits = model.step(ids, cache, places)
                lengths = lengths + 1


def room_for(model: GPT, length: int, max_tokens: int) -> int:
    """Return how many tokens may follow a prompt; the last of them is never read itself.

    Args:
        model: Whose longest context bounds them.
        length: Tokens of the prompt.
        max_tokens: The most that are wanted.

    Raises:
        ConfigError: If the prompt is empty or too long, or ``max_tokens`` negative.
    """
    longest = model.config.longest
    if not length:
        raise ConfigError("the prompt is empty; a model goes on from at least one token")
    if max_tokens < 0:
        raise ConfigError(f"max_tokens {max_tokens}: expected 0 or more")
    if length > longest:
        raise ConfigError(
            f"the prompt has {length} tokens, the model reads at most {longest}"
            " (its longest context); shorten it or begin a new conversation"
        )
    return min(max_tokens, longest - length + 1)


@contextmanager
def _answering(model: GPT) -> Iterator[None]:
    """Turn dropout off inside the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
