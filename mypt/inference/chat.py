"""What a model answers, asked through the same template that its training data was written in."""

from collections.abc import Sequence
from dataclasses import dataclass

from mypt.config import Form
from mypt.data.conversations import Message, say
from mypt.data.tokenizer import Tokenizer
from mypt.inference.generation import generate_batch, known_tokens, sampling_of, text_prompt
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


def answer(
    model: GPT,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    max_tokens: int = 256,
    **choices: float | None,
) -> Answer:
    """Return the next assistant turn of a conversation.

    Args:
        model: On any device.
        tokenizer: The model's own.
        messages: The conversation so far.
        max_tokens: Longest answer.
        choices: Fields of :class:`mypt.inference.sampling.Sampling`, such as temperature.

    Raises:
        ConfigError: If the conversation does not fit the model's block_size, or a choice is
            unknown or out of range.
        DataError: If the template has no form for one of the messages.
    """
    prompt, sampling = chat_prompt(tokenizer, messages), sampling_of(**choices)
    return answer_prompts(model, tokenizer, [prompt], max_tokens=max_tokens, sampling=sampling)[0]


def ask(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    form: Form,
    max_tokens: int = 256,
    **choices: float | None,
) -> Answer:
    """Return what a model answers to one user message, or how it goes on with a text.

    Raises:
        ConfigError: As :func:`answer`.
    """
    ids, sampling = prompt_of(tokenizer, prompt, form), sampling_of(**choices)
    return answer_prompts(
        model, tokenizer, [ids], form=form, max_tokens=max_tokens, sampling=sampling
    )[0]


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
        ConfigError: If a prompt does not fit the model's block_size.
    """
    stop = tokenizer.stop_id if form == "chat" else tokenizer.end_of_text
    ends = (stop, tokenizer.end_of_text)
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
            text=tokenizer.decode(ids[:-1] if ids[-1:] and ids[-1] in ends else ids),
            stopped=ids[-1:] == [stop],
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
    ids, _ = tokenizer.encode_segments(tokenizer.template.opening(messages))
    found: list[int] = ids.tolist()
    return found
