"""Reports: the right model is asked the right thing, and references are what they say."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from flows.cli import main
from mypt.config import EvaluateConfig, PrepareConfig, Source
from mypt.data.dataset import open_dataset, tokenize
from mypt.errors import CheckpointError, ConfigError, ManifestError
from mypt.evaluation import report
from mypt.evaluation import report_page as plots
from mypt.evaluation.scores import Dialogue, EvaluationReport
from mypt.evaluation.token_scores import score_tokens
from mypt.inference.chat import ask
from mypt.references import DatasetRef
from mypt.training.checkpoints.checkpoint import load_model
from tests.mypt.evaluation.worlds import LEARNED, fit, make_world

FEW = EvaluateConfig(exercises=8, max_tokens=4, prompts=("Spell cat.", "Hi"), eval_iters=0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with make_world(tmp_path_factory.mktemp("made")) as found:
        yield found


@pytest.fixture(autouse=True)
def _home(made, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(made["home"]))


def write_again(found, folder):
    return report.write_report(found, folder).with_name("evaluation.html").read_text()


def said(name, prompt):
    model, tokenizer, _ = load_model(name)
    return ask(model, tokenizer, prompt, form="chat", max_tokens=FEW.max_tokens).text


def test_scores_hold_the_loss_of_that_model_on_that_data(made):
    scores = report.evaluate_model(made["sft"], made["chat"], FEW)
    model, _, _ = load_model("sft")
    tokens = score_tokens(model, open_dataset(made["chat"].path))
    assert scores.val_loss == pytest.approx(tokens.mean)
    assert scores.perplexity == pytest.approx(math.exp(tokens.mean))
    assert (scores.supervised, scores.available) == (len(tokens.loss), tokens.available)
    assert (scores.model, scores.checkpoint, scores.form) == ("sft", made["sft"], "chat")
    assert scores.exact_match.keys() == {"spell", "reverse", "sort", "add", "overall"}
    assert scores.asked == 8


def test_a_name_a_folder_and_a_reference_mean_the_same_model(made):
    by_reference = report.evaluate_model(made["sft"], made["chat"], FEW)
    assert report.evaluate_model("sft", made["chat"].path, FEW) == by_reference
    assert report.evaluate_model(Path(made["sft"].path), None, FEW) == by_reference


def test_the_form_follows_the_training_data_unless_it_is_given(made):
    assert report.evaluate_model("base", None, FEW).form == "plain"
    assert report.evaluate_model("sft", None, FEW).form == "chat"
    assert report.evaluate_model("base", made["chat"], FEW, form="chat").form == "chat"


@pytest.mark.usefixtures("made")
def test_nothing_asked_leaves_the_loss_alone():
    scores = report.evaluate_model("sft", None, EvaluateConfig(exercises=0))
    assert (scores.exact_match, scores.stop_recall, scores.asked) == ({}, None, 0)
    assert scores.val_loss > 0


def test_a_comparison_measures_both_on_the_same_data(made):
    config = FEW.model_copy(update={"sets": {"again": made["chat"].path}})
    found = report.compare("base", "sft", made["chat"], config, from_scratch="sft")
    assert found.base == report.evaluate_model("base", made["chat"], FEW, form="chat")
    assert found.base_plain == report.evaluate_model("base", made["chat"], FEW, form="plain")
    assert found.sft == report.evaluate_model("sft", made["chat"], FEW, form="chat")
    assert found.from_scratch == found.sft
    assert found.base.val_loss == found.base_plain.val_loss != found.sft.val_loss
    assert found.dataset == made["chat"]
    assert found.sets.keys() == {"chat", "base corpus", "again"}
    assert found.sets["again"] == found.sets["chat"]
    assert found.sets["chat"].change == pytest.approx(found.sft.val_loss - found.base.val_loss)
    own = report.evaluate_model("base", None, FEW).val_loss
    assert found.sets["base corpus"].before == pytest.approx(own)
    for prompt, dialogue in zip(FEW.prompts, found.dialogues, strict=True):
        assert dialogue == Dialogue(
            prompt=prompt, base=said("base", prompt), sft=said("sft", prompt)
        )
        assert dialogue.base != dialogue.sft


def test_a_report_is_written_and_reads_back_the_same(made, tmp_path):
    found = report.compare("base", "sft", made["chat"], FEW)
    path = report.write_report(found, tmp_path / "new" / "folder")
    assert path.name == "evaluation.json"
    page = path.with_name("evaluation.html").read_text()
    assert page.count("<figure ") == 4
    assert page.count("<svg") == 3, "how sure a model is that was hardly trained is one point"
    assert not re.search(r"<script|<img|\b(src|href)=\"http", page)
    assert "base corpus" in page
    assert "light-dark(" in page
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--accent)" in drawn
    assert set(re.findall(r"#[0-9a-f]{6}", drawn)) <= {"#000000"}, "a dark page turns its plots"
    assert write_again(found, tmp_path / "again") == page
    assert EvaluationReport.model_validate_json(path.read_bytes()) == found
    assert json.loads(path.read_text())["from_scratch"] is None


@pytest.mark.usefixtures("made")
def test_a_file_of_questions_is_asked_and_every_answer_shown(tmp_path, capsys):
    asked = tmp_path / "asked.jsonl"
    rows = [{"question": "Hi <b>you</b>", "answer": "no"}]
    rows.append({"question": "Spell cat.", "answer": said("sft", "Spell cat.")})
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", "sft", "--questions", str(asked), "--eval_iters", "1"]
    out = tmp_path / "scores"
    assert main([*words, "--out_dir", str(out)]) == 0
    assert "95 % between" in capsys.readouterr().out
    found = EvaluationReport.model_validate_json((out / "evaluation.json").read_bytes())
    assert [answer.question for answer in found.sft.answers] == [row["question"] for row in rows]
    assert not found.sft.answers[0].right
    assert found.base.answers
    page = (out / "evaluation.html").read_text()
    assert "of 2 right, word for word" in page
    assert "Hi &lt;b&gt;you&lt;/b&gt;" in page
    assert main([*words, "--form", "plain"]) == 2
    assert "are asked as a chat" in capsys.readouterr().err


@pytest.mark.usefixtures("made")
def test_a_base_model_that_was_asked_nothing_stands_there_once():
    found = report.report_on("sft", None, EvaluateConfig(exercises=0))
    assert list(found.models) == ["base", "fine-tuned"]
    assert list(report.report_on("sft", None, FEW).models)[:2] == ["base, as chat", "base, as text"]


@pytest.mark.usefixtures("made")
def test_a_page_says_over_how_many_tokens_and_batches_its_losses_are(tmp_path):
    some = report.report_on("sft", None, EvaluateConfig(exercises=0, eval_iters=1))
    all_of_it = report.report_on("sft", None, EvaluateConfig(exercises=0, eval_iters=0))
    page, whole = (write_again(found, tmp_path / "page") for found in (some, all_of_it))
    assert f"nats a token, over {some.sft.supervised:,}<" in page
    assert f"over {some.sft.supervised:,} of {some.sft.available:,} supervised tokens" in page
    assert "in at most 1 batches (eval_iters 1; 0 scores all)" in page
    assert f"over {some.sft.available:,} of {some.sft.available:,} supervised tokens" in whole
    assert "eval_iters" not in whole


def test_a_single_point_is_said_in_words_and_not_drawn(made, tmp_path):
    fit("once", made["chat"].path, "base", **LEARNED, max_iters=1)
    found = report.report_on("once", None, EvaluateConfig(exercises=0))
    one = found.sft.tokens.calibration[:1]
    tokens = {
        name: scores.tokens.model_copy(update={"calibration": one})
        for name, scores in (("base", found.base), ("sft", found.sft))
    }
    sure = {
        name: getattr(found, name).model_copy(update={"tokens": tokens[name]}) for name in tokens
    }
    drawn = plots.plots(found.model_copy(update=sure))
    said = f"{one[0].confidence:.1%} sure of the likeliest token, right in {one[0].accuracy:.1%}"
    assert drawn["Calibration"].count(said) == 2
    assert drawn["Loss while training"].startswith("<svg"), "the base model has a curve"
    page = write_again(found.model_copy(update=sure), tmp_path)
    assert f"<p>{drawn['Calibration']}</p>" in page
    alone = plots.plots(found.model_copy(update={"base": None}))
    assert "model, at step 1: " in alone["Loss while training"]


def test_a_report_on_one_model_has_its_parent_beside_it(made):
    found = report.report_on("sft", None, FEW)
    assert found == report.compare("base", "sft", made["chat"], FEW)
    assert found.sft == report.evaluate_model("sft", None, FEW)


def test_a_report_on_a_model_that_began_at_random_has_it_alone(tmp_path):
    found = report.report_on("base", None, FEW)
    assert (found.base, found.base_plain, found.sets) == (None, None, {})
    assert found.sft == report.evaluate_model("base", None, FEW)
    assert [said.prompt for said in found.dialogues] == list(FEW.prompts)
    path = report.write_report(found, tmp_path)
    assert EvaluationReport.model_validate_json(path.read_bytes()) == found
    page = path.with_name("evaluation.html").read_text()
    assert page.count("<svg") == 2, "plain text has no masks to draw"
    for word in ("Fine-tuned", "fine-tuned", "base, as", ", base", ">Base<", "None"):
        assert word not in page


def test_a_text_model_that_went_on_from_another_is_compared_as_text(made):
    text = report.training_data(Path(made["base"].path))
    fit("more", text.path, "base")
    found = report.report_on("more", None, FEW)
    assert list(found.models) == ["base", "fine-tuned"]
    assert found.base == report.evaluate_model("base", text, FEW, form="plain")
    assert found.sets.keys() == {"text", "base corpus"}


def test_a_parent_that_is_gone_is_named(made, monkeypatch, tmp_path):
    shutil.copytree(made["home"], tmp_path / "home")
    shutil.rmtree(tmp_path / "home" / "models" / "base")
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "home"))
    hidden = made["home"].rename(made["home"].with_name("hidden"))
    try:
        with pytest.raises(CheckpointError, match="base step 2, which sft was made from"):
            report.report_on("sft", None, FEW)
    finally:
        hidden.rename(made["home"])


@pytest.mark.usefixtures("made")
def test_the_command_writes_the_report_once(tmp_path, capsys):
    words = ["evaluate", "sft", "--eval_iters", "0", "--out_dir"]
    assert main([*words, str(tmp_path / "out")]) == 0
    assert f"written: {tmp_path / 'out'}" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["evaluation.html", "evaluation.json"]
    found = EvaluationReport.model_validate_json((tmp_path / "out" / names[1]).read_bytes())
    assert found.base.model == "base"
    assert main([*words, str(tmp_path / "out")]) == 2
    assert main([*words, str(tmp_path / "new"), "--gate"]) == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("losses", "labels"),
    [
        ([5.7, 5.0], {"5", "5.2", "5.4", "5.6"}),
        ([5.6, 0.6], {"1", "2", "5"}),
        ([8.0, 1e-4], {"0.001", "0.01", "0.1", "1"}),
    ],
)
def test_losses_stand_beside_the_axis_as_people_write_them(losses, labels):
    axes = Figure().subplots()
    axes.plot(losses)
    axes.set_yscale("log")
    plots.plain_ticks(axes)
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.yaxis.get_majorticklocs() if low <= tick <= high]
    assert labels <= set(axes.yaxis.get_major_formatter().format_ticks(ticks))
    assert len(ticks) <= 8


def test_a_reference_to_something_else_is_refused(made):
    with pytest.raises(CheckpointError, match="is not the one that was referred to"):
        report.evaluate_model(made["sft"].model_copy(update={"digest": "0" * 64}), None, FEW)
    other = DatasetRef(path=made["chat"].path, digest="0" * 64)
    with pytest.raises(ManifestError, match="not the one that was referred to"):
        report.evaluate_model("sft", other, FEW)


@pytest.mark.usefixtures("made")
def test_data_of_another_tokenizer_is_refused(tmp_path):
    raw = tmp_path / "raw.txt"
    raw.write_text("\n".join(f"line {i}" for i in range(50)))
    config = PrepareConfig(sources=(Source(path=str(raw)),), tokenization="char", val_fraction=0.0)
    other = tokenize(config, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"--tokenizer_from"):
        report.evaluate_model("sft", other, FEW)


def test_data_that_moved_is_found_and_data_that_is_gone_is_named(made, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere"
    shutil.copytree(made["home"], moved)
    shutil.rmtree(moved / "datasets" / "text")
    (moved / "datasets" / "chat").rename(moved / "datasets" / "renamed")
    monkeypatch.setenv("MYPT_HOME", str(moved))
    hidden = made["home"].rename(made["home"].with_name("hidden"))
    try:
        assert report.evaluate_model("sft", None, FEW).asked == 8
        with pytest.raises(ManifestError, match="--dataset_dir"):
            report.evaluate_model("base", None, FEW)
    finally:
        hidden.rename(made["home"])


def test_models_of_different_contexts_are_compared_on_the_same_tokens(made):
    """A base from elsewhere reads thousands of tokens, and learns on in rows of a few hundred."""
    turned = LEARNED | {"pos_encoding": "rope"}
    wide = fit("wide", made["chat"].path, **turned, block_size=96)
    narrow = fit("narrow", made["chat"].path, "wide", **turned, block_size=48)
    found = report.compare(wide, narrow, made["chat"], EvaluateConfig(exercises=0))
    assert found.base.supervised == found.sft.supervised == found.sets["chat"].tokens
    alone = report.evaluate_model(narrow, made["chat"], EvaluateConfig(exercises=0))
    assert found.sft.val_loss == alone.val_loss
