"""Exact match: what counts as right, how tasks add up, and how each form is asked."""

import pytest

from mypt.data.reading import exercises
from mypt.data.reading.exercises import Exercise
from mypt.data.tokenizer import load_tokenizer
from mypt.errors import ConfigError, DataError
from mypt.evaluation import exact_match
from mypt.evaluation.exact_match import ask_exercises, interval, read_questions, score
from mypt.inference.chat import Answer


def exercise(task: str, answer: str) -> Exercise:
    return Exercise(task, "x", "Do x.", answer, stem="x is ")


def said(text: str, *, stopped: bool = True) -> Answer:
    return Answer(text, stopped, len(text) + stopped)


def test_an_answer_is_right_to_the_letter_or_not_at_all():
    asked = [exercise("sort", "0247")] * 5
    answers = [
        said("0247"),
        said("0247 "),
        said("024"),
        said("0247", stopped=False),
        said("The answer is 0247"),
    ]
    scores = score(asked, answers)
    assert scores.exact_match["sort"] == 1 / 5
    assert scores.stop_recall == 4 / 5
    assert scores.asked == 5


def test_what_was_said_is_kept_beside_what_is_known_of_it():
    tokenizer = load_tokenizer("byte")
    tag = next(iter(tokenizer.special_tokens))
    asked = [exercise("sort", "0247"), Exercise("questions", "", "Hm?", "a", stem="")]
    found = score(asked, [said("0247"), said(f"a{tag}", stopped=False)], "chat", tokenizer).answers
    assert [(one.task, one.question, one.expected, one.said) for one in found] == [
        ("sort", "Do x.", "0247", "0247"), ("questions", "Hm?", "a", f"a{tag}"),
    ]  # fmt: skip
    known = [(one.right, one.stopped, one.leaked) for one in found]
    assert known == [(True, True, False), (False, False, True)]


def test_overall_is_the_mean_of_the_counted_tasks_however_many_questions_each_had():
    asked = [exercise("spell", "a"), *[exercise("sort", "a")] * 3, exercise("add", "a")]
    scores = score(asked, [said("a"), said("a"), said("b"), said("b"), said("b")])
    assert scores.exact_match == pytest.approx(
        {"spell": 1.0, "sort": 1 / 3, "add": 0.0, "overall": (1 + 1 / 3) / 2}
    )
    others = score(asked, [said("a"), said("a"), said("b"), said("b"), said("a")])
    assert others.exact_match["overall"] == scores.exact_match["overall"]


def test_plain_text_is_read_up_to_its_full_stop():
    asked = [exercise("sort", "0247")] * 4
    answers = [
        said("0247.\n12 is", stopped=False),
        said("0247", stopped=False),
        said("0247", stopped=True),
        said("024.7"),
    ]
    scores = score(asked, answers, form="plain")
    assert scores.exact_match["sort"] == 1 / 4
    assert scores.stop_recall == 2 / 4


@pytest.mark.parametrize(("form", "asked"), [("chat", "question"), ("plain", "stem")])
def test_each_form_asks_in_its_own_words_and_the_answers_are_matched(form, asked, monkeypatch):
    tokenizer = load_tokenizer("byte")
    some = exercises.test_exercises(8, seed=1)
    fed = []

    def know_it_all(_model, _tokenizer, prompts, **options):
        fed.append((prompts, options))
        end = "" if form == "chat" else "."
        return [said(exercise.answer + end) for exercise in some]

    monkeypatch.setattr(exact_match, "answer_prompts", know_it_all)
    scores = ask_exercises(None, tokenizer, some, form=form, max_tokens=17)
    assert set(scores.exact_match.values()) == {1.0}
    ((prompts, options),) = fed
    assert options == {"form": form, "max_tokens": 17}
    for prompt, exercise in zip(prompts, some, strict=True):
        assert getattr(exercise, asked) in tokenizer.decode(prompt)
        assert exercise.answer not in tokenizer.decode(prompt)


def test_the_interval_of_a_share_is_wilsons():
    assert interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert interval(0, 5) == pytest.approx((0.0, 0.4345), abs=1e-4)
    assert interval(5, 5) == pytest.approx((0.5655, 1.0), abs=1e-4)


def test_a_file_in_any_format_asks_a_question_a_row_and_nothing_else(tmp_path):
    rows, chats, long = (tmp_path / name for name in ("rows.jsonl", "chats.jsonl", "long.jsonl"))
    rows.write_text('{"question": "2+2?", "answer": "4."}\n')
    talk = '{"role": "user", "content": "2+2?"}\n{"role": "assistant", "content": "4."}\n'
    chats.write_text(talk)
    for path in (rows, chats):
        (asked,) = read_questions(str(path))
        assert (asked.question, asked.answer) == ("2+2?", "4.")
    long.write_text(talk * 2)
    with pytest.raises(DataError, match=r"long.jsonl:1: no question and its answer; expected rows"):
        list(read_questions(str(long)))


def test_each_file_of_a_folder_is_a_task_by_its_name(tmp_path):
    for name in ("sums", "names"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"question": "{name}?", "answer": "4."}}\n')
    found = {asked.task: asked.question for asked in read_questions(str(tmp_path))}
    assert found == {"sums": "sums?", "names": "names?"}


def test_a_link_in_a_folder_of_questions_is_not_followed(tmp_path):
    (tmp_path / "elsewhere.jsonl").write_text('{"question": "2+2?", "answer": "4."}\n')
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / "a.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    with pytest.raises(DataError, match=r"a.jsonl: a link, not followed"):
        list(read_questions(str(tmp_path / "asked")))
    assert len(list(read_questions(str(tmp_path / "asked" / "a.jsonl")))) == 1


def test_two_tasks_of_one_name_are_refused(tmp_path):
    (tmp_path / "sort.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(ConfigError, match="its files are tasks, and sort is another's name"):
        list(read_questions(str(tmp_path)))


def test_an_answer_longer_than_the_bound_is_not_wrong_for_that(monkeypatch):
    asked = [Exercise("questions", "", "Say it.", "a" * 50, stem="")]
    bounds = []

    def answer(*_, max_tokens, **__):
        bounds.append(max_tokens)
        return [said("a" * 50)]

    monkeypatch.setattr(exact_match, "answer_prompts", answer)
    scores = ask_exercises(None, load_tokenizer("byte"), asked, max_tokens=32)
    assert bounds == [51]
    assert scores.exact_match == {"questions": 1.0, "overall": 1.0}
    assert [found.right for found in scores.answers] == [True]
