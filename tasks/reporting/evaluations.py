"""What an evaluation tells the terminal, MLflow and Prefect."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from mypt.evaluation.scores import (
    AskedQuestion,
    EvaluationReport,
    ModelScores,
    Summary,
    harness_metrics,
)
from mypt.files import digest_json
from mypt.references import DatasetRef
from mypt.text import visible
from tasks.reporting import artifacts
from tasks.reporting.inputs import measured_on
from tasks.stages import tell
from tasks.tracking.journal import Journal
from tasks.tracking.recording import recorded
from tasks.tracking.records import Artifact, Metrics, Record, Tags, Text, Told, Traces

_EVALUATION = {"mlflow.runType": "evaluation"}
"""Tag by which MLflow lists a run where the answers of two stand side by side."""
_MOST = 100
"""Questions of which a model's answers are traces: MLflow takes 10 to 40 ms for each."""
_TOGETHER = 10
"""Answers of one record: what a slow MLflow takes well within the patience at a run's end."""


def score_metrics(scores: ModelScores, prefix: str = "") -> dict[str, float]:
    """Return the figures of one model, flat; what was not measured is left out."""
    values = {
        "val_loss": scores.val_loss,
        "perplexity": scores.perplexity,
        "pairs_preferred": scores.preferred,
        "stop_recall": scores.stop_recall,
        **{f"exact_match_{task}": share for task, share in scores.exact_match.items()},
        "leak_rate": scores.leak_rate,
        "repetition": scores.repetition,
        **{
            f"harness/{task}/{name}": scores.harness[task][name]
            for task, name in harness_metrics([scores])
        },
    }
    return {f"{prefix}{key}": value for key, value in values.items() if value is not None}


def pair_metrics(summary: Summary) -> dict[str, float]:
    """Return what became of held-out preference pairs, and what was forgotten; none without any.

    ``change_SET`` is in nats per token, of each side and of what the model before had learned.
    """
    if summary.pairs is None:
        return {}
    found = summary.pairs
    figures = {"accuracy": found.accuracy, "margin": found.margin, "count": found.pairs}
    changes = {f"change_{name.replace(' ', '_')}": of.change for name, of in summary.sets.items()}
    return {f"pairs/{name}": float(value) for name, value in (figures | changes).items()}


def summary_metrics(summary: Summary) -> dict[str, float]:
    """Return the figures by which runs are compared."""
    return {
        **score_metrics(summary.sft),
        **pair_metrics(summary),
        **score_metrics(summary.base, "base_"),
        **score_metrics(summary.base_plain, "base_plain_"),
        "mask_density": summary.mask_density,
        "supervised_tokens": summary.supervised_tokens,
    }


def evaluation_tables(summary: Summary) -> Iterator[Record]:
    """Yield the figures, and what both models answered, as tables that MLflow shows."""
    columns = _columns(summary)
    figures = dict.fromkeys(name for values in columns.values() for name in values)
    report = EvaluationReport.model_validate_json(Path(summary.evaluation).read_bytes())
    tables = {
        "figures.json": (
            ["figure", *columns],
            [[name, *(values.get(name) for values in columns.values())] for name in figures],
        ),
        "sets.json": (
            ["set", "before", "after", "change", "low", "high", "tokens"],
            [
                [name, of.before, of.after, of.change, of.low, of.high, of.tokens]
                for name, of in report.sets.items()
            ],
        ),
        "tokens.json": (
            ["group", "of", "tokens", "base loss", "loss", "base accuracy", "accuracy"],
            list(_token_rows(report)),
        ),
        "dialogues.json": (
            ["prompt", "base", "fine-tuned"],
            [
                [visible(text or "") for text in (said.prompt, said.base, said.sft)]
                for said in report.dialogues
            ],
        ),
    }
    for name, (heading, rows) in tables.items():
        values = {"columns": heading, "data": rows}
        yield Text(name=name, text=json.dumps(values, indent=1))
    # By this tag MLflow knows tables whose rows it can put beside those of other runs.
    shown = json.dumps([{"path": name, "type": "table"} for name in tables])
    yield Tags(values={"mlflow.loggedArtifacts": shown})


