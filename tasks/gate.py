"""Prefect task that asks the gate whether a pipeline's model becomes the champion."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from mypt.config import EvaluateConfig
from mypt.evaluation.gate import HELD, RULE, champion, judge
from mypt.references import CheckpointRef, DatasetRef
from tasks.locks import lock
from tasks.stages import tell

NOT_ASKED = "not asked"
"""What a run says of the gate where its config does not ask it."""
REFUSED = "mypt.gate.refused"
"""Prefect event of a model that did not become the champion."""


@task(task_run_name="gate {name}", cache_policy=NO_CACHE)
def gate(model: CheckpointRef, dataset: DatasetRef, config: EvaluateConfig, name: str) -> str:
    """Let a model that is better than the champion replace it, and return what was decided.

    The answer hangs on who is champion just now, so it is never taken from a cache; only the
    champion itself is not measured again. Who is refused is told to Prefect as an event, which
    an automation may pass on; the run completes either way.

    Args:
        model: The fine-tuned model.
        dataset: Chat data whose validation split candidate and champion are scored on.
        config: How much to score and to ask.
        name: What people call the pipeline.

    Raises:
        MyptError: As :func:`mypt.evaluation.gate.judge`.
    """
    tell(f"gate {name}")
    with lock("gate"):
        held = champion()
        if held is not None and held.digest == model.digest:
            return _told(name, f"promoted: {HELD}")
        # The rule asks nothing of the harness.
        verdict = judge(model, dataset, config.model_copy(update={"harness": ()}))
    reasons = "; ".join(verdict.reasons)
    if verdict.promoted:
        return _told(name, f"promoted: {reasons}")
    resource = {
        "prefect.resource.id": f"mypt.model.{verdict.candidate.model}",
        "prefect.resource.name": verdict.candidate.model,
    }
    emit_event(REFUSED, resource, payload={"reasons": reasons, "rule": RULE})
    return _told(name, f"refused: {reasons}")


def _told(name: str, decided: str) -> str:
    tell(f"gate {name}: {decided}")
    return decided
