"""The generated exercises: computed answers, held-out questions, files written once."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path

import pytest

from mypt.config import Source
from mypt.data.reading import exercises
from mypt.errors import ConfigError, DataError

WORD, DIGITS, SUM, ANSWER = r"([a-z]{3,5})", r"(\d{3,5})", r"(\d\d \+ \d\d)", r"([a-z0-9-]+)"
STATEMENTS = {
    "spell": ["W is spelled A."],
    "reverse": ["W backwards is A."],
    "sort": ["D in order is A."],
    "add": ["S is A."],
}
QUESTIONS = {
    "spell": ["Spell W.", "How do you spell W?", "Spell the word W."],
    "reverse": ["Reverse the word W.", "Write W backwards.", "What is W backwards?"],
    "sort": ["Sort D.", "Put D in order.", "Sort the digits of D."],
    "add": ["What is S?", "Add S.", "How much is S?"],
}


def naive_answer(task: str, subject: str) -> str:
    if task == "spell":
        return "".join(letter + "-" for letter in subject)[:-1]
    if task == "reverse":
        return "".join(reversed(subject))
    if task == "sort":
        return "".join(digit * subject.count(digit) for digit in "0123456789")
    left, right = subject.split(" + ")
    return str(int(left) + int(right))


def naive_key(task: str, subject: str) -> str:
    if task == "reverse":
        return min(subject, subject[::-1])
    if task == "sort":
        return naive_answer(task, subject)
    return " + ".join(sorted(subject.split(" + "))) if task == "add" else subject


def held_out(task: str, subject: str) -> bool:
    digest = hashlib.sha256(f"{task}:{naive_key(task, subject)}".encode()).hexdigest()
    return int(digest, 16) % 10 == 0


@cache
def compiled(form: str) -> re.Pattern[str]:
    for letter, group in (("W", WORD), ("D", DIGITS), ("S", SUM), ("A", ANSWER)):
        form = re.sub(rf"\b{letter}\b", lambda _, group=group: group, form)
    return re.compile(re.sub(r"([.?])$", r"\\\1", form))


def parse(text: str, wordings: dict[str, list[str]]) -> tuple[str, list[str]]:
    """Return the task, and the subject and answer as far as the text holds them."""
    for task, forms in wordings.items():
        for form in forms:
            if match := compiled(form).fullmatch(text):
                return task, list(match.groups())
    raise AssertionError(f"{text!r} follows no form")


def statements(path):
    for line in path.read_text().splitlines():
        yield from json.loads(line)["text"].split("\n")


def turns(path):
    """Pairs of a question and its answer, by the seed's format alone."""
    for block in path.read_text().strip().split("\n\n"):
        user, assistant = (json.loads(line) for line in block.splitlines())
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        yield user["content"], assistant["content"]


def test_every_statement_and_every_turn_is_right(tmp_path):
    seen: Counter[str] = Counter()
    text = exercises.write_source(Source(exercises="text", count=3000), tmp_path)
    for statement in statements(text):
        task, (subject, answer) = parse(statement, STATEMENTS)
        assert answer == naive_answer(task, subject)
        seen[task] += 1
    chat = exercises.write_source(Source(exercises="chat", count=3000), tmp_path)
    for question, answer in turns(chat):
        task, (subject,) = parse(question, QUESTIONS)
        assert answer == naive_answer(task, subject)
        seen[task] += 1
    assert seen.total() == 6000
    assert all(1600 < seen[task] < 2000 for task in ("spell", "reverse", "sort")), seen
    assert 500 < seen["add"] < 700


def test_no_held_out_question_is_in_text_or_chat_whatever_its_wording(tmp_path):
    text = exercises.write_source(Source(exercises="text", count=20_000), tmp_path)
    chat = exercises.write_source(Source(exercises="chat", count=20_000), tmp_path)
    trained = set()
    for statement in statements(text):
        task, (subject, _) = parse(statement, STATEMENTS)
        trained.add((task, naive_key(task, subject)))
    for question, _ in turns(chat):
        task, (subject,) = parse(question, QUESTIONS)
        trained.add((task, naive_key(task, subject)))
    assert not any(held_out(task, key) for task, key in trained)
    for exercise in exercises.test_exercises(1000, seed=0):
        assert held_out(exercise.task, exercise.subject)
        assert (exercise.task, naive_key(exercise.task, exercise.subject)) not in trained


