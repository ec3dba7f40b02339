"""Rankings: a best one only where the answers say so, beside a naive paired bootstrap."""

import numpy as np
import pytest

from mypt import files
from mypt.config import EvaluateConfig
from mypt.errors import CheckpointError
from mypt.evaluation.breakdown import paired_interval
from mypt.evaluation.ranking import SweptRun, rank, render_page
from mypt.evaluation.report import compare, write_report
from tests.mypt.evaluation.worlds import make_world

FEW = EvaluateConfig(exercises=8, max_tokens=4, eval_iters=0)
WRONG = dict.fromkeys(("spell", "sort"), "0" * 20)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with make_world(tmp_path_factory.mktemp("made")) as found:
        found["report"] = compare(found["base"], found["sft"], found["chat"], FEW)
        yield found


@pytest.fixture(autouse=True)
def _home(made, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(made["home"]))


def run(made, folder, name, hits, seed=0, model="sft"):
    """A run of a sweep whose model answered so."""
    shares = {task: marks.count("1") / len(marks) for task, marks in hits.items()}
    shares |= {"overall": sum(shares.values()) / len(shares)} if shares else {}
    scores = made["report"].sft.model_copy(update={"exact_match": shares, "hits": hits})
    if model != "sft":
        scores = scores.model_copy(update={"checkpoint": made[model]})
    path = write_report(made["report"].model_copy(update={"sft": scores}), folder / f"{name}{seed}")
    return SweptRun(
        settings={"knob": name},
        seed=seed,
        policy="assistant",
        mask_density=0.5,
        scores=scores,
        evaluation=str(path),
        digest=files.digest_file(path),
    )


def test_what_answers_surely_more_is_named_best(made, tmp_path):
    better = WRONG | {"sort": "1" * 15 + "0" * 5}
    runs = [run(made, tmp_path, "a", WRONG), run(made, tmp_path, "b", better)]
    report = rank("p", runs, made["chat"], FEW)
    assert (report.figure, report.best) == ("exact match", "knob=b")
    front, other = report.ranked
    assert (front.name, front.exact_match.mean) == ("knob=b", 0.375)
    assert other.exact_match.change == -0.375
    assert other.exact_match.high < 0
    assert other.loss.change == 0, "it is the same model"


def test_what_answers_one_question_more_is_in_front_and_not_named_best(made, tmp_path):
    barely = WRONG | {"sort": "1" + "0" * 19}
    runs = [run(made, tmp_path, "a", WRONG), run(made, tmp_path, "b", barely)]
    report = rank("p", runs, made["chat"], FEW)
    assert (report.ranked[0].name, report.best) == ("knob=b", "")
    assert "knob=a may be as good as knob=b" in report.why


def test_one_that_is_as_good_is_enough_to_name_none(made, tmp_path):
    good = WRONG | {"sort": "1" * 15 + "0" * 5}
    answered = {"a": WRONG, "b": good, "c": good}
    runs = [run(made, tmp_path, name, hits) for name, hits in answered.items()]
    assert rank("p", runs, made["chat"], FEW).best == ""


def test_where_all_answer_alike_the_loss_on_the_same_tokens_decides(made, tmp_path):
    runs = [run(made, tmp_path, "a", WRONG, model="base"), run(made, tmp_path, "b", WRONG)]
    report = rank("p", runs, made["chat"], FEW)
    assert (report.figure, report.best) == ("loss", "knob=b")
    naive = made["report"].sets["chat"]
    found = report.ranked[1].loss
    assert found.change == pytest.approx(-naive.change)
    assert (found.low, found.high) == pytest.approx((-naive.high, -naive.low))


def test_seeds_are_drawn_too(made, tmp_path):
    lucky, poor = WRONG | {"sort": "1" * 20}, WRONG
    runs = [
        run(made, tmp_path, name, hits, seed)
        for name, both in (("a", (poor, poor)), ("b", (lucky, poor)))
        for seed, hits in enumerate(both)
    ]
    report = rank("p", runs, made["chat"], FEW)
    assert report.ranked[0].seeds == 2
    assert report.ranked[0].exact_match.mean == 0.25
    assert report.best == "", "one seed of two was lucky"


def test_an_evaluation_that_was_changed_is_refused(made, tmp_path):
    runs = [run(made, tmp_path, "a", WRONG), run(made, tmp_path, "b", WRONG)]
    files.write_json(tmp_path / "b0" / "evaluation.json", {})
    with pytest.raises(CheckpointError, match="was changed"):
        rank("p", runs, made["chat"], FEW)


def test_the_page_loads_nothing_and_escapes_what_was_typed(made, tmp_path):
    runs = [run(made, tmp_path, name, WRONG) for name in ("<b>", "other")]
    page = render_page(rank("p", runs, made["chat"], FEW))
    assert "knob=&lt;b&gt;" in page
    assert "<b>" not in page.partition("<main>")[2]
    assert page.count("<svg ") == 2
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_an_interval_is_that_of_a_naive_bootstrap_over_seeds_and_rows():
    random = np.random.default_rng(1)
    change, weight = random.normal(1.0, 1.0, (3, 40)), random.integers(1, 9, 40)
    low, high = paired_interval(change * weight, weight)
    means = []
    for _ in range(4000):
        seeds, rows = random.integers(0, 3, 3), random.integers(0, 40, 40)
        total = sum(change[s, r] * weight[r] for s in seeds for r in rows) / 3
        means.append(total / sum(weight[r] for r in rows))
    assert (low, high) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.06)
