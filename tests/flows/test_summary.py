"""The printed tables: every figure in its place, and nothing a model wrote can act."""

from rich.console import Console

from flows.summary import render_report
from mypt.evaluation.scores import Dialogue, EvaluationReport, ModelScores
from mypt.references import CheckpointRef, DatasetRef


def scores(model="m", loss=1.5, **changes):
    values = {
        "model": model,
        "checkpoint": CheckpointRef(path="x", digest="0" * 64, step=1),
        "form": "chat",
        "val_loss": loss,
        "perplexity": 4.48,
        "supervised": 1234,
        "available": 5678,
        "exact_match": {"spell": 0.25, "overall": 0.125},
        "stop_recall": 0.75,
        "asked": 8,
    }
    return ModelScores.model_validate(values | changes)


def printed(thing, width=200) -> list[list[str]]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(thing)
    return [line.split("  ") for line in capture.get().splitlines()]


def cells(line: list[str]) -> list[str]:
    return [cell.strip() for cell in line if cell.strip()]


def test_figures_stand_under_their_headings():
    report = EvaluationReport(
        dataset=DatasetRef(path="d", digest="0" * 64),
        base=scores(),
        base_plain=scores(exact_match={}, stop_recall=None),
        sft=scores(loss=0.5, supervised=1),
    )
    lines = [cells(line) for line in printed(render_report(report))]
    assert lines[0] == ["loss", "perplexity", "spell", "overall", "stops"]
    assert lines[1] == ["base, as chat", "1.500", "4.48", "0.250", "0.125", "0.750"]
    assert lines[2] == ["base, as text", "1.500", "4.48"]
    assert lines[3] == ["fine-tuned", "0.500", "4.48", "0.250", "0.125", "0.750"]
    assert lines[4] == ["loss: nats over 1,234 of 5,678 supervised tokens of val"]


def test_a_report_names_each_way_of_asking_and_shows_the_dialogues():
    report = EvaluationReport(
        dataset=DatasetRef(path="d", digest="0" * 64),
        base=scores(loss=3.0),
        base_plain=scores(loss=3.1),
        sft=scores(loss=1.0),
        from_scratch=scores(loss=2.0),
        dialogues=(Dialogue(prompt="Hi", base="[red]x\x1b[31m", sft="Hello\nyou"),),
    )
    lines = [cells(line) for line in printed(render_report(report))]
    named = {line[0]: line[1] for line in lines if len(line) > 1}
    assert named["base, as chat"] == "3.000"
    assert named["base, as text"] == "3.100"
    assert named["from scratch"] == "2.000"
    text = "\n".join(" ".join(line) for line in lines)
    assert "fine-tuned 1.000" in text
    assert "[red]x" in text  # markup is not obeyed
    assert "\x1b" not in text  # nor are terminal codes
    assert "Hello" in text
    without = report.model_copy(update={"from_scratch": None})
    assert "scratch" not in str(printed(render_report(without)))


def test_five_tasks_fit_a_terminal_of_80_columns():
    wide = scores(exact_match=dict.fromkeys(("spell", "reverse", "sort", "add", "overall"), 1.0))
    report = EvaluationReport(
        dataset=DatasetRef(path="d", digest="0" * 64), base=wide, base_plain=wide, sft=wide
    )
    assert len(printed(render_report(report), width=80)) == 5


def test_what_the_base_says_is_dimmed_beside_the_answer():
    dialogues = (Dialogue(prompt="Hi", base="the the", sft="Hello"),)
    report = EvaluationReport(
        dataset=DatasetRef(path="d", digest="0" * 64),
        base=scores(),
        base_plain=scores(),
        sft=scores(),
        dialogues=dialogues,
    )
    console = Console(width=80, color_system="standard", force_terminal=True)
    with console.capture() as capture:
        console.print(render_report(report))
    assert "\x1b[2mthe the\x1b[0m" in capture.get()
    assert "\x1b[2mHello" not in capture.get()
