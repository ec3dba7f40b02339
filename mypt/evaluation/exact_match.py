"""The generated exercises, asked of a model: right to the letter, or not."""

from collections.abc import Sequence

from mypt.data.conversations import Form
from mypt.data.reading.exercises import TASKS, Exercise
from mypt.data.tokenizer import Tokenizer
from mypt.inference.chat import Answer, answer_prompts, prompt_of
from mypt.model.gpt import GPT
from mypt.parsing import Frozen

FULL_STOP = "."
"""Ends a statement of plain text; no answer holds one."""
_STRETCH = 4


class ExerciseScores(Frozen):
    """How a model did on held-out exercises."""

    exact_match: dict[str, float]
    """Share of exactly right answers by task, and "overall": the mean over the counted tasks."""
    stop_recall: float
    """Share of answers that ended by themselves: with the stop token of an assistant turn, or
    for plain text with a full stop."""
    asked: int
    """Questions."""
    leak_rate: float
    """Share of answers in which a special token other than the end stands, or a tag spelled out:
    a model that writes the user's part as well."""
    repetition: float
    """Share of four-token stretches that stood in the same answer before."""


def ask_exercises(
    model: GPT,
    tokenizer: Tokenizer,
    exercises: Sequence[Exercise],
    *,
    form: Form = "chat",
    max_tokens: int = 32,
) -> ExerciseScores:
    """Ask every exercise, take the likeliest tokens, and count the right answers.

    Args:
        model: On any device.
        tokenizer: The model's own.
        exercises: At least one.
        form: "chat" asks the question as a user; "plain" gives the beginning of the statement
            and reads the answer up to the full stop, as a base model has learned it.
        max_tokens: Longest answer.
    """
    asked = [exercise.question if form == "chat" else exercise.stem for exercise in exercises]
    prompts = [prompt_of(tokenizer, text, form) for text in asked]
    answers = answer_prompts(model, tokenizer, prompts, form=form, max_tokens=max_tokens)
    return score(exercises, answers, form, tokenizer)


def score(
    exercises: Sequence[Exercise],
    answers: Sequence[Answer],
    form: Form = "chat",
    tokenizer: Tokenizer | None = None,
) -> ExerciseScores:
    """Compare ``answers`` with what the exercises expect; a right text that goes on is wrong."""
    right: dict[str, list[bool]] = {}
    ended = []
    for exercise, answer in zip(exercises, answers, strict=True):
        text, stopped = answer.text, answer.stopped
        if form == "plain":
            text, full_stop, _ = text.partition(FULL_STOP)
            stopped = bool(full_stop)
        ended.append(stopped)
        right.setdefault(exercise.task, []).append(stopped and text == exercise.answer)
    by_task = {task: _share(found) for task, found in right.items()}
    counted = [by_task[name] for name, task in TASKS.items() if task.counted and name in by_task]
    overall = sum(counted) / len(counted) if counted else 0.0
    return ExerciseScores(
        exact_match=by_task | {"overall": overall},
        stop_recall=_share(ended),
        asked=len(ended),
        leak_rate=_share([_leaks(answer, tokenizer) for answer in answers]),
        repetition=_repetition(answers),
    )


def _leaks(answer: Answer, tokenizer: Tokenizer | None) -> bool:
    """Return whether a role's tag stands in the answer; its text spells special tokens out."""
    return tokenizer is not None and any(tag in answer.text for tag in tokenizer.special_tokens)


def _repetition(answers: Sequence[Answer]) -> float:
    stretches = repeated = 0
    for answer in answers:
        found = [answer.ids[at : at + _STRETCH] for at in range(len(answer.ids) - _STRETCH + 1)]
        stretches += len(found)
        repeated += len(found) - len(set(found))
    return repeated / stretches if stretches else 0.0


def _share(found: Sequence[bool]) -> float:
    return sum(found) / len(found)
