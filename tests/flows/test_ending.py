import os
from types import SimpleNamespace

import httpx
import pytest

from flows import ending as farewell
from flows.ending import cause_behind, leave_if_prefect_is_away
from flows.summary import show_summary
from mypt.config import PrepareConfig, Source
from mypt.data.dataset import tokenize
from mypt.errors import DataError, MyptError
from mypt.evaluation.report import write_report
from mypt.evaluation.scores import Dialogue, EvaluationReport, ModelScores, Summary
from mypt.references import CheckpointRef


@pytest.fixture
def summary(tmp_path):
    digest = "0123456789abcdef" * 4
    scores = ModelScores(
        model="m",
        checkpoint=CheckpointRef(
            path="/home/models/demo-chat-1/step_000300", digest=digest, step=3
        ),
        form="chat",
        val_loss=1.25,
        perplexity=3.49,
        supervised=100,
        available=100,
        exact_match={"spell": 0.5, "overall": 0.5},
        stop_recall=0.75,
    )
    config = PrepareConfig(sources=(Source(exercises="text", count=64),), tokenization="byte")
    report = EvaluationReport(
        dataset=tokenize(config, tmp_path / "dataset"),
        base=scores,
        base_plain=scores,
        sft=scores,
        dialogues=(Dialogue(prompt="[bold]Hi", base="x", sft="Hello"),),
    )
    return Summary(
        base=scores,
        sft=scores,
        base_plain=scores,
        policy="assistant",
        supervised_tokens=1234,
        mask_density=0.345,
        checkpoint=scores.checkpoint.path,
        evaluation=str(write_report(report, tmp_path)),
        digests={"chat_dataset": digest},
    )


@pytest.fixture
def left(monkeypatch):
    """The codes with which the process would have ended."""
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def run_against(url, monkeypatch):
    context = SimpleNamespace(client=SimpleNamespace(api_url=httpx.URL(url)), flow_run=None)
    monkeypatch.setattr(farewell.FlowRunContext, "get", lambda: context)


def test_the_last_page_shows_figures_and_places_and_ends_with_the_summary(
    summary, tmp_path, capsys
):
    show_summary(summary)
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    for wanted in ("1.250", "[bold]Hi", "0.345", "0123456789abcdef", "/step_000300", "mypt up"):
        assert wanted in text
    assert "mypt generate demo-chat-1 --prompt" in text
    assert lines[-1] == f"summary: {tmp_path / 'summary.json'}"


def test_a_run_whose_prefect_went_away_ends_well_with_its_figures(
    summary, left, monkeypatch, unused_port, capsys
):
    run_against(f"http://127.0.0.1:{unused_port}/api/", monkeypatch)
    leave_if_prefect_is_away(lambda: show_summary(summary))
    shown = capsys.readouterr()
    assert left == [0]
    assert "does not answer any more" in shown.err
    assert shown.out.splitlines()[-1].startswith("summary: ")


def test_a_run_whose_prefect_answers_goes_on(summary, left, monkeypatch, capsys):
    run_against("http://127.0.0.1/api/", monkeypatch)
    asked = []
    monkeypatch.setattr(farewell, "answers", lambda url: asked.append(url) or True)
    leave_if_prefect_is_away(lambda: show_summary(summary))
    assert left == []
    assert asked == ["http://127.0.0.1/api/health"]
    assert capsys.readouterr().out == ""


def test_an_error_of_ours_is_not_hidden_by_one_of_prefect():
    error = httpx.ConnectError("refused")
    error.__context__ = ExceptionGroup("while telling it", [ValueError("x")])
    error.__context__.__context__ = DataError("line 3 is no JSON")
    assert str(cause_behind(error)) == "line 3 is no JSON"
    alone = cause_behind(httpx.ConnectError("refused"))
    assert isinstance(alone, MyptError)
    assert "Prefect's API went away (refused)" in str(alone)
