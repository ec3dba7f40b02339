"""The gate: a model becomes the champion only where it is better by a stated rule (D76)."""

from pathlib import Path

from pydantic import ValidationError

from mypt import files
from mypt.config import EvaluateConfig
from mypt.errors import CheckpointError
from mypt.evaluation.report import evaluate_model, training_data
from mypt.evaluation.scores import ModelScores
from mypt.home import models_dir
from mypt.parsing import Frozen
from mypt.references import CheckpointRef, DatasetRef

CHAMPION = "champion.json"
VERDICTS = "verdicts"
HELD = "it is the champion already"
QUESTIONS = 100
"""Asked where nobody says how many: without answers there is no leak to be seen."""
RULE = (
    "no leak of role tags; loss, exact match and stop recall not worse than the champion's, and one"
    " of them better; all measured on the same tokens and questions"
)


class Verdict(Frozen):
    """What the gate decided, and why."""

    promoted: bool
    reasons: tuple[str, ...]
    """What spoke against it, or for it."""
    rule: str = RULE
    candidate: ModelScores
    champion: ModelScores | None = None
    """None where there was none."""


def judge(
    model: CheckpointRef | str | Path,
    dataset: DatasetRef | str | Path | None = None,
    config: EvaluateConfig = EvaluateConfig(),
) -> Verdict:
    """Measure a model and the champion alike, write down who is better, and promote.

    The verdict is written to ``models/verdicts/``, whatever it is; the champion's reference to
    ``models/champion.json``.

    Args:
        model: As for :func:`mypt.evaluation.report.evaluate_model`.
        dataset: Whose validation split both are scored on; None: the candidate's own.
        config: How much to score and to ask.

    Raises:
        MyptError: As :func:`mypt.evaluation.report.evaluate_model`.
        CheckpointError: If the champion is not there any more.
    """
    if not config.exercises:
        config = config.model_copy(update={"exercises": QUESTIONS})
    candidate = evaluate_model(model, dataset, config, form="chat")
    reference = champion()
    before = None
    if reference is not None:
        where = dataset or training_data(Path(candidate.checkpoint.path))
        before = evaluate_model(reference, where, config, form="chat")
    found = decide(candidate, before)
    # What was promoted is written last: a verdict without its champion is said again.
    step, digest = candidate.checkpoint.step, candidate.checkpoint.digest[:12]
    against = before.checkpoint.digest[:12] if before else "none"
    name = f"{candidate.model}-{step}-{digest}-against-{against}.json"
    files.make_folder(models_dir() / VERDICTS)
    files.write_sealed(models_dir() / VERDICTS / name, found.model_dump(mode="json"))
    if found.promoted:
        place = Path(candidate.checkpoint.path).absolute()
        reference = candidate.checkpoint.model_copy(update={"path": str(place)})
        files.write_sealed(
            models_dir() / CHAMPION, {"checkpoint": reference.model_dump(mode="json")}
        )
    return found


def champion() -> CheckpointRef | None:
    """Return the checkpoint that was promoted last; None if none ever was.

    Raises:
        CheckpointError: If the file that names it is damaged, or its checkpoint is gone.
    """
    path = models_dir() / CHAMPION
    if not path.exists():
        return None
    try:
        reference = CheckpointRef.model_validate(files.read_sealed(path)["checkpoint"])
    except (OSError, ValueError, KeyError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be read: {reason}; move it away") from None
    if not Path(reference.path).is_dir():
        raise CheckpointError(
            f"{path} names {reference.path}, which is gone; bring it back, or move {CHAMPION} away"
            " and let the gate begin anew"
        )
    return reference


def decide(candidate: ModelScores, before: ModelScores | None) -> Verdict:
    """Apply the rule to two models that were measured alike."""
    against = [] if not candidate.leak_rate else [f"{candidate.leak_rate:.1%} of answers leak tags"]
    better = []
    for name, sign in (("loss", -1), ("exact match", 1), ("stop recall", 1)):
        new, old = _figure(candidate, name), None if before is None else _figure(before, name)
        if new is None or old is None:
            continue
        said = f"{name} {old:.4f} -> {new:.4f}"
        if sign * (new - old) > 0:
            better.append(said)
        elif new != old:
            against.append(said)
    if before is None:
        better.append("there was no champion")
    elif before.checkpoint.digest == candidate.checkpoint.digest:
        better.append(HELD)
    elif not better:
        against.append("nothing is better")
    return Verdict(
        promoted=not against,
        reasons=tuple(against or better),
        candidate=candidate,
        champion=before,
    )


def _figure(scores: ModelScores, name: str) -> float | None:
    if name == "loss":
        return scores.val_loss
    return scores.exact_match.get("overall") if name == "exact match" else scores.stop_recall
