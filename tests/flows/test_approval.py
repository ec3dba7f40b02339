"""A gate that asks: at the terminal, or in the form of a paused run of a real API."""

import json
import threading
import time

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.flow_runs import resume_flow_run

from flows.cli import main
from flows.pipeline import run_pipeline
from mypt.errors import MyptError
from mypt.evaluation.gate import Verdict, champions
from mypt.evaluation.scores import ModelScores
from mypt.references import CheckpointRef
from tasks import approval
from tasks.approval import approved
from tests.flows.conftest import CONFIG
from tests.flows.test_pipeline import events

WEAK = Verdict(
    promoted=False,
    reasons=("nothing is better",),
    candidate=ModelScores(
        model="weak",
        checkpoint=CheckpointRef(path="models/weak/step_000001", digest="0" * 64, step=1),
        form="chat",
        val_loss=2.5,
        perplexity=12.2,
        supervised=9,
        available=9,
    ),
)


def typed(monkeypatch, *answers):
    monkeypatch.setenv("MYPT_ASK_AT_TERMINAL", "1")
    left = iter(answers)

    def answer(_):
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)


@pytest.mark.parametrize(("answers", "promoted"), [(["yes"], True), (["", "maybe", "NO"], False)])
def test_at_a_terminal_only_yes_or_no_is_an_answer(monkeypatch, capsys, answers, promoted):
    typed(monkeypatch, *answers)
    found = approved(WEAK, "p")
    said = f"a person said {'yes' if promoted else 'no'}, the rule would refuse"
    assert (found.promoted, found.reasons) == (promoted, (said, "nothing is better"))
    assert "loss, nats a token: 2.5000" in capsys.readouterr().out


def test_a_terminal_that_ends_decides_nothing(monkeypatch):
    typed(monkeypatch)
    with pytest.raises(MyptError, match="ended without yes or no"):
        approved(WEAK, "p")


@pytest.mark.parametrize("command", [["run"], ["sweep", "--seeds", "2"]])
def test_without_a_terminal_and_a_server_it_is_refused_before_anything_is_made(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    path = asking(tmp_path)
    assert main([command[0], str(path), *command[1:]]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert 'evaluate.gate "ask" asks a person, and there is neither' in said
    assert not (tmp_path / "runs" / "datasets").exists()


def asking(folder):
    path = folder / "asking.json"
    path.write_text(json.dumps(CONFIG | {"evaluate": CONFIG["evaluate"] | {"gate": "ask"}}))
    return path


def answer_the_form(answer, seen):
    """Resume the next run that pauses, as its page would, and keep what the page showed."""
    paused = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED]))
    with get_client(sync_client=True) as client:
        for _ in range(3000):
            if found := client.read_flow_runs(flow_run_filter=FlowRunFilter(state=paused)):
                run = found[0]
                key = run.state.state_details.run_input_keyset
                try:
                    seen["form"] = client.read_flow_run_input(run.id, key["description"])
                    seen["schema"] = json.loads(client.read_flow_run_input(run.id, key["schema"]))
                    break
                except Exception:  # the form follows the state
                    seen["early"] = True
            time.sleep(0.1)
    resume_flow_run(run.id, run_input={"promote": answer})


def test_a_paused_run_shows_the_scores_and_a_no_refuses_and_a_yes_promotes(
    ran, monkeypatch, capsys
):
    monkeypatch.setenv("MYPT_HOME", str(ran.home))
    monkeypatch.delenv("MYPT_ASK_AT_TERMINAL", raising=False)
    monkeypatch.setattr(approval, "_POLL", 0.2)
    (ran.home / "models" / "champion.json").unlink(missing_ok=True)
    for answer, told in (("no", "refused: a person said no"), ("yes", "promoted: a person said")):
        seen = {}
        thread = threading.Thread(target=answer_the_form, args=(answer, seen))
        thread.start()
        summary = json.loads(run_pipeline(asking(ran.home)).path.read_text())
        thread.join()
        assert f"| loss, nats a token | {summary['sft']['val_loss']:.4f} |" in seen["form"]
        assert "the rule would promote, there was no champion" in seen["form"]
        assert seen["schema"]["required"] == ["promote"]
        assert seen["schema"]["properties"]["promote"]["enum"] == ["yes", "no"]
        assert f"gate small: {told}" in capsys.readouterr().out
        held = [found.checkpoint.digest for found in champions()]
        assert held == ([summary["digests"]["checkpoint"]] if answer == "yes" else [])
    assert events("mypt.gate.refused", 1)[0]["payload"]["reasons"].startswith("a person said no")
