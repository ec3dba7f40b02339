"""The gate: a model becomes the champion only where it is better by a stated rule (D76)."""

import re
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from mypt import files
from mypt.config import EvaluateConfig
from mypt.errors import CheckpointError
from mypt.evaluation.measuring import evaluate_model, training_data
from mypt.evaluation.scores import CHAMPION, ModelScores
from mypt.home import models_dir
from mypt.parsing import Frozen
from mypt.references import CheckpointRef, DatasetRef
from mypt.training.lineage import read_lineage

VERDICTS = "verdicts"
HELD = "it is the champion already"
NOBODY = "there was no champion"
BY_HAND = "by hand"
"""Stands for the pipeline of models that no flow made: they are one another's rivals."""
_MADE_BY_FLOW = re.compile(r"(.+?)(-chat)?-[0-9a-f]{12}")
QUESTIONS = 100
"""Asked where nobody says how many: without answers there is no leak to be seen."""
RULE = (
    "no leak of role tags; loss, exact match and stop recall not worse than the champion's, and one"
    " of them better; all measured on the same tokens and questions"
)


class Champion(Frozen):
    """The best model of its kind: models of one pipeline that read one tokenizer."""

    pipeline: str
    tokenizer: str
    """Digest; what reads other tokens has a loss over other tokens."""
    checkpoint: CheckpointRef

    @property
    def name(self) -> str:
        """What people call the model."""
        return Path(self.checkpoint.path).parent.name

    def same_kind(self, other: "Champion") -> bool:
        """Return whether the two can be compared."""
        return (self.pipeline, self.tokenizer) == (other.pipeline, other.tokenizer)


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
    """Measure a model and the champion of its kind alike, write down who is better, and promote.

    Args:
        model: As for :func:`mypt.evaluation.measuring.evaluate_model`.
        dataset: Whose validation split both are scored on; None: the candidate's own.
        config: How much to score and to ask.

    Raises:
        MyptError: As :func:`mypt.evaluation.measuring.evaluate_model`.
        CheckpointError: If the champion is not there any more.
    """
    found = weigh(model, dataset, config)
    settle(found)
    return found


def weigh(
    model: CheckpointRef | str | Path,
    dataset: DatasetRef | str | Path | None = None,
    config: EvaluateConfig = EvaluateConfig(),
) -> Verdict:
    """Return what the rule says of a model; nothing is written and nobody promoted.

    Args:
        model: As for :func:`judge`.
        dataset: Likewise.
        config: Likewise.

    Raises:
        MyptError: As :func:`judge`.
    """
    if not config.exercises:
        config = config.model_copy(update={"exercises": QUESTIONS})
    candidate = evaluate_model(model, dataset, config, form="chat")
    reference, before = champion(candidate.checkpoint), None
    if reference is not None:
        where = dataset or training_data(Path(candidate.checkpoint.path))
        before = evaluate_model(reference, where, config, form="chat")
    stranger = None if before else _stranger(candidate.checkpoint)
    return decide(candidate, before, stranger, config.gate_first)


def settle(found: Verdict) -> None:
    """Write a verdict down, and promote the model if it says so.

    The verdict is written to ``models/verdicts/``, whatever it is; the champions' references to
    ``models/champion.json``.
    """
    # What was promoted is written last: a verdict without its champion is said again.
    candidate, before = found.candidate, found.champion
    step, digest = candidate.checkpoint.step, candidate.checkpoint.digest[:12]
    against = before.checkpoint.digest[:12] if before else "none"
    name = f"{candidate.model}-{step}-{digest}-against-{against}.json"
    files.make_folder(models_dir() / VERDICTS)
    files.write_sealed(models_dir() / VERDICTS / name, found.model_dump(mode="json"))
    if found.promoted:
        _promote(candidate.checkpoint)


def champion(rival: CheckpointRef) -> CheckpointRef | None:
    """Return the champion that a model has to beat; None if there is none of its kind.

    Raises:
        CheckpointError: As :func:`champions`; or if the champion's checkpoint is gone.
    """
    kind = _as_champion(rival)
    held = next((found for found in champions() if found.same_kind(kind)), None)
    if held and not Path(held.checkpoint.path).is_dir():
        raise _gone(held.checkpoint)
    return held.checkpoint if held else None


def champions() -> tuple[Champion, ...]:
    """Return the champion of each kind, the one that was promoted last at the end.

    Raises:
        CheckpointError: If the file that names them is damaged; or if an earlier version wrote it
            and the checkpoint is gone.
    """
    path = models_dir() / CHAMPION
    if not path.exists():
        return ()
    try:
        said = files.read_sealed(path)
        if "champions" in said:
            return tuple(Champion.model_validate(found) for found in said["champions"])
        only = CheckpointRef.model_validate(said["checkpoint"])  # an earlier version's, of any kind
    except (OSError, ValueError, KeyError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be read: {reason}; move it away") from None
    if not Path(only.path).is_dir():
        raise _gone(only)
    return (_as_champion(only),)


def decide(
    candidate: ModelScores,
    before: ModelScores | None,
    stranger: str | None = None,
    first: Literal["promote", "refuse"] = "promote",
) -> Verdict:
    """Apply the rule to two models that were measured alike.

    Args:
        candidate: The model that may be promoted.
        before: The champion of its kind, if there is one.
        stranger: Champion of the same pipeline that reads another tokenizer, where there is none.
        first: What becomes of a candidate beside which only such a one stands.
    """
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
    if stranger is not None:
        refused = first == "refuse"
        said = "refused by gate_first" if refused else "promoted as the first of its kind"
        said = f"champion {stranger} reads another tokenizer: not comparable, {said}"
        (against if refused else better).append(said)
    elif before is None:
        better.append(NOBODY)
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


def _promote(checkpoint: CheckpointRef) -> None:
    place = str(Path(checkpoint.path).absolute())
    new = _as_champion(checkpoint.model_copy(update={"path": place}))
    held = [*(found for found in champions() if not found.same_kind(new)), new]
    said = {
        "checkpoint": new.checkpoint.model_dump(mode="json"),  # all that earlier versions read
        "champions": [found.model_dump(mode="json") for found in held],
    }
    files.write_sealed(models_dir() / CHAMPION, said)


def _as_champion(checkpoint: CheckpointRef) -> Champion:
    lineage = read_lineage(Path(checkpoint.path))
    made = _MADE_BY_FLOW.fullmatch(lineage.model_name)
    return Champion(
        pipeline=made[1] if made else BY_HAND,
        tokenizer=lineage.dataset.tokenizer,
        checkpoint=checkpoint,
    )


def _stranger(rival: CheckpointRef) -> str | None:
    """Return the newest champion of the same pipeline, all of which read other tokenizers."""
    kind = _as_champion(rival)
    others = [found.name for found in champions() if found.pipeline == kind.pipeline]
    return others[-1] if others else None


def _gone(reference: CheckpointRef) -> CheckpointError:
    return CheckpointError(
        f"{models_dir() / CHAMPION} names {reference.path}, which is gone; bring it back, or move"
        f" {CHAMPION} away and let the gate begin anew"
    )


def _figure(scores: ModelScores, name: str) -> float | None:
    if name == "loss":
        return scores.val_loss
    return scores.exact_match.get("overall") if name == "exact match" else scores.stop_recall
