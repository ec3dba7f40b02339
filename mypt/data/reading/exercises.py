"""Generated tasks whose answers are computed, so that exact match is exact.

A tenth of all questions, chosen by hash, is kept for testing: those are in neither the plain
text nor the conversations, whatever their wording, so a score measures the skill, not memory.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Final

from mypt import files
from mypt.config import Source
from mypt.errors import ConfigError, DataError

_CONSONANTS: Final = "bcdfghjklmnpqrstvz"
_VOWELS: Final = "aeiou"
_STATEMENTS_PER_DOCUMENT: Final = 4
_TEST_SHARE: Final = 10
_VERSION: Final = 1  # of the rules below; raise it when other bytes are written
_MOST_TESTS: Final = 2_000


@dataclass(frozen=True, slots=True)
class Task:
    """One skill; in the texts ``{}`` stands for the subject, such as a word to be spelled."""

    name: str
    counted: bool
    """Whether it counts in the overall score; the harder tasks do not."""
    share: int
    """How often it is drawn to learn from, relative to the others."""
    subject: Callable[[Random], str]
    answer: Callable[[str], str]
    key: Callable[[str], str]
    """Equal for subjects of which one gives the other's answer away."""
    stem: str
    """What the answer and a full stop complete to a statement of plain text."""
    wordings: tuple[str, ...]
    """Ways to ask."""


@dataclass(frozen=True, slots=True)
class Exercise:
    """One question with its answer, for a chat and as plain text."""

    task: str
    subject: str
    question: str
    answer: str
    stem: str
    """The statement up to the answer: how a base model is asked."""

    @property
    def statement(self) -> str:
        """The same fact as a sentence of plain text."""
        return f"{self.stem}{self.answer}."


def _word(random: Random) -> str:
    letters = (_CONSONANTS, _VOWELS) * 3
    return "".join(random.choice(letters[i]) for i in range(random.randint(3, 5)))


def _digits(random: Random) -> str:
    return "".join(random.choice("0123456789") for _ in range(random.randint(3, 5)))


def _sum(random: Random) -> str:
    return f"{random.randint(10, 99)} + {random.randint(10, 99)}"


def _sorted(text: str) -> str:
    return "".join(sorted(text))


TASKS: Final = {
    task.name: task
    for task in (
        Task(
            "spell",
            counted=True,
            share=3,
            subject=_word,
            answer="-".join,
            key=str,
            stem="{} is spelled ",
            wordings=("Spell {}.", "How do you spell {}?", "Spell the word {}."),
        ),
        Task(
            "reverse",
            counted=True,
            share=3,
            subject=_word,
            answer=lambda word: word[::-1],
            key=lambda word: min(word, word[::-1]),
            stem="{} backwards is ",
            wordings=("Reverse the word {}.", "Write {} backwards.", "What is {} backwards?"),
        ),
        Task(
            "sort",
            counted=True,
            share=3,
            subject=_digits,
            answer=_sorted,
            key=_sorted,
            stem="{} in order is ",
            wordings=("Sort {}.", "Put {} in order.", "Sort the digits of {}."),
        ),
        Task(
            "add",
            counted=False,
            share=1,
            subject=_sum,
            answer=lambda both: str(sum(int(number) for number in both.split(" + "))),
            key=lambda both: " + ".join(sorted(both.split(" + "))),
            stem="{} is ",
            wordings=("What is {}?", "Add {}.", "How much is {}?"),
        ),
    )
}


def is_test_question(task: str, subject: str) -> bool:
    """Return whether a question is kept for testing, whatever its wording.

    Args:
        task: A name in ``TASKS``.
        subject: What is asked about, such as the word to be spelled.
    """
    key = f"{task}:{TASKS[task].key(subject)}"
    return int(sha256(key.encode()).hexdigest(), 16) % _TEST_SHARE == 0


def train_exercises(n: int, seed: int) -> Iterator[Exercise]:
    """Yield ``n`` exercises to learn from; the same seed, the same exercises."""
    random = Random(f"train {seed}")
    tasks = tuple(task for task in TASKS.values() for _ in range(task.share))
    found = (_draw(random.choice(tasks), random) for _ in iter(int, 1))
    return islice((one for one in found if not is_test_question(one.task, one.subject)), n)


def test_exercises(n: int, seed: int) -> tuple[Exercise, ...]:
    """Return ``n`` different exercises that no training data holds, the tasks in turn.

    Raises:
        ConfigError: If ``n`` is more than the tasks can give.
    """
    if n > _MOST_TESTS:
        raise ConfigError(f"{n} held-out exercises asked for; at most {_MOST_TESTS} can be made")
    random = Random(f"test {seed}")
    chosen: dict[tuple[str, str], Exercise] = {}
    for task in islice(cycle(TASKS.values()), n):
        exercise = _draw(task, random)
        while not is_test_question(task.name, exercise.subject) or (
            (task.name, exercise.subject) in chosen
        ):
            exercise = _draw(task, random)
        chosen[task.name, exercise.subject] = exercise
    return tuple(chosen.values())


def write_source(source: Source, folder: Path) -> Path:
    """Write the exercises that ``source`` asks for as an ordinary JSONL file, once.

    For "text" a line holds several statements, ``{"text": ...}``; for "chat" a conversation is
    one line a message and a blank line after it, as in the seed's own format.

    Args:
        source: ``exercises``, ``count`` and ``seed`` decide the bytes.
        folder: Where the file goes; its name carries a digest of what decided its bytes, so
            that one that exists is the one that would be written.

    Raises:
        ConfigError: If the source asks for no exercises.
        DataError: If the file that is there holds others.
    """
    if source.exercises is None or source.count == 0:
        raise ConfigError(f"source {source.name!r} generates nothing; set exercises and count")
    asked = source.exercises, source.count, source.seed
    texts = [(task.name, task.share, task.stem, task.wordings) for task in TASKS.values()]
    recipe = (_VERSION, source.exercises, source.count, source.seed, texts)
    name = f"exercises_{source.exercises}_{files.digest_json(recipe)[:16]}.jsonl"
    path = folder / name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_chunks(path, _lines(*asked))
    elif files.sha256_file(path) != _sha256(*asked):
        raise DataError(
            f"{path}: its bytes are not those of the exercises that it is named after; remove it,"
            " so that it is written again"
        )
    return path


@cache
def _sha256(kind: str, count: int, seed: int) -> str:
    hasher = sha256()
    for line in _lines(kind, count, seed):
        hasher.update(line)
    return hasher.hexdigest()


def _lines(kind: str, count: int, seed: int) -> Iterator[bytes]:
    exercises = train_exercises(count, seed)
    return map(str.encode, _documents(exercises) if kind == "text" else _chats(exercises))


def _documents(exercises: Iterator[Exercise]) -> Iterator[str]:
    while some := tuple(islice(exercises, _STATEMENTS_PER_DOCUMENT)):
        text = "\n".join(exercise.statement for exercise in some)
        yield json.dumps({"text": text}) + "\n"


def _chats(exercises: Iterator[Exercise]) -> Iterator[str]:
    for exercise in exercises:
        for role, content in (("user", exercise.question), ("assistant", exercise.answer)):
            yield json.dumps({"role": role, "content": content}) + "\n"
        yield "\n"


def _draw(task: Task, random: Random) -> Exercise:
    subject = task.subject(random)
    question = random.choice(task.wordings).format(subject)
    stem = task.stem.format(subject)
    return Exercise(task.name, subject, question, task.answer(subject), stem)
