import base64
import math
import threading
import time

import httpx
import pytest

from mypt.data.manifest import Density, MaskStats
from mypt.inspection.checks.findings import Finding, ValidationReport, ValidationStats, Where
from tasks.reporting import artifacts

STATS = MaskStats(
    total=Density(tokens=100, supervised=30),
    by_split={"train": Density(tokens=90, supervised=27)},
    by_role={"user": Density(tokens=60, supervised=0)},
    by_source={"chat": Density(tokens=100, supervised=30)},
    rows=12,
    rows_unsupervised=2,
)


@pytest.fixture
def shown(monkeypatch):
    """What would be shown, as in a flow run."""
    found = {}

    def table(rows, key, description):
        found[key] = (rows, description)

    def markdown(text, key, description):
        assert description.endswith(".")
        found[key] = text

    monkeypatch.setattr(artifacts, "create_table_artifact", table)
    monkeypatch.setattr(artifacts, "create_markdown_artifact", markdown)
    monkeypatch.setattr(artifacts.FlowRunContext, "get", lambda: object())
    monkeypatch.setattr(artifacts, "_waited", 0.0)
    return found


def test_mask_statistics_are_a_table_by_split_role_and_source(shown):
    artifacts.mask_statistics("Demo_chat-0A", STATS)
    rows, description = shown["mask-statistics-demo-chat-0a"]
    assert [row["tokens of"] for row in rows] == [
        "all",
        "split train",
        "role user",
        "source chat",
    ]
    assert rows[0] == {
        "tokens of": "all",
        "tokens": 100,
        "supervised": 30,
        "density": "30.0%",
    }
    assert description.endswith("30.0%. 2 of 12 rows have none.")


def test_findings_are_a_table_also_when_there_are_none(shown):
    stats = ValidationStats(rows={}, tokens={})
    finding = Finding(
        level="warning", code="leak", message="rows leak", count=3, examples=(Where(detail="x"),)
    )
    report = ValidationReport(dataset="0" * 64, findings=(finding,), stats=stats)
    artifacts.validation_findings("demo", report)
    rows, description = shown["validation-demo"]
    assert rows[0]["for example"] == "x"
    assert description == "demo: 0 errors, 1 warning, 0 notices."
    artifacts.validation_findings("demo", report.model_copy(update={"findings": ()}))
    assert shown["validation-demo"][0] == []


def test_scores_stand_side_by_side(shown):
    artifacts.scores("demo", {"base": {"val_loss": 2.0}, "sft": {"val_loss": 1 / 3, "stops": 0.9}})
    rows, _ = shown["evaluation-demo"]
    assert rows == [
        {"figure": r"val\_loss", "base": 2.0, "sft": 0.3333},  # Prefect takes cells for Markdown
        {"figure": "stops", "base": None, "sft": 0.9},
    ]


def test_a_figure_that_is_no_number_is_shown_and_can_be_kept(shown):
    with artifacts.collected() as kept:
        artifacts.scores("demo", {"base": {"perplexity": math.inf}, "sft": {"perplexity": None}})
    rows, _ = shown["evaluation-demo"]
    assert rows == [{"figure": "perplexity", "base": "inf", "sft": None}]
    (part,) = kept
    assert artifacts.Shown.model_validate_json(part.model_dump_json()) == part


def test_a_loss_curve_is_a_picture_in_the_text_and_what_it_is_made_of_a_table(shown):
    groups = {"class": {"stop": (0.25, 0.5), "reasoning": (math.nan, 1.0)}}
    artifacts.loss_curves("demo", {"loss": [(1, 2.0), (2, 1.0)], "val_loss": []}, groups)
    text = shown["loss-demo"]
    picture, _, table = text.partition("\n\n")
    start, _, data = picture.partition("base64,")
    assert start == "![losses of demo](data:image/png;"
    assert base64.b64decode(data.rstrip(")")).startswith(b"\x89PNG")
    assert table.splitlines()[2:] == [
        "| class | stop | 0.2500 | 0.5000 |",
        "| class | reasoning |  | 1.0000 |",
    ]


def test_outside_of_prefect_nothing_is_shown(shown, monkeypatch):
    monkeypatch.setattr(artifacts.FlowRunContext, "get", lambda: None)
    artifacts.mask_statistics("demo", STATS)
    assert shown == {}


@pytest.mark.usefixtures("shown")
def test_an_api_that_refuses_stops_nothing(monkeypatch, capsys):
    def refuse(*_, **__):
        raise ConnectionError("no API")

    monkeypatch.setattr(artifacts, "create_table_artifact", refuse)
    artifacts.mask_statistics("demo", STATS)
    said = "an artifact is not shown in Prefect: no API; the work goes on without"
    assert said in capsys.readouterr().err


def test_what_an_api_answered_is_said_in_our_words():
    request = httpx.Request("POST", "http://127.0.0.1:4200/api/artifacts/")
    busy = httpx.HTTPStatusError(
        "Server error '503 Service Unavailable' for url ...\nFor more information check: ...",
        request=request,
        response=httpx.Response(503, request=request),
    )
    assert artifacts.away(busy) == "it answered 503, too busy; the work goes on without"
    lost = httpx.ConnectError("All connection attempts failed", request=request)
    assert artifacts.away(lost) == "it did not answer (ConnectError); the work goes on without"


@pytest.mark.usefixtures("shown")
def test_an_api_that_never_answers_is_waited_for_once(monkeypatch):
    answer = threading.Event()
    waits = []
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda *_, **__: answer.wait())
    join = threading.Thread.join

    def recorded_join(thread, timeout=None):
        waits.append(timeout)
        join(thread, 0.01)

    monkeypatch.setattr(threading.Thread, "join", recorded_join)
    artifacts.mask_statistics("demo", STATS)
    artifacts.mask_statistics("demo", STATS)
    answer.set()
    assert waits == [2.0, 0.0]


def test_the_link_waits_in_the_background_for_its_address(shown):
    addresses = iter([None, None, "http://here"])
    artifacts.mlflow_link("demo", "file", lambda: next(addresses))
    for thread in threading.enumerate():
        if thread.daemon and thread is not threading.current_thread() and "Thread-" in thread.name:
            thread.join(5)
    assert shown["mlflow-run"] == "[demo in MLflow](http://here), kept in `file`"


def test_names_from_data_are_no_markdown_and_steer_no_terminal(shown):
    artifacts.mlflow_link("small on [x](http://evil)\x1b[2J", "sqlite", lambda: "http://here")
    stats = STATS.model_copy(update={"by_source": {"a\u202eb\x1b[2J": STATS.total}})
    artifacts.mask_statistics("demo", stats)
    rows, _ = shown["mask-statistics-demo"]
    assert rows[-1]["tokens of"] == r"source a\\u202eb\\x1b\[2J"
    while "mlflow-run" not in shown:
        time.sleep(0.01)
    text = shown["mlflow-run"]
    assert text.startswith(r"[small on \[x\]\(`http://evil)\x1b[2J` in MLflow](http://here)")
