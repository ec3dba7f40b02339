"""An answer while it is written: text bit by bit, stop strings, and why it ended."""

import codecs
from collections.abc import Iterator, Sequence
from typing import Literal

from mypt.data.tokenizer import Tokenizer
from mypt.errors import ConfigError
from mypt.inference.generation import Allowed, OpenRow, Together, known_tokens, room_for
from mypt.inference.likelihood import Likelihood
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
        top: int | None = None,
        allowed: Allowed | None = None,
        echo: int | None = None,
    ) -> None:
        """Check that there is room, and write nothing yet.

        Args:
            model: On any device.
            tokenizer: The model's own.
            prompt: Ids from :func:`mypt.inference.chat.chat_prompt`.
            max_tokens: Longest answer; None writes until the context is full.
            stop: Texts that end the answer and do not belong to it; none of them empty.
            sampling: How each token is chosen.
            top: As for :class:`mypt.inference.generation.OpenRow`, as is ``allowed``.
            allowed: Likewise.
            echo: From which on the prompt's tokens are measured too; None measures none.

        Raises:
            ConfigError: If the prompt does not fit the model's longest context.
        """
        context = model.config.longest
        room = room_for(model, len(prompt), context if max_tokens is None else max_tokens)
        self._at_end: Ending = "length" if room == max_tokens else "context"
        self._ends = (*tokenizer.stop_ids, tokenizer.end_of_text)
        self.model, self.tokenizer, self._held = model, tokenizer, Withheld(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.row = OpenRow(prompt, room, self._ends, sampling, top=top, allowed=allowed)
        """What the model writes; it has no room once the answer is whole."""
        self.text = ""
        """What is certain so far."""
        self._echo = echo
        self.echoed: list[Likelihood] = []
        """The prompt's tokens, once they were measured."""
        self.n_prompt = len(prompt)
        """Tokens that were read."""
        self.n_tokens = 0
        """Tokens written so far, the one that ended the answer among them."""
        self.ending: Ending = self._at_end
        """Why it ended; says something once the answer is whole."""

    def __iter__(self) -> Iterator[str]:
        """Yield the answer's text as soon as nothing can take it back."""
        together = Together(self.model, known_tokens(self.model, self.tokenizer))
        self.begin(together)
        while self.row.room:
            for _, token in together.step():
                if text := self.take(token):
                    yield text

    def begin(self, together: Together) -> None:
        """Let the model read the prompt, and measure it where that is asked for."""
        if self._echo is not None and self.row.top is not None:
            self.echoed = together.read(self.row.ids, self.row.top)[self._echo :]
        together.add([self.row])

    @property
    def told(self) -> list[Likelihood]:
        """How likely each token was held, but the one that ended the answer by itself."""
        said = self.row.told
        return said[:-1] if said and said[-1].token in self._ends else said

    @property
    def newest(self) -> list[Likelihood]:
        """The same of the last token alone."""
        return [one for one in self.row.told[-1:] if one.token not in self._ends]

    def take(self, token: int) -> str:
        """Return the text that is certain with one token more; empty where there is none.

        A character's bytes may lie in several tokens, and text may turn out to be the beginning of
        a stop string.

        Raises:
            ConfigError: If what it is chosen among cannot go on.
        """
        if self.row.allowed is not None and self.row.allowed.error:
            raise ConfigError(f"the answer lost its form: {self.row.allowed.error}")
        self.n_tokens += 1
        if token in self._ends:
            self.ending = "stop"
            last = self._decoder.decode(b"", final=True)
        else:
            read = self.tokenizer.decode_bytes([token])
            last = self._decoder.decode(read, final=not self.row.room)
        certain, found = self._held.add(last)
        if found:
            self.ending = "stop"
            self.row.room = 0
        if not (found or self.row.room):
            certain += self._held.rest
        self.text += certain
        return certain

    @property
    def note(self) -> str:
        """Why the whole answer was cut off; empty where the model ended it itself."""
        if self.ending == "context":
            return f"cut off: the model's context of {self.model.config.longest} tokens is full"
        if self.ending == "length":
            return f"cut off after {self.n_tokens} tokens"
        return ""


class Withheld:
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
