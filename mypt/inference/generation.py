"""Token by token from a model: streamed, many prompts at once, or as text.

A model holds the places of its longest context and no more. When a row has filled them it ends
there, as it does at ``max_tokens``; nothing slides out of its sight unnoticed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from mypt.data.tokenizer import Tokenizer
from mypt.errors import ConfigError
from mypt.inference.likelihood import Likelihood, likelihood, prompt_likelihood
from mypt.inference.sampling import GREEDY, Penalty, Sampler, Sampling
from mypt.model.cache import KVCache
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


class Allowed(Protocol):
    """What may be written next, if not everything may."""

    error: str
    """Why the answer fails; empty while it does not."""

    def mask(self) -> Tensor:
        """Return (V,) bool, at least one of them true."""

    def add(self, token: int) -> None:
        """Note what was written."""


class OpenRow:
    """One prompt and what follows it."""

    def __init__(
        self,
        ids: Prompt,
        room: int,
        stop_ids: Sequence[int] = (),
        sampling: Sampling = GREEDY,
        *,
        top: int | None = None,
        allowed: Allowed | None = None,
    ) -> None:
        """Write nothing yet.

        Args:
            ids: The prompt.
            room: How many tokens may follow, as :func:`room_for` says.
            stop_ids: Tokens that end the writing.
            sampling: How each token is chosen.
            top: How many of the likeliest tokens are told beside each; None measures none.
            allowed: What each token is chosen among.
        """
        self.ids: list[int] = torch.as_tensor(ids, dtype=torch.int64).tolist()
        self.room, self._stops = room, stop_ids
        self._sampler = Sampler(sampling) if sampling.temperature else None
        self.penalty = Penalty(self.ids, stop_ids, sampling) if sampling.bends else None
        self.top, self.allowed = top, allowed
        self.told: list[Likelihood] = []
        """How likely the model held each token that was written, where ``top`` asks for it."""

    def bend(self, logits: Tensor) -> Tensor:
        """Return (V,) logits as they decide what follows."""
        if self.penalty is not None:
            logits = self.penalty.apply(logits)
        if self.allowed is not None:
            logits = logits.masked_fill(~self.allowed.mask(), -torch.inf)
        return logits

    def take(
        self,
        logits: Tensor,
        likeliest: int,
        believed: Tensor | None = None,
        known: Tensor | None = None,
    ) -> int:
        """Return the token that follows, and count it.

        Args:
            logits: (V,), bent already.
            likeliest: Where they are greatest.
            believed: (V,), before they were bent.
            known: As for :func:`mypt.inference.likelihood.likelihood`.
        """
        token = likeliest if self._sampler is None else self._sampler.choose(logits)
        if self.penalty is not None:
            self.penalty.add(token)
        if self.allowed is not None:
            self.allowed.add(token)
        if believed is not None and self.top is not None:
            self.told += likelihood(believed[None], [token], self.top, known)
        self.room = 0 if token in self._stops else self.room - 1
        return token


class Together:
    """Rows that a model writes a token at a time; they may come and go between two steps."""

    def __init__(self, model: GPT, known: Tensor | None = None) -> None:
        """Begin without rows.

        Args:
            model: On any device.
            known: (V,) bool, tokens that may be written; None: all.
        """
        self._model, self._known = model, known
        self._rows: list[OpenRow] = []
        self._cache: KVCache | None = None
        self._logits = self._lengths = torch.empty(0)

    @property
    def rows(self) -> list[OpenRow]:
        """The rows that go on, in the order in which they came."""
        return [row for row in self._rows if row.room]

    def add(self, rows: Sequence[OpenRow], longest: int | None = None) -> None:
        """Read the prompts of new rows, which are written from the next step on.

        Args:
            rows: Those without room are left out.
            longest: Tokens that the longest of them may have at its end; None: the model's most.
        """
        rows = [row for row in rows if row.room]
        if not rows:
            return
        device = self._model.lm_head.weight.device
        lengths = torch.tensor([len(row.ids) for row in rows], device=device)
        width = int(lengths.max())
        ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows], device=device)
        cache = self._model.new_cache(len(rows), longest or self._model.config.longest)
        places = torch.arange(width, device=device).expand_as(ids)
        with _answering(self._model):
            logits = self._model.step(ids, cache, places, last=lengths - 1)
        self.tidy()
        if self._cache is None:
            self._rows, self._cache, self._logits, self._lengths = rows, cache, logits, lengths
        else:
            self._cache.join(cache)
            self._rows = [*self._rows, *rows]
            self._logits = torch.cat([self._logits, logits])
            self._lengths = torch.cat([self._lengths, lengths])

    def read(self, ids: Sequence[int], top: int) -> list[Likelihood]:
        """Return how likely each token of a text is behind those before it."""
        with _answering(self._model):
            return prompt_likelihood(self._model, ids, top, self._known)

    @property
    def size(self) -> int:
        """Rows that each step reads, those that ended among them."""
        return len(self._rows)

    def tidy(self) -> None:
        """Forget rows that ended; until then each step reads them too."""
        going = [n for n, row in enumerate(self._rows) if row.room]
        if not going:
            self._rows, self._cache = [], None
        elif len(going) < len(self._rows) and self._cache is not None:
            self._cache.keep(going)
            self._rows = [self._rows[n] for n in going]
            self._logits, self._lengths = self._logits[going], self._lengths[going]

    def step(
        self, failed: Callable[[OpenRow, Exception], None] | None = None
    ) -> Iterator[tuple[OpenRow, int]]:
        """Yield each row that goes on and its next token, then read these tokens.

        Args:
            failed: Called with a row that ends because no token could be chosen for it, and why;
                None: the error is raised, and no row goes on.
        """
        if not self.rows:
            return
        logits = self._logits
        pairs = enumerate(self._rows)
        believed = {n: logits[n].clone() for n, row in pairs if row.room and row.top is not None}
        for n, row in enumerate(self._rows):
            if row.room:
                with _alone(row, failed):
                    logits[n] = row.bend(logits[n])
        if self._known is not None:
            logits.masked_fill_(~self._known, -torch.inf)
        newest = logits.argmax(dim=-1).tolist()  # one call for all rows
        for n, row in enumerate(self._rows):
            if row.room:
                with _alone(row, failed) as chosen:
                    newest[n] = row.take(logits[n], newest[n], believed.get(n), self._known)
                    chosen.append(newest[n])
                for token in chosen:
                    yield row, token
        if self.rows and self._cache is not None:
            ids = torch.tensor(newest, device=self._lengths.device)[:, None]
            places = self._lengths.clamp(max=self._cache.max_length - 1)[:, None]
            with _answering(self._model):
                self._logits = self._model.step(ids, self._cache, places)
            self._lengths = self._lengths + 1


def _write(
    model: GPT,
    prompts: Sequence[Prompt],
    max_tokens: int,
    stop_ids: Sequence[int],
    known: Tensor | None,
    sampling: Sampling,
) -> Iterator[tuple[int, int]]:
    """Yield (row, new token) step after step; a row that ended yields nothing more."""
    rows = [
        OpenRow(ids, room_for(model, len(ids), max_tokens), stop_ids, sampling) for ids in prompts
    ]
    number = {id(row): n for n, row in enumerate(rows)}
    together = Together(model, known)
    together.add(rows, min(max(map(len, prompts)) + max_tokens, model.config.longest))
    while together.rows:
        for row, token in together.step():
            yield number[id(row)], token


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
def _alone(
    row: OpenRow, failed: Callable[[OpenRow, Exception], None] | None
) -> Iterator[list[int]]:
    """End a row alone if the block fails; its list is for what the block chose."""
    try:
        yield []
    except Exception as error:
        if failed is None:
            raise
        row.room = 0
        failed(row, error)


@contextmanager
def _answering(model: GPT) -> Iterator[None]:
    """Turn dropout off inside the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
