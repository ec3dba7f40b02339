"""A conversation between a person and a model, turn by turn."""

import json
from collections.abc import Iterator
from pathlib import Path

from mypt import files
from mypt.config import Role
from mypt.data.conversations import Message, Part
from mypt.data.tokenizer import Tokenizer
from mypt.errors import ConfigError
from mypt.inference.chat import chat_prompt
from mypt.inference.reply import Reply
from mypt.inference.sampling import GREEDY, Sampling
from mypt.model.gpt import GPT


class Session:
    """What was said so far; the model reads all of it at each turn."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        sampling: Sampling = GREEDY,
    ) -> None:
        """Begin with a system message, or with nothing.

        Args:
            model: On any device.
            tokenizer: The model's own.
            system: What stands before the first turn.
            max_tokens: Longest answer; None writes until the context is full.
            sampling: How each token is chosen; each turn draws with a seed of its own.
        """
        self._model, self._tokenizer = model, tokenizer
        self._max_tokens, self._sampling = max_tokens, sampling
        self._beginning = [_plain("system", system)] if system else []
        self.messages: list[Message] = list(self._beginning)
        """The conversation, oldest first."""

    def say(self, text: str) -> Iterator[str]:
        """Yield the answer to a message as it is written; then :attr:`note` says how it ended.

        A message that does not fit, or whose answer is broken off, is taken back.

        Raises:
            ConfigError: If the conversation no longer fits the model's context.
            DataError: If the template has no form for one of the messages.
        """
        asked = [*self.messages, _plain("user", text)]
        seed = (self._sampling.seed + len(asked)) % 2**63
        reply = Reply(
            self._model,
            self._tokenizer,
            chat_prompt(self._tokenizer, asked),
            max_tokens=self._max_tokens,
            sampling=self._sampling.model_copy(update={"seed": seed}),
        )
        answer = ""
        for piece in reply:
            answer += piece
            yield piece
        self.messages = [*asked, _plain("assistant", answer)]
        self.note = reply.note

    note: str = ""
    """Why the newest answer was cut off; empty where the model ended it."""

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = list(self._beginning)

    def save(self, path: Path) -> None:
        """Write the conversation as one row of JSONL, which ``mypt prepare`` reads.

        Raises:
            ConfigError: If there is a file of that name, or nothing was said.
        """
        if path.exists():
            raise ConfigError(f"{path} exists and is never overwritten; name another file")
        if len(self.messages) == len(self._beginning):
            raise ConfigError("nothing was said yet; there is nothing to save")
        turns = [{"role": turn.role, "content": turn.text} for turn in self.messages]
        row = json.dumps({"messages": turns}, ensure_ascii=False)
        files.write_bytes(path, f"{row}\n".encode())


def _plain(role: Role, text: str) -> Message:
    return Message(role, (Part("text", text),))