def test_about_a_tenth_of_all_questions_is_held_out():
    words = {x.subject for x in exercises.train_exercises(20_000, 0) if x.task == "spell"}
    every = [a + b + c for a in "bcdfghjklmnpqrstvz" for b in "aeiou" for c in "bcdfghjklmnpqrstvz"]
    kept = [word for word in every if exercises.is_test_question("spell", word)]
    assert 0.07 < len(kept) / len(every) < 0.13
    assert words.isdisjoint(kept)


@pytest.mark.parametrize(
    ("task", "one", "other"),
    [("reverse", "tanok", "konat"), ("sort", "4072", "7204"), ("add", "58 + 27", "27 + 58")],
)
def test_a_question_that_gives_the_answer_away_is_held_out_with_it(task, one, other):
    assert exercises.is_test_question(task, one) == exercises.is_test_question(task, other)


def test_held_out_exercises_differ_and_take_the_tasks_in_turn():
    chosen = exercises.test_exercises(80, seed=3)
    assert [x.task for x in chosen[:5]] == ["spell", "reverse", "sort", "add", "spell"]
    assert len({(x.task, x.subject) for x in chosen}) == 80
    assert all(x.answer == naive_answer(x.task, x.subject) for x in chosen)
    assert all(x.subject in x.question and x.statement == x.stem + x.answer + "." for x in chosen)


def test_more_held_out_exercises_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="at most 2000"):
        exercises.test_exercises(2001, seed=0)
    assert len(exercises.test_exercises(2000, seed=0)) == 2000


def test_the_seed_decides_and_a_longer_list_begins_like_a_shorter():
    first = list(exercises.train_exercises(50, seed=1))
    assert first == list(islice(exercises.train_exercises(90, seed=1), 50))
    assert first != list(exercises.train_exercises(50, seed=2))


def test_the_bytes_do_not_depend_on_the_process(tmp_path):
    program = (
        "import sys; from pathlib import Path; from mypt.config import Source;"
        "from mypt.data.reading.exercises import write_source;"
        "print(write_source(Source(exercises='chat', count=200), Path(sys.argv[1])))"
    )
    written = []
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / hash_seed)],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        written.append(done.stdout.strip())
    one, two = (Path(path).read_bytes() for path in written)
    assert one == two
    known = "51baaafeccd2"  # on every machine and Python
    assert hashlib.sha256(one).hexdigest().startswith(known)


def test_a_file_is_written_once_and_its_name_says_what_it_holds(tmp_path):
    source = Source(exercises="text", count=40, seed=5)
    path = exercises.write_source(source, tmp_path / "sources")
    before = path.stat()
    assert exercises.write_source(source, tmp_path / "sources") == path
    assert path.stat() == before
    others = [
        source.model_copy(update=change)
        for change in ({"count": 41}, {"seed": 6}, {"exercises": "chat"})
    ]
    assert len({path, *(exercises.write_source(x, path.parent) for x in others)}) == 4
    weighted = source.model_copy(update={"weight": 3.0, "name": "drill"})
    assert exercises.write_source(weighted, path.parent) == path


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def broken(_):
        yield '{"text": "half"}\n'
        raise OSError("no space left")

    monkeypatch.setattr(exercises, "_documents", broken)
    with pytest.raises(OSError, match="no space"):
        exercises.write_source(Source(exercises="text", count=40), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_generates_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="set exercises and count"):
        exercises.write_source(Source(exercises="text"), tmp_path)
    with pytest.raises(ConfigError, match="generates nothing"):
        exercises.write_source(Source(path="x.txt", name="x"), tmp_path)


def test_a_bit_that_changed_in_a_generated_file_is_noticed(tmp_path):
    source = Source(exercises="text", count=40)
    path = exercises.write_source(source, tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"its bytes are not those .* remove it"):
        exercises.write_source(source, tmp_path)
