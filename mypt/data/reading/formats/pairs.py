"""Rows of one question and one answer: alpaca and prompt_completion."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mypt.config import Role
from mypt.data.conversations import Conversation, Message, Part
from mypt.data.reading.formats.chats import frame
from mypt.data.reading.formats.message import fields_of, read_message, read_text, to_message
from mypt.data.reading.records import Place, Tally
from mypt.errors import DataError

PAIRS = (("prompt", "completion"), ("question", "answer"))
"""Fields that hold what is asked and what is answered."""

_TASK = "Below is an instruction that describes a task"
_WITH_INPUT = ", paired with an input that provides further context"
_REQUEST = ". Write a response that appropriately completes the request.\n\n"


def read_alpaca(row: Any, place: Place, tally: Tally) -> Iterator[Conversation]:  # noqa: ARG001
    """Yield the one question and answer of an instruction row.

    The question is the prompt that models of this family are asked with, from "Below is an
    instruction" to "### Response:" and a line feed; the answer is ``output``.

    Raises:
        DataError: If ``instruction`` or ``output`` is missing, or a field is no text.
        Dropped: If one of them is empty.
    """
    fields = fields_of(row, place)
    if fields.get("history"):
        raise DataError(f"{place}: an alpaca row with a history; write it as messages instead")
    instruction, answer = (read_text(fields, key, place) for key in ("instruction", "output"))
    context = read_text(fields, "input", place) if fields.get("input") is not None else ""
    asked = alpaca_prompt(instruction, context) if instruction.strip() else ""
    messages = [_turn("user", asked), _turn("assistant", answer)]
    yield Conversation(frame(messages, fields, place), place.origin)


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """Return the text that stands before an answer in the alpaca format.

    Source: the guide's example 3; the sentences are those of the Stanford Alpaca data.
    """
    if not context.strip():
        return f"{_TASK}{_REQUEST}### Instruction:\n{instruction}\n\n### Response:\n"
    return (
        f"{_TASK}{_WITH_INPUT}{_REQUEST}### Instruction:\n{instruction}\n\n"
        f"### Input:\n{context}\n\n### Response:\n"
    )


def read_prompt_completion(row: Any, place: Place, tally: Tally) -> Iterator[Conversation]:  # noqa: ARG001
    """Yield what is asked and answered in a row; either may be a list of messages.

    A list of messages that asks is context: none of its turns is supervised.

    Raises:
        DataError: If a field is missing or is neither text nor messages.
        Dropped: If one of them says nothing.
    """
    fields = fields_of(row, place)
    asked, answered = next((pair for pair in PAIRS if pair[0] in fields), PAIRS[0])
    context = fields.get(asked)
    if isinstance(context, list):
        question = [replace(read_message(turn, place), train=False) for turn in context]
    else:
        question = [_turn("user", read_text(fields, asked, place))]
    if isinstance(fields.get(answered), list):
        answer = [read_message(turn, place) for turn in fields[answered]]
    else:
        answer = [_turn("assistant", read_text(fields, answered, place))]
    yield Conversation(frame(question + answer, fields, place), place.origin)


def _turn(role: Role, text: str) -> Message:
    return to_message(role, [Part("text", text)])
