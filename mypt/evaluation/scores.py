"""What evaluating a model says: small, frozen, written as JSON."""

from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from mypt import files
from mypt.config import later
from mypt.data.conversations import Form
from mypt.parsing import Frozen
from mypt.references import CheckpointRef, DatasetRef, HomePath

EVALUATION, SUMMARY = "evaluation.json", "summary.json"
"""Files of an evaluation's folder: the whole report, and what people compare runs by."""
CHAMPION = "champion.json"
"""The file beside the models that names the best of each kind."""


class AskedQuestion(Frozen):
    """A held-out question, and what the model said."""

    task: str = "questions"
    """The exercise's; "questions" for those of a file."""
    question: str
    """In the words of a chat, however it was asked."""
    expected: str
    said: str
    right: bool
    """Word for word, and the answer ended there."""
    stopped: bool | None = None
    """Whether the answer ended by itself; None where nobody noted it."""
    leaked: bool | None = None
    """Whether the model wrote a role's tag; likewise."""


class GroupScore(Frozen):
    """Supervised tokens of one kind, each weighing the same."""

    tokens: int
    loss: float
    """Nats per token."""
    perplexity: float
    """exp of that loss."""
    accuracy: float
    """Share of tokens that the model found likeliest."""


class Calibration(Frozen):
    """Tokens of which the model was about equally sure."""

    tokens: int
    confidence: float
    """Mean probability of the token it found likeliest."""
    accuracy: float
    """How often that one was right; a calibrated model has both alike."""


class TokenReport(Frozen):
    """A model's supervised validation tokens, looked at from several sides."""

    all: GroupScore
    groups: dict[str, dict[str, GroupScore]]
    """By class, role, turn, source and length of the conversation in tokens."""
    stop_recall: float | None
    """Share of stop tokens that the model found likeliest where they stand; None without any."""
    false_stops: float | None
    """Share of the other tokens where it found the stop token likeliest."""
    bits_per_byte: float | None
    """Loss by bytes of text, so that tokenizers can be compared; None without text."""
    calibration: tuple[Calibration, ...]


class Difference(Frozen):
    """What fine-tuning changed on one set of tokens; below 0 is better."""

    before: float
    """Nats per token of the base model."""
    after: float
    change: float
    low: float
    """The 95 % interval of the change, from 1,000 paired draws of conversations."""
    high: float
    tokens: int
    rows: int
    """Conversations and documents that were drawn from."""


class PairScores(Frozen):
    """What learning from preference pairs changed on held-out ones, against the model before."""

    pairs: int
    """Pairs of the validation split, both sides scored."""
    accuracy: float
    """Share of them whose chosen side gained more log-probability than the rejected one."""
    low: float
    """Wilson's 95 % interval of that share."""
    high: float
    margin: float
    """Nats by which it gained more, the mean over pairs; times beta it is what DPO calls one."""
    margin_low: float
    """The 95 % interval of the margin, from 1,000 draws of pairs."""
    margin_high: float