def _token_rows(report: EvaluationReport) -> Iterator[list[object]]:
    """Yield the loss taken apart, base model beside fine-tuned model."""
    before, after = report.base.tokens if report.base else None, report.sft.tokens
    if before is None or after is None:
        return
    for group, members in after.groups.items():
        for name, new in members.items():
            old = before.groups[group][name]
            yield [group, visible(name), new.tokens, old.loss, new.loss, old.accuracy, new.accuracy]


def report_evaluation(run: Journal, name: str, summary: Summary, dataset: DatasetRef) -> None:
    """Show the models' figures side by side, each with the checkpoint that it is about.

    Args:
        run: The evaluation's journal.
        name: What people call the pipeline.
        summary: What was measured.
        dataset: Whose validation split was scored.
    """
    asked = {"": summary.sft, "base_": summary.base, "base_plain_": summary.base_plain}
    for prefix, scores in asked.items():
        subject = measured_on(scores.checkpoint, dataset)
        values, step = score_metrics(scores, prefix), scores.checkpoint.step
        run.write(Metrics(step=step, values=values, subject=subject))
    run.write(Metrics(values={"mask_density": summary.mask_density} | pair_metrics(summary)))
    for path in sorted(Path(summary.evaluation).parent.iterdir()):
        run.write(Artifact(path=str(path)))
    for record in evaluation_tables(summary):
        run.write(record)
    report_answers(run.name, Path(summary.evaluation))
    artifacts.scores(name, _columns(summary))
    before, after = (
        scores.exact_match.get("overall", 0.0) for scores in (summary.base, summary.sft)
    )
    if found := summary.pairs:
        tell(f"{name}: pairs {found.accuracy:.1%}, margin {found.margin:+.3f} nats")
    tell(
        f"{name}: exact match {before:.1%} -> {after:.1%}, val loss {summary.base.val_loss:.3f} ->"
        f" {summary.sft.val_loss:.3f}; {summary.evaluation}"
    )


def report_answers(evaluation: str, path: Path) -> None:
    """Record what each model answered, as a run of its own below the evaluation's.

    Args:
        evaluation: The evaluation's journal.
        path: The whole report.
    """
    report = EvaluationReport.model_validate_json(path.read_bytes())
    asked = zip(answer_journals(evaluation), (report.base, report.sft), strict=True)
    for journal, scores in asked:
        if scores is None or not scores.answers:
            continue
        model, all_of = f"{scores.model} step {scores.checkpoint.step}", len(scores.answers)
        cut = f" to {len(_spread(scores.answers))} of {all_of} questions" if all_of > _MOST else ""
        with recorded(journal, f"answers of {model}{cut}", tags=_EVALUATION) as run:
            run.write(Metrics(step=scores.checkpoint.step, values=score_metrics(scores)))
            for record in _traces(model, scores):
                run.write(record)


def answer_journals(evaluation: str) -> tuple[str, str]:
    """Return the journals of what the base model and the fine-tuned one answered."""
    return f"{evaluation}-base", f"{evaluation}-tuned"


def _traces(model: str, scores: ModelScores) -> Iterator[Traces]:
    answers = _spread(scores.answers)
    questions = [(found.task, found.question, found.expected) for found in answers]
    for first in range(0, len(questions), _TOGETHER):
        yield Traces(
            model=model,
            checkpoint=scores.checkpoint.digest,
            first=first,
            told=tuple(map(_told, answers[first : first + _TOGETHER])),
            questions=digest_json(questions),
        )


def _spread(answers: Sequence[AskedQuestion]) -> Sequence[AskedQuestion]:
    """Return answers evenly spread over all, the same for models that were asked the same."""
    return answers[:: max(1, -(-len(answers) // _MOST))]


def _told(answer: AskedQuestion) -> Told:
    found = {"exact_match": answer.right, "stopped": answer.stopped, "leaked": answer.leaked}
    return Told(
        asked={"question": answer.question},
        said=answer.said,
        expected=answer.expected,
        found={name: value for name, value in found.items() if value is not None},
        tags={"task": answer.task},
    )


def _columns(summary: Summary) -> dict[str, dict[str, float]]:
    return {
        "base (chat form)": score_metrics(summary.base),
        "base (plain form)": score_metrics(summary.base_plain),
        "sft": score_metrics(summary.sft) | pair_metrics(summary),
    }
