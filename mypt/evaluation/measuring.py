"""One model, measured: its loss on a dataset, and its answers to what it is asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mypt.config import EvaluateConfig, TrainConfig
from mypt.data.conversations import Form
from mypt.data.dataset import Dataset, open_dataset
from mypt.data.reading.exercises import test_exercises
from mypt.data.tokenizer import Tokenizer
from mypt.errors import CheckpointError, ConfigError, ManifestError
from mypt.evaluation.breakdown import describe, share_preferred
from mypt.evaluation.exact_match import ask_exercises, read_questions
from mypt.evaluation.scores import ModelScores
from mypt.evaluation.token_scores import TokenScores, of_side, score_tokens
from mypt.inference.chat import answer_prompts, prompt_of
from mypt.model.gpt import GPT
from mypt.provenance.search import Search
from mypt.references import CheckpointRef, DatasetRef
from mypt.training.checkpoints.checkpoint import Checkpoint, load_model
from mypt.training.compute import resolve
from mypt.training.lineage import Lineage, read_lineage


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in memory, ready to be asked."""

    model: GPT
    tokenizer: Tokenizer
    checkpoint: Checkpoint

    @property
    def name(self) -> str:
        """What people call it."""
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
    subject = load_subject(checkpoint)
    if dataset is None:
        dataset = training_data(subject.checkpoint.path)
    asked = form_of(subject.checkpoint.lineage, form, config)
    return score(subject, open_data(dataset), config, asked)


def form_of(lineage: Lineage, form: Form | Literal["auto"], config: EvaluateConfig) -> Form:
    """Return how a model is asked: as is said, else as the data were that it was trained on.

    Raises:
        ConfigError: If it would be asked the questions of a file in plain text.
    """
    if form == "auto":
        form = "chat" if lineage.dataset.kind == "chat" else "plain"
    if config.questions and form == "plain":
        raise ConfigError(
            f"questions {config.questions} are asked as a chat, and {lineage.model_name} as plain"
            " text; give --form chat, or leave them out"
        )
    return form


def load_subject(checkpoint: CheckpointRef | str | Path) -> Subject:
    """Return a model, ready to be asked.

    Raises:
        CheckpointError: As :func:`evaluate_model`.
    """
    wanted = checkpoint.digest if isinstance(checkpoint, CheckpointRef) else None
    place = checkpoint.path if isinstance(checkpoint, CheckpointRef) else checkpoint
    model, tokenizer, found = load_model(place)
    if wanted is not None and found.ref.digest != wanted:
        raise CheckpointError(
            f"{place}: digest {found.ref.digest[:12]} found, {wanted[:12]} expected; the"
            " checkpoint is not the one that was referred to"
        )
    device = resolve(TrainConfig(), found.config).device
    return Subject(model.to(device), tokenizer, found)


def open_data(dataset: DatasetRef | str | Path) -> Dataset:
    """Return a dataset; the digest of a reference is checked.

    Raises:
        ManifestError: If it is missing, damaged or not the one referred to.
    """
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
            f" neither at {recorded.path} nor nearby; bring it back, or name another with"
            " --dataset_dir"
        )
    return DatasetRef(path=str(found[0]), digest=recorded.digest)


def score(subject: Subject, data: Dataset, config: EvaluateConfig, form: Form) -> ModelScores:
    """Return a model's loss and what its answers are worth.

    Raises:
        MyptError: As :func:`evaluate_model`.
    """
    scores = score_loss(subject, data, tokens_of(subject, data, config), form)
    return score_answers(scores, subject, config, form)


def tokens_of(
    subject: Subject, data: Dataset, config: EvaluateConfig, block_size: int | None = None
) -> TokenScores:
    """Return each supervised token of the validation split, scored as :func:`score_tokens` does.

    Raises:
        ConfigError: If model and dataset have different tokenizers.
        DataError: If there is nothing to score.
    """
    ours, theirs = subject.tokenizer, data.tokenizer
    if ours.digest != theirs.digest:
        raise ConfigError(
            f"model {subject.name} reads tokenizer {ours.name} {ours.digest[:12]}, dataset"
            f" {data.path} was made with {theirs.name} {theirs.digest[:12]}; prepare it again with"
            f" --tokenizer_from {subject.checkpoint.path}"
        )
    return score_tokens(subject.model, data, max_batches=config.eval_iters, block_size=block_size)


def score_loss(subject: Subject, data: Dataset, scored: TokenScores, form: Form) -> ModelScores:
    """Return what scored tokens say of a model that was asked nothing yet."""
    preferred = share_preferred(scored) if data.paired else None
    scored = of_side(scored, data, 0) if data.paired else scored
    return ModelScores(
        model=subject.name,
        checkpoint=subject.checkpoint.ref,
        form=form,
        val_loss=scored.mean,
        perplexity=scored.perplexity,
        preferred=preferred,
        supervised=len(scored.loss),
        available=scored.available,
        tokens=describe(scored, data),
    )


def score_answers(
    scores: ModelScores, subject: Subject, config: EvaluateConfig, form: Form
) -> ModelScores:
    """Return scores with what the model's answers to held-out questions are worth.

    Raises:
        ConfigError: If tasks of the harness are asked for and it is not installed.
        DataError: If the file of questions cannot be read.
    """
    found: dict[str, Any] = {"form": form}
    exercises = test_exercises(config.exercises, config.exercises_seed)
    if config.questions and form == "chat":
        exercises += tuple(read_questions(config.questions))
    if exercises:
        found |= dict(
            ask_exercises(
                subject.model, subject.tokenizer, exercises, form=form, max_tokens=config.max_tokens
            )
        )
    if config.harness:
        found["harness"] = _ask_harness(subject, config, form)
    return scores.model_copy(update=found)


def _ask_harness(
    subject: Subject, config: EvaluateConfig, form: Form
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


def answers_of(subject: Subject, config: EvaluateConfig, form: Form) -> list[str]:
    """Return what a model answers to the config's prompts."""
    prompts = [prompt_of(subject.tokenizer, prompt, form) for prompt in config.prompts]
    answers = answer_prompts(
        subject.model, subject.tokenizer, prompts, form=form, max_tokens=config.max_tokens
    )
    return [answer.text for answer in answers]