class ModelScores(Frozen):
    """One checkpoint, measured."""

    model: str
    """Its name."""
    checkpoint: CheckpointRef
    form: Form
    """How it was asked: as a turn of a chat, or as the beginning of a text."""
    val_loss: float
    """Nats per supervised token of the validation split."""
    perplexity: float
    """exp of that loss."""
    preferred: float | None = later(None)
    """Share of held-out preference pairs whose chosen side it finds likelier; of such data the loss
    is that of the chosen sides. None of other data."""
    supervised: int
    """Tokens that the loss is the mean of."""
    available: int
    """Supervised tokens of the split; more than that where not all were scored."""
    exact_match: dict[str, float] = Field(default_factory=dict)
    """Share of exactly right answers by task, and "overall"; empty if nothing was asked."""
    between: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Wilson's 95 % interval of each task's share."""
    hits: dict[str, str] = Field(default_factory=dict)
    """By task, 1 for each question that was answered exactly and 0 for each other, in order; by
    them two models are compared question by question."""
    answers: tuple[AskedQuestion, ...] = ()
    """To held-out questions, in the order in which they were asked."""
    stop_recall: float | None = None
    """Share of answers that ended with their stop token; None if nothing was asked."""
    asked: int = 0
    """Held-out questions."""
    leak_rate: float | None = None
    """Share of answers in which the model wrote a role's tag; None if nothing was asked."""
    repetition: float | None = None
    """Share of four-token stretches that stood in the same answer before."""
    tokens: TokenReport | None = None
    """The loss, taken apart."""
    harness: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Metrics of lm-evaluation-harness by task; "requests cut" counts what had no room."""


class Dialogue(Frozen):
    """One prompt and what both models answer to it."""

    prompt: str
    base: str | None = None
    """None where there is no base model."""
    sft: str


class EvaluationReport(Frozen):
    """A base model and what fine-tuning made of it, on one dataset and the same questions."""

    dataset: DatasetRef
    base: ModelScores | None = None
    """The base model, asked as the fine-tuned one is; None where that began with none."""
    base_plain: ModelScores | None = None
    """The base model, asked in plain text, as it was trained; None where ``base`` was so."""
    sft: ModelScores
    """The fine-tuned model, or the one that the report is about."""
    eval_iters: int | None = None
    """The most batches whose losses were taken; 0: the whole split. None where nobody noted it."""
    from_scratch: ModelScores | None = None
    """A model fine-tuned without the base model, where there is one to compare with."""
    dialogues: tuple[Dialogue, ...] = ()
    pairs: PairScores | None = later(None)
    """What became of held-out preference pairs; None of other data."""
    sets: dict[str, Difference] = Field(default_factory=dict)
    """Base model against fine-tuned model by evaluation set: "chat" or "text", of preference pairs
    "chosen" and "rejected"; "base corpus", of pairs "data of the base" (what was forgotten); and
    those that the config names."""

    @property
    def models(self) -> dict[str, ModelScores]:
        """Who was measured, by what tables call it; the base model once where its forms agree."""
        plain = self.base_plain
        twice = plain is not None and bool(plain.asked or plain.harness)
        found = {
            "base, as chat" if twice else "base": self.base,
            "base, as text": plain if twice else None,
            "fine-tuned" if self.base else "model": self.sft,
            "from scratch": self.from_scratch,
        }
        return {name: scores for name, scores in found.items() if scores is not None}


class Summary(Frozen):
    """The figures of a whole run on one page: ``summary.json``."""

    base: ModelScores
    sft: ModelScores
    base_plain: ModelScores
    policy: str
    """Whose tokens the fine-tuned model learned, in words."""
    supervised_tokens: int
    """How many it learned."""
    mask_density: float
    """Their share of the tokens that it read."""
    checkpoint: HomePath
    """Folder of the fine-tuned model's checkpoint."""
    evaluation: HomePath
    """The whole report, as a file."""
    pairs: PairScores | None = later(None)
    """What became of held-out preference pairs; None where there were none."""
    sets: dict[str, Difference] = later({})
    """What changed on the data themselves, and what was forgotten."""
    others: dict[str, "Summary"] = later({})
    """What the other stages of a pipeline made of the model before each, by their names."""
    digests: dict[str, str]
    """What the run made, by name: datasets and checkpoints."""

    @property
    def path(self) -> Path:
        """The file that holds it."""
        return Path(self.evaluation).with_name(SUMMARY)


def read_summary(folder: Path) -> Summary:
    """Return the summary of an evaluation's folder.

    Raises:
        ValueError: If it was changed.
        OSError: If it cannot be read.
    """
    values = files.read_sealed(folder / SUMMARY)
    return Summary.model_validate({k: v for k, v in values.items() if k != "digest"})


def whole_evaluation(folder: Path) -> None:
    """Check an evaluation.

    Raises:
        ValueError: If its summary or its report was changed.
        OSError: If either cannot be read.
    """
    digest = files.read_sealed(folder / SUMMARY)["digests"]["evaluation"]
    if files.digest_file(folder / EVALUATION) != digest:
        raise ValueError(f"{folder / EVALUATION} was changed")


def harness_metrics(models: Iterable[ModelScores]) -> list[tuple[str, str]]:
    """Return each (task, metric) of lm-evaluation-harness that some of the models have."""
    found = (
        (task, name)
        for scores in models
        for task, metrics in scores.harness.items()
        for name in metrics
    )
    return list(dict.fromkeys(found))
