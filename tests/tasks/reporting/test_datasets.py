"""What the stages say of their results."""

import pytest

from mypt.errors import MaskError
from mypt.evaluation.proof.checks import ProofCheck, ProofReport
from mypt.inspection.validation import validate
from tasks.reporting.datasets import report_proof, report_validation
from tasks.tracking.journal import Journal
from tests.mypt.conftest import prepare_chat


def proof(ok: bool) -> ProofReport:
    held = ProofCheck(name="each target is the next input", ok=True, count=64)
    tried = ProofCheck(name="no header is supervised", ok=ok, count=3, detail="train row 4")
    return ProofReport(dataset="d", seed=0, shards=1, shards_in_all=1, checks=(held, tried))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))
    journal = Journal("a-run")
    yield journal
    journal.end("FINISHED")


def test_a_refuted_mask_ends_the_run_before_training(run, tmp_path):
    with pytest.raises(MaskError, match=r"not so: no header is supervised; train row 4"):
        report_proof(run, tmp_path / "chats", proof(ok=False))


def test_a_proof_that_holds_is_told_with_its_size(run, tmp_path, capsys):
    report_proof(run, tmp_path / "chats", proof(ok=True))
    assert "chats: masks proved on 67 observations" in capsys.readouterr().out


def test_a_validation_tells_its_notices_not_only_how_many_there_are(run, tmp_path, capsys):
    folder = prepare_chat(tmp_path, n=8, answer="the same")
    found = validate(folder, block_size=8)
    notices = [finding for finding in found.findings if finding.level == "notice"]
    assert notices
    report_validation(run, folder, found)
    said = capsys.readouterr().out
    for finding in notices:
        assert f"  notice: {finding.count} {finding.message}" in said
