"""A person's yes or no to a model that the gate has weighed: in Prefect's form, or at the terminal.

A temporary API has no pages, so whoever runs a pipeline on one is asked where it runs.
"""

import os
from collections.abc import Iterator
from typing import Literal

from prefect.context import FlowRunContext
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from pydantic import Field

from mypt.errors import MyptError
from mypt.evaluation.gate import Verdict
from mypt.evaluation.scores import ModelScores
from mypt.text import markdown, visible
from tasks.progress import print_line
from tasks.stages import tell

_PATIENCE = 7 * 24 * 3600
_POLL = 3
"""Seconds between two looks whether somebody answered."""
_AGAIN = "run the same again, which makes nothing new and asks again"


class Approval(RunInput):
    """What the form of a paused run asks."""

    promote: Literal["yes", "no"] = Field(
        description="Shall this model be the champion? No ends the run with the model refused."
    )


def approved(verdict: Verdict, name: str) -> Verdict:
    """Return a verdict as a person decided it, with the rule's opinion among the reasons.

    Args:
        verdict: What the rule says.
        name: What people call the pipeline.

    Raises:
        MyptError: If nobody answers.
    """
    rule = f"the rule would {'promote' if verdict.promoted else 'refuse'}"
    ask = _asked_at_terminal if "MYPT_ASK_AT_TERMINAL" in os.environ else _asked_in_form
    yes = ask(verdict, name, rule)
    said = f"a person said {'yes' if yes else 'no'}, {rule}"
    return verdict.model_copy(update={"promoted": yes, "reasons": (said, *verdict.reasons)})


def _asked_in_form(verdict: Verdict, name: str, rule: str) -> bool:
    """Pause the flow run until somebody resumes it with the form."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    reasons = markdown("; ".join(verdict.reasons))
    lines = ["| figure | this model | champion |", "|---|---|---|"]
    lines += [f"| {figure} | {new} | {old} |" for figure, new, old in _figures(verdict)]
    lines = [f"**{markdown(verdict.candidate.model)}**: {rule}, {reasons}.", "", *lines]
    tell(f"gate {name}: waits for a person; resume the run in Prefect, with yes or no")
    form = Approval.with_initial_data(description="\n".join(lines))
    try:
        answer = pause_flow_run(wait_for_input=form, timeout=_PATIENCE, poll_interval=_POLL)
    except FlowPauseTimeout:
        raise MyptError(f"gate {name}: nobody answered within a week; {_AGAIN}") from None
    return answer.promote == "yes"


def _asked_at_terminal(verdict: Verdict, name: str, rule: str) -> bool:
    print_line(f"{visible(verdict.candidate.model)}: {rule}, {'; '.join(verdict.reasons)}")
    for figure, new, old in _figures(verdict):
        print_line(f"  {figure}: {new}" + (f", champion {old}" if old else ""))
    while True:
        try:
            said = input(f"gate {name}: shall it be the champion? yes or no: ").strip().lower()
        except EOFError:
            raise MyptError(
                f"gate {name}: the terminal ended without yes or no; {_AGAIN}"
            ) from None
        if said in ("yes", "no"):
            return said == "yes"


def _figures(verdict: Verdict) -> Iterator[tuple[str, str, str]]:
    """Yield each figure of the candidate and of the champion, as text."""
    new, old = (_values(scores) for scores in (verdict.candidate, verdict.champion))
    for name, value in new.items():
        yield name, f"{value:.4f}", f"{old[name]:.4f}" if name in old else ""


def _values(scores: ModelScores | None) -> dict[str, float]:
    if scores is None:
        return {}
    found = {
        "loss, nats a token": scores.val_loss,
        **{f"exact match, {task}": share for task, share in scores.exact_match.items()},
        "answers that stop": scores.stop_recall,
        "answers that leak role tags": scores.leak_rate,
    }
    return {name: value for name, value in found.items() if value is not None}
