"""What a checkpoint is worth: its figures, beside those of the model that it was made from."""

from pathlib import Path
from typing import Literal

from mypt import files
from mypt.config import EvaluateConfig
from mypt.data.conversations import Form
from mypt.data.dataset import Dataset
from mypt.data.pairs import SIDES
from mypt.errors import CheckpointError
from mypt.evaluation.breakdown import compare_pairs, difference
from mypt.evaluation.measuring import (
    Subject,
    answers_of,
    evaluate_model,
    form_of,
    load_subject,
    open_data,
    score,
    score_answers,
    score_loss,
    tokens_of,
    training_data,
)
from mypt.evaluation.report_page import render_page
from mypt.evaluation.scores import EVALUATION, Dialogue, Difference, EvaluationReport
from mypt.evaluation.token_scores import TokenScores, of_side
from mypt.home import checkpoint_to_use
from mypt.provenance.search import Search
from mypt.references import CheckpointRef, DatasetRef
from mypt.training.lineage import IMPORTED, read_lineage

__all__ = [
    "compare",
    "evaluate_model",
    "report_on",
    "training_data",
    "write_report",
]

PAGE = "evaluation.html"
BASE_CORPUS = "base corpus"
DATA_OF_BASE = "data of the base"
"""The same where learning from pairs followed a fine-tuning, whose data are no corpus."""


def compare(
    base: CheckpointRef | str | Path,
    sft: CheckpointRef | str | Path,
    dataset: DatasetRef | str | Path,
    config: EvaluateConfig = EvaluateConfig(),
    *,
    form: Form = "chat",
    from_scratch: CheckpointRef | str | Path | None = None,
) -> EvaluationReport:
    """Measure a base model and its fine-tuned model side by side.

    Args:
        base: The base model; asked in the other's form, and in plain text too.
        sft: The fine-tuned model.
        dataset: Data whose validation split both are scored on.
        config: How much to score and to ask; its prompts become the dialogues.
        form: How both are asked.
        from_scratch: A model fine-tuned from random weights, to show what the base gave.

    Raises:
        MyptError: As :func:`mypt.evaluation.measuring.evaluate_model`.
    """
    data = open_data(dataset)
    before, after = load_subject(base), load_subject(sft)
    scored, scored_after = _both(before, after, data, config)
    base_scores = score_loss(before, data, scored, form)
    sft_scores = score_loss(after, data, scored_after, form)
    said = [answers_of(subject, config, form) for subject in (before, after)]
    plain = score_answers(base_scores, before, config, "plain") if form == "chat" else None
    scratch = None if from_scratch is None else load_subject(from_scratch)
    return EvaluationReport(
        dataset=DatasetRef(path=str(data.path), digest=data.manifest.digest),
        base=score_answers(base_scores, before, config, form),
        base_plain=plain,
        sft=score_answers(sft_scores, after, config, form),
        eval_iters=config.eval_iters,
        from_scratch=None if scratch is None else score(scratch, data, config, form),
        dialogues=tuple(
            Dialogue(prompt=prompt, base=one, sft=other)
            for prompt, one, other in zip(config.prompts, *said, strict=True)
        ),
        pairs=compare_pairs(scored, scored_after) if data.paired else None,
        sets=_own_sets(data, scored, scored_after, form)
        | _other_sets(before, after, config, DATA_OF_BASE if data.paired else BASE_CORPUS),
    )


def report_on(
    model: str | Path,
    dataset: DatasetRef | str | Path | None = None,
    config: EvaluateConfig = EvaluateConfig(),
    form: Form | Literal["auto"] = "auto",
) -> EvaluationReport:
    """Measure one model, beside the one that its training began with where there was one.

    Args:
        model: A model name, a model folder or a step folder.
        dataset: Whose validation split is scored; None: the one it was trained on.
        config: How much to score and to ask; its prompts become the dialogues.
        form: How it is asked; auto follows the data it was trained on.

    Raises:
        CheckpointError: If the model it began with is gone, so that the two cannot be compared.
        MyptError: As :func:`mypt.evaluation.measuring.evaluate_model`.
    """
    folder = checkpoint_to_use(model)
    lineage = read_lineage(folder)
    form, dataset = form_of(lineage, form, config), dataset or training_data(folder)
    if parent := lineage.parent:
        place = Search(folder).checkpoint(parent.path, parent.digest)
        if place is None:
            raise CheckpointError(
                f"{parent.model_name} step {parent.step}, which {lineage.model_name} was made from,"
                f" is neither at {parent.path} nor nearby; bring it back, or leave --out_dir out"
            )
        return compare(place, folder, dataset, config, form=form)
    subject, data = load_subject(folder), open_data(dataset)
    said = answers_of(subject, config, form)
    return EvaluationReport(
        dataset=DatasetRef(path=str(data.path), digest=data.manifest.digest),
        sft=score(subject, data, config, form),
        eval_iters=config.eval_iters,
        dialogues=tuple(
            Dialogue(prompt=prompt, sft=text)
            for prompt, text in zip(config.prompts, said, strict=True)
        ),
    )


def write_report(report: EvaluationReport, folder: Path) -> Path:
    """Write a report into ``folder``, which is made if need be, and return the JSON's path.

    ``evaluation.json`` holds every figure, ``evaluation.html`` is a page to send around.
    """
    files.make_folder(folder)
    path = folder / EVALUATION
    files.write_bytes(folder / PAGE, render_page(report).encode())
    files.write_json(path, report.model_dump(mode="json"))
    return path


def _own_sets(
    data: Dataset, before: TokenScores, after: TokenScores, form: Form
) -> dict[str, Difference]:
    """Return what changed on the dataset itself, of preference pairs on each side."""
    if not data.paired:
        return {"chat" if form == "chat" else "text": difference(before, after)}
    return {
        name: difference(*(of_side(scores, data, side) for scores in (before, after)))
        for side, name in enumerate(SIDES)
    }


def _other_sets(
    before: Subject, after: Subject, config: EvaluateConfig, own: str
) -> dict[str, Difference]:
    """Score both models on the base's data, to see what was forgotten, and on the named sets.

    What a base from elsewhere was trained on is not here.
    """
    places: dict[str, DatasetRef | str] = {}
    if before.checkpoint.lineage.dataset.kind != IMPORTED:
        places[own] = training_data(before.checkpoint.path)
    found = {}
    for name, place in (places | config.sets).items():
        data = open_data(place)
        found[name] = difference(*_both(before, after, data, config))
    return found


def _both(
    before: Subject, after: Subject, data: Dataset, config: EvaluateConfig
) -> tuple[TokenScores, TokenScores]:
    """Return both models' scores of the same tokens, in rows that either of them can read."""
    block_size = min(subject.model.config.block_size for subject in (before, after))
    one, other = (tokens_of(subject, data, config, block_size) for subject in (before, after))
    return one, other
