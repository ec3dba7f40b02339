"""An evaluation as one self-contained HTML page: figures, plots, answers; nothing is loaded."""

from mypt.evaluation.plots import plots
from mypt.evaluation.scores import EvaluationReport, ModelScores, harness_metrics
from mypt.pages.render import render


def render_page(report: EvaluationReport) -> str:
    """Return the page; what models and data hold goes in as text.

    Raises:
        CheckpointError: If a checkpoint's history is damaged.
        ManifestError: If the dataset is.
    """
    from markupsafe import Markup

    return render(
        "evaluation.html",
        report=report,
        headings=list(report.models),
        figures=_figures(list(report.models.values())),
        compared=["base", "fine-tuned"] if report.base else ["model"],
        groups=_groups(report),
        # Drawn here; every text in them was escaped by whoever drew.
        plots={title: Markup(drawn) for title, drawn in plots(report).items()},
    )


def _figures(models: list[ModelScores]) -> dict[str, list[str]]:
    """Return each figure of all models, as text; empty where it was not measured."""
    tokens = [scores.tokens for scores in models]
    tasks = dict.fromkeys(task for scores in models for task in scores.exact_match)
    values: dict[str, list[float | None]] = {
        "loss, nats a token": [scores.val_loss for scores in models],
        "perplexity": [scores.perplexity for scores in models],
        "bits per byte": [t.bits_per_byte if t else None for t in tokens],
        "accuracy of tokens": [t.all.accuracy if t else None for t in tokens],
        "stop recall, where a turn ends": [t.stop_recall if t else None for t in tokens],
        "false stops": [t.false_stops if t else None for t in tokens],
        **{f"exact match, {task}": [s.exact_match.get(task) for s in models] for task in tasks},
        "answers that stop": [scores.stop_recall for scores in models],
        "answers that leak role tags": [scores.leak_rate for scores in models],
        "repeated stretches": [scores.repetition for scores in models],
        **{
            f"harness, {task}, {name}": [s.harness.get(task, {}).get(name) for s in models]
            for task, name in harness_metrics(models)
        },
    }
    return {
        name: ["" if value is None else f"{value:.4f}" for value in row]
        for name, row in values.items()
    }


def _groups(report: EvaluationReport) -> dict[str, list[tuple[str, str, list[str]]]]:
    """Return by group: its members, their tokens, loss and accuracy of each model."""
    models = [scores.tokens for scores in (report.base, report.sft) if scores and scores.tokens]
    if not models:
        return {}
    return {
        group: [
            (
                name,
                f"{found.tokens:,}",
                [f"{of.groups[group][name].loss:.3f}" for of in models]
                + [f"{of.groups[group][name].accuracy:.1%}" for of in models],
            )
            for name, found in members.items()
        ]
        for group, members in models[-1].groups.items()
    }
