"""Generated exercises and questions of a file, asked of a model: right to the letter, or not."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mypt.config import Source
from mypt.data.conversations import Conversation, Form
from mypt.data.reading.exercises import TASKS, Exercise
from mypt.data.reading.sources import open_source
from mypt.data.tokenizer import Tokenizer
from mypt.errors import ConfigError, DataError
from mypt.evaluation.scores import AskedQuestion
from mypt.inference.chat import Answer, answer_prompts, prompt_of
from mypt.model.gpt import GPT
from mypt.parsing import Frozen
from mypt.text import counted

FULL_STOP = "."
"""Ends a statement of plain text; no answer holds one."""
QUESTIONS = "questions"
"""The task of what a single file asks."""
_STRETCH = 4
_SIGMAS = 1.96
"""Of 95 %."""


class ExerciseScores(Frozen):
    """How a model did on held-out exercises, and on questions of a file."""

    exact_match: dict[str, float]
    """Share of exactly right answers by task, and "overall": the mean over the counted tasks."""
    between: dict[str, tuple[float, float]]
    """Wilson's 95 % interval of each task's share."""
    hits: dict[str, str]
    """By task, 1 for each question that was answered exactly and 0 for each other, in order."""
    answers: tuple[AskedQuestion, ...]
    """In the order asked."""
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
        max_tokens: Longest answer; what an expected one takes there is always room for.
    """
    longest = max(len(tokenizer.encode(exercise.answer)) for exercise in exercises) + 1
    asked = [exercise.question if form == "chat" else exercise.stem for exercise in exercises]
    prompts = [prompt_of(tokenizer, text, form) for text in asked]
    answers = answer_prompts(
        model, tokenizer, prompts, form=form, max_tokens=max(max_tokens, longest)
    )
    return score(exercises, answers, form, tokenizer)


def read_questions(path: str) -> Iterator[Exercise]:
    """Yield the questions of a file of any format that data may have, each with its answer.

    Args:
        path: A file; or a folder, of which each file is a task that it names.

    Raises:
        ConfigError: If two files of a folder have one name, or that of a generated task.
        DataError: If the file cannot be read, a folder has a link in it, or a row is more or
            less than one question and its answer.
    """
    source = Source(path=path)
    for folder, folders, names in os.walk(path):
        if links := [name for name in folders + names if (Path(folder) / name).is_symlink()]:
            raise DataError(
                f"{Path(folder) / links[0]}: a link, not followed; expected the file itself"
            )
    reader = open_source(source)
    named = [Path(file.path).stem for file in reader.files]
    if not Path(path).is_dir():
        named = [QUESTIONS] * len(named)
    elif odd := next((name for name in named if named.count(name) > 1 or name in TASKS), None):
        raise ConfigError(f"{path}: its files are tasks, and {odd} is another's name; rename it")
    for row in reader:
        turns = row.messages if isinstance(row, Conversation) else ()
        kinds = [part.kind for turn in turns for part in turn.parts]
        if [turn.role for turn in turns] != ["user", "assistant"] or set(kinds) != {"text"}:
            raise DataError(
                f"{path}:{row.origin.line}: no question and its answer; expected rows such as"
                ' {"question": "2+2?", "answer": "4"}'
            )
        question, answer = (turn.text for turn in turns)
        yield Exercise(named[row.origin.file], question, question, answer, stem=question)
    for count in reader.record().dropped:
        raise DataError(
            f"{path}: {counted(count.rows, 'row')} left out ({count.reason}); expected a question"
            " and its answer in each"
        )


def score(
    exercises: Sequence[Exercise],
    answers: Sequence[Answer],
    form: Form = "chat",
    tokenizer: Tokenizer | None = None,
) -> ExerciseScores:
    """Compare ``answers`` with what the exercises expect; a right text that goes on is wrong."""
    right: dict[str, list[bool]] = {}
    shown = []
    for exercise, answer in zip(exercises, answers, strict=True):
        text, stopped = answer.text, answer.stopped
        if form == "plain":
            text, full_stop, _ = text.partition(FULL_STOP)
            stopped = bool(full_stop)
        hit = stopped and text == exercise.answer
        right.setdefault(exercise.task, []).append(hit)
        shown.append(
            AskedQuestion(
                task=exercise.task,
                question=exercise.question,
                expected=exercise.answer,
                said=text,
                right=hit,
                stopped=stopped,
                leaked=_leaks(answer, tokenizer),
            )
        )
    by_task = {task: _share(found) for task, found in right.items()}
    shares = [found for task, found in by_task.items() if counts(task)]
    overall = sum(shares) / len(shares) if shares else 0.0
    return ExerciseScores(
        exact_match=by_task | {"overall": overall},
        between={task: interval(sum(found), len(found)) for task, found in right.items()},
        hits={task: "".join(str(int(hit)) for hit in found) for task, found in right.items()},
        answers=tuple(shown),
        stop_recall=_share([bool(found.stopped) for found in shown]),
        asked=len(shown),
        leak_rate=_share([bool(found.leaked) for found in shown]),
        repetition=_repetition(answers),
    )


def counts(task: str) -> bool:
    """Return whether a task is part of the mean over all."""
    return task not in TASKS or TASKS[task].counted


def interval(hits: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share: ``hits`` of ``n``."""
    z = _SIGMAS**2 / n
    middle = (hits / n + z / 2) / (1 + z)
    reach = math.sqrt(hits / n * (1 - hits / n) * z + z**2 / 4) / (1 + z)
    return max(0.0, middle - reach), min(1.0, middle + reach)


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
