"""What a checkpoint is worth: its loss, its answers, and what fine-tuning changed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mypt import files
from mypt.config import EvaluateConfig, TrainConfig
from mypt.data.dataset import Dataset, open_dataset
from mypt.data.exercises import test_exercises
from mypt.data.tokenizer import Tokenizer
from mypt.errors import CheckpointError, ConfigError, ManifestError
from mypt.evaluation.breakdown import describe, difference
from mypt.evaluation.exact_match import ask_exercises
from mypt.evaluation.report_page import render_page
from mypt.evaluation.scores import Dialogue, Difference, EvaluationReport, ModelScores
from mypt.evaluation.tables import render_report
from mypt.evaluation.token_scores import TokenScores, score_tokens
from mypt.inference.chat import Form, answer_prompts, prompt_of
from mypt.model.gpt import GPT
from mypt.references import CheckpointRef, DatasetRef
from mypt.training.checkpoint import Checkpoint, load_model
from mypt.training.compute import resolve
from mypt.training.lineage import read_lineage
from mypt.training.search import Search

__all__ = [
    "EVALUATION",
    "compare",
    "evaluate_model",
    "render_report",
    "training_data",
    "write_report",
]

EVALUATION = "evaluation.json"
PAGE = "evaluation.html"
BASE_CORPUS = "base corpus"


@dataclass(frozen=True, slots=True)
class _Subject:
    """A model in memory, ready to be asked."""

    model: GPT
    tokenizer: Tokenizer
    checkpoint: Checkpoint

    @property
    def name(self) -> str:
        return self.checkpoint.lineage.model_name


def evaluate_model(
    checkpoint: CheckpointRef | str | Path,
    dataset: DatasetRef | str | Path | None = None,
    config: EvaluateConfig = EvaluateConfig(),
    form: Form | Literal["auto"] = "auto",
) -> ModelScores:
    """Measure one checkpoint.

    Args:
        checkpoint: A reference, whose digest is checked; or a model name, a model folder or a
            step folder.
        dataset: Whose validation split is scored; None: the one it was trained on.
        config: How much to score and to ask.
        form: How the exercises are asked; auto follows the data it was trained on.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged or not the one referred to.
        ManifestError: If the dataset is missing, damaged or not the one referred to.
        ConfigError: If model and dataset have different tokenizers.
        DataError: If there is nothing to score.
    """
    subject = _load(checkpoint)
    trained_on = subject.checkpoint.lineage.dataset
    if dataset is None:
        dataset = training_data(subject.checkpoint.path)
    if form == "auto":
        form = "chat" if trained_on.kind == "chat" else "plain"
    return _score(subject, _open(dataset), config, form)


def compare(
    base: CheckpointRef | str | Path,
    sft: CheckpointRef | str | Path,
    dataset: DatasetRef | str | Path,
    config: EvaluateConfig = EvaluateConfig(),
    *,
    from_scratch: CheckpointRef | str | Path | None = None,
) -> EvaluationReport:
    """Measure a base model and its fine-tuned model side by side.

    Args:
        base: The base model; asked in the chat's form and in its own.
        sft: The fine-tuned model.
        dataset: Chat data whose validation split both are scored on.
        config: How much to score and to ask; its prompts become the dialogues.
        from_scratch: A model fine-tuned from random weights, to show what the base gave.

    Raises:
        MyptError: As :func:`evaluate_model`.
    """
    data = _open(dataset)
    before, after = _load(base), _load(sft)
    scored, scored_after = (_tokens(subject, data, config) for subject in (before, after))
    base_scores = _score_loss(before, data, scored, "chat")
    sft_scores = _score_loss(after, data, scored_after, "chat")
    said = [_answers(subject, config) for subject in (before, after)]
    return EvaluationReport(
        dataset=DatasetRef(path=str(data.path), digest=data.manifest.digest),
        base=_score_answers(base_scores, before, config, "chat"),
        base_plain=_score_answers(base_scores, before, config, "plain"),
        sft=_score_answers(sft_scores, after, config, "chat"),
        from_scratch=(
            None if from_scratch is None else _score(_load(from_scratch), data, config, "chat")
        ),
        dialogues=tuple(
            Dialogue(prompt=prompt, base=one, sft=other)
            for prompt, one, other in zip(config.prompts, *said, strict=True)
        ),
        sets={"chat": difference(scored, scored_after), **_other_sets(before, after, config)},
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


def _load(checkpoint: CheckpointRef | str | Path) -> _Subject:
    wanted = checkpoint.digest if isinstance(checkpoint, CheckpointRef) else None
    place = checkpoint.path if isinstance(checkpoint, CheckpointRef) else checkpoint
    model, tokenizer, found = load_model(place)
    if wanted is not None and found.ref.digest != wanted:
        raise CheckpointError(
            f"{place}: digest {found.ref.digest[:12]} found, {wanted[:12]} expected; the"
            " checkpoint is not the one that was referred to"
        )
    device = resolve(TrainConfig(), found.config).device
    return _Subject(model.to(device), tokenizer, found)


def _open(dataset: DatasetRef | str | Path) -> Dataset:
    if isinstance(dataset, DatasetRef):
        return open_dataset(dataset.path, digest=dataset.digest)
    return open_dataset(dataset)


def training_data(checkpoint: Path) -> DatasetRef:
    """Return the dataset that a step folder was trained on, wherever it lies today.

    Raises:
        ManifestError: If it is not found.
    """
    lineage = read_lineage(checkpoint)
    recorded = lineage.dataset
    found = Search(checkpoint).dataset(recorded.path, recorded.digest)
    if found is None:
        raise ManifestError(
            f"the dataset that {lineage.model_name} was trained on, {recorded.digest[:12]}, is"
            f" neither at {recorded.path} nor nearby; name a dataset with --dataset_dir"
        )
    return DatasetRef(path=str(found[0]), digest=recorded.digest)


def _other_sets(before: _Subject, after: _Subject, config: EvaluateConfig) -> dict[str, Difference]:
    """Score both models on the base corpus, to see what was forgotten, and on the named sets."""
    places: dict[str, DatasetRef | str] = {
        BASE_CORPUS: training_data(before.checkpoint.path),
        **config.sets,
    }
    found = {}
    for name, place in places.items():
        data = _open(place)
        found[name] = difference(*(_tokens(subject, data, config) for subject in (before, after)))
    return found


def _score(subject: _Subject, data: Dataset, config: EvaluateConfig, form: Form) -> ModelScores:
    scores = _score_loss(subject, data, _tokens(subject, data, config), form)
    return _score_answers(scores, subject, config, form)


def _tokens(subject: _Subject, data: Dataset, config: EvaluateConfig) -> TokenScores:
    ours, theirs = subject.tokenizer, data.tokenizer
    if ours.digest != theirs.digest:
        raise ConfigError(
            f"model {subject.name} reads tokenizer {ours.name} {ours.digest[:12]}, dataset"
            f" {data.path} was made with {theirs.name} {theirs.digest[:12]}; prepare it again with"
            f" --tokenizer_from {subject.checkpoint.path}"
        )
    return score_tokens(subject.model, data, max_batches=config.eval_iters)


def _score_loss(subject: _Subject, data: Dataset, scored: TokenScores, form: Form) -> ModelScores:
    return ModelScores(
        model=subject.name,
        checkpoint=subject.checkpoint.ref,
        form=form,
        val_loss=scored.mean,
        perplexity=scored.perplexity,
        supervised=len(scored.loss),
        available=scored.available,
        tokens=describe(scored, data),
    )


def _score_answers(
    scores: ModelScores, subject: _Subject, config: EvaluateConfig, form: Form
) -> ModelScores:
    found: dict[str, Any] = {"form": form}
    if exercises := test_exercises(config.exercises, config.exercises_seed):
        found |= ask_exercises(
            subject.model, subject.tokenizer, exercises, form=form, max_tokens=config.max_tokens
        ).model_dump()
    if config.harness:
        found["harness"] = _ask_harness(subject, config, form)
    return scores.model_copy(update=found)


def _ask_harness(
    subject: _Subject, config: EvaluateConfig, form: Form
) -> dict[str, dict[str, float]]:
    try:
        from mypt.evaluation.harness import ask_harness
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise ConfigError(
            "harness: lm-evaluation-harness is not installed; pip install 'mypt[eval]', or leave"
            " its tasks out"
        ) from None
    return ask_harness(subject.model, subject.tokenizer, config.harness, form=form)


def _answers(subject: _Subject, config: EvaluateConfig) -> list[str]:
    prompts = [prompt_of(subject.tokenizer, prompt, "chat") for prompt in config.prompts]
    answers = answer_prompts(
        subject.model, subject.tokenizer, prompts, max_tokens=config.max_tokens
    )
    return [answer.text for answer in answers]
