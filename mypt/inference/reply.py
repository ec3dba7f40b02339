"""An answer while it is written: text bit by bit, stop strings, and why it ended."""

import codecs
from collections.abc import Iterator, Sequence
from typing import Literal

from mypt.data.tokenizer import Tokenizer
from mypt.inference.generation import known_tokens, room_for, stream
from mypt.inference.sampling import GREEDY, Sampling
from mypt.model.gpt import GPT

Ending = Literal["stop", "length", "context"]
"""The model or a stop string ended it, ``max_tokens`` did, or the model's context is full."""


class Reply:
    """The answer to a prompt; iterating over it, once, writes it and yields its text."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        sampling: Sampling = GREEDY,
    ) -> None:
        """Check that there is room, and write nothing yet.

        Args:
            model: On any device.
            tokenizer: The model's own.
            prompt: Ids from :func:`mypt.inference.chat.chat_prompt`.
            max_tokens: Longest answer; None writes until the context is full.
            stop: Texts that end the answer and do not belong to it; none of them empty.
            sampling: How each token is chosen.

        Raises:
            ConfigError: If the prompt does not fit the model's longest context.
        """
        context = model.config.longest
        self._room = room_for(model, len(prompt), context if max_tokens is None else max_tokens)
        self._at_end: Ending = "length" if self._room == max_tokens else "context"
        self._model, self._tokenizer, self._prompt = model, tokenizer, prompt
        self._sampling, self._held = sampling, _Held(stop)
        self.n_prompt = len(prompt)
        """Tokens that were read."""
        self.n_tokens = 0
        """Tokens written so far, the one that ended the answer among them."""
        self.ending: Ending = self._at_end
        """Why it ended; says something once the answer is whole."""

    def __iter__(self) -> Iterator[str]:
        """Yield the answer's text as soon as nothing can take it back."""
        for text in self._texts():
            certain, found = self._held.add(text)
            if certain:
                yield certain
            if found:
                self.ending = "stop"
                return
        if rest := self._held.rest:
            yield rest

    @property
    def note(self) -> str:
        """Why the whole answer was cut off; empty where the model ended it itself."""
        if self.ending == "context":
            return f"cut off: the model's context of {self._model.config.longest} tokens is full"
        if self.ending == "length":
            return f"cut off after {self.n_tokens} tokens"
        return ""

    def _texts(self) -> Iterator[str]:
        """Yield what each token adds; a character's bytes may lie in several tokens."""
        ends = (*self._tokenizer.stop_ids, self._tokenizer.end_of_text)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        written = stream(
            self._model,
            self._prompt,
            max_tokens=self._room,
            stop_ids=ends,
            known=known_tokens(self._model, self._tokenizer),
            sampling=self._sampling,
        )
        for token in written:
            self.n_tokens += 1
            if token in ends:
                self.ending = "stop"
                break
            yield decoder.decode(self._tokenizer.decode_bytes([token]))
        yield decoder.decode(b"", final=True)


class _Held:
    """Keeps back text that may turn out to be the beginning of a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self.rest = ""
        """What is kept back."""

    def add(self, text: str) -> tuple[str, bool]:
        """Return what is certain now, and whether a stop string was found behind it."""
        text = self.rest + text
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            return text[: min(found)], True
        kept = max(
            (
                n
                for stop in self._stop
                for n in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:n])
            ),
            default=0,
        )
        self.rest = text[len(text) - kept :]
        return text[: len(text) - kept], False
