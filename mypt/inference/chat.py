"""A conversation with a model, asked through the template that its data was written in."""

import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mypt import files
from mypt.data.conversations import Conversation, Form, Message, Origin, say
from mypt.data.preparation.encoding import encode_rows
from mypt.data.preparation.rendered import encode_prompt
from mypt.data.rendering.base_template import BaseTemplate
from mypt.data.rendering.marks import Unproved
from mypt.data.tokenizer import Tokenizer
from mypt.errors import ConfigError, DataError
from mypt.inference.generation import generate_batch, known_tokens, text_prompt
from mypt.inference.reply import Reply
from mypt.inference.sampling import GREEDY, Sampling
from mypt.model.gpt import GPT


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote after a prompt."""

    text: str
    """Without the token that ended it."""
    stopped: bool
    """Whether it ended with its stop token, not because there was no room for more."""
    n_tokens: int
    """Tokens written, the stop token among them."""
    ids: tuple[int, ...] = ()
    """These tokens."""


def ask(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    form: Form,
    max_tokens: int = 256,
) -> Answer:
    """Return the likeliest answer to one user message, or how a model goes on with a text.

    Raises:
        ConfigError: As :func:`answer_prompts`.
    """
    ids = prompt_of(tokenizer, prompt, form)
    return answer_prompts(model, tokenizer, [ids], form=form, max_tokens=max_tokens)[0]


def answer_prompts(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    form: Form = "chat",
    max_tokens: int,
    sampling: Sampling = GREEDY,
) -> list[Answer]:
    """Return the answers to many prompts, read together.

    Args:
        model: On any device.
        tokenizer: The model's own.
        prompts: Ids from :func:`prompt_of` or :func:`chat_prompt`.
        form: Which token ends an answer: that of an assistant turn, or that of a text.
        max_tokens: Longest answer.
        sampling: How each token is chosen.

    Raises:
        ConfigError: If a prompt does not fit the model's longest context.
    """
    stops = tokenizer.stop_ids if form == "chat" else (tokenizer.end_of_text,)
    ends = (*stops, tokenizer.end_of_text)
    written = generate_batch(
        model,
        prompts,
        max_tokens=max_tokens,
        stop_ids=ends,
        known=known_tokens(model, tokenizer),
        sampling=sampling,
    )
    return [
        Answer(
            text=tokenizer.decode_part(ids[:-1] if ids[-1:] and ids[-1] in ends else ids),
            stopped=bool(ids) and ids[-1] in stops,
            n_tokens=len(ids),
            ids=tuple(ids),
        )
        for ids in written
    ]


def prompt_of(tokenizer: Tokenizer, prompt: str, form: Form) -> list[int]:
    """Return the ids that ask for an answer to a user message, or for the rest of a text."""
    if form == "chat":
        return chat_prompt(tokenizer, [say("user", prompt)])
    return text_prompt(tokenizer, prompt)


def chat_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Return the ids of a conversation and of the header of the answer to it.

    Raises:
        DataError: If the template has no form for one of the messages.
    """
    if isinstance(tokenizer.template, BaseTemplate):
        try:
            return encode_prompt(messages, tokenizer)
        except Unproved as error:
            raise DataError(f"the base's template cannot be proved for it: {error}") from None
    asked = Conversation((*messages, Message("assistant", ())), Origin(0, 0))
    ids: list[int] = encode_rows([asked], tokenizer, many=False).tokens.tolist()
    return ids[:-1]  # but for the token that would end the answer


def fitting_prompt(
    model: GPT, tokenizer: Tokenizer, messages: Sequence[Message], max_tokens: int | None
) -> tuple[list[int], int]:
    """Return the prompt of as much of a conversation as leaves room for an answer.

    Whole turns leave, the oldest first: a user's message with all that followed it. System
    messages stay, and so does the last turn, even where it does not fit by itself.

    Args:
        model: Whose longest context holds prompt and answer.
        tokenizer: The model's own.
        messages: The conversation so far.
        max_tokens: Longest answer. It gets room for it, but never more than half of
            the context, or else a generous limit would cost the whole history; None gets a quarter.

    Returns:
        The prompt, and how many turns were left out.

    Raises:
        DataError: If the template has no form for one of the messages.
    """
    longest = model.config.longest
    room = longest // 4 if max_tokens is None else min(max_tokens, longest // 2)
    starts = [index for index, message in enumerate(messages) if message.role == "user"]

    def prompt_without(n_turns: int) -> list[int]:
        start = starts[n_turns] if n_turns else 0
        stays = [message for message in messages[:start] if message.role == "system"]
        return chat_prompt(tokenizer, [*stays, *messages[start:]])

    def fits(n_turns: int) -> bool:
        return len(prompt_without(n_turns)) + room <= longest

    left_out = bisect_left(range(len(starts) - 1), True, key=fits)  # the fewest that make it fit
    return prompt_without(left_out), left_out


class Session:
    """What was said so far; the model reads as much of it at each turn as fits."""

    messages: list[Message]
    """The whole conversation, oldest first."""
    left_out: int
    """The most turns, the oldest ones, that the model did not read for an answer."""
    note: str = ""
    """Why the newest answer was cut off; empty where the model ended it."""

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
        self._beginning = [say("system", system)] if system else []
        self.reset()

    def say(self, text: str) -> Iterator[str]:
        """Yield the answer to a message as it is written; then :attr:`note` says how it ended.

        A message that does not fit, or whose answer is broken off, is taken back.

        Raises:
            ConfigError: If the message does not fit the model's context.
            DataError: If the template has no form for one of the messages.
        """
        asked = [*self.messages, say("user", text)]
        prompt, left_out = fitting_prompt(self._model, self._tokenizer, asked, self._max_tokens)
        seed = (self._sampling.seed + len(asked)) % 2**63
        reply = Reply(
            self._model,
            self._tokenizer,
            prompt,
            max_tokens=self._max_tokens,
            sampling=self._sampling.model_copy(update={"seed": seed}),
        )
        answer = ""
        for piece in reply:
            answer += piece
            yield piece
        self.messages = [*asked, say("assistant", answer)]
        self.left_out = max(self.left_out, left_out)
        self.note = reply.note

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = list(self._beginning)
        self.left_out = 0

    def undo(self) -> None:
        """Take back the last message and its answer.

        Raises:
            ConfigError: If nothing was said.
        """
        self._check_begun("take back")
        del self.messages[-2:]

    def save(self, path: Path) -> None:
        """Write the conversation as one row of JSONL, which ``mypt prepare`` reads.

        Raises:
            ConfigError: If there is a file of that name, or nothing was said.
        """
        if path.exists():
            raise ConfigError(f"{path} exists and is never overwritten; name another file")
        self._check_begun("save")
        turns = [{"role": turn.role, "content": turn.text} for turn in self.messages]
        row = json.dumps({"messages": turns}, ensure_ascii=False)
        files.write_bytes(path, f"{row}\n".encode())

    def _check_begun(self, wanted: str) -> None:
        if len(self.messages) == len(self._beginning):
            raise ConfigError(f"nothing was said yet; there is nothing to {wanted}")
