"""Prefect tasks that compare a model with the one it began with, and ask the gate about it."""

from pathlib import Path

from prefect.cache_policies import NO_CACHE

from mypt import files
from mypt.config import EvaluateConfig, Source, StageGate
from mypt.data.conversations import Form
from mypt.data.manifest import read_manifest
from mypt.data.reading.sources import find_files
from mypt.evaluation import gate as rule
from mypt.evaluation import report as code
from mypt.evaluation.gate import HELD, RULE, champion, settle, weigh
from mypt.evaluation.report import BASE_CORPUS, DATA_OF_BASE, compare, write_report
from mypt.evaluation.scores import (
    EVALUATION,
    SUMMARY,
    EvaluationReport,
    Summary,
    read_summary,
    whole_evaluation,
)
from mypt.home import home, lock
from mypt.references import CheckpointRef, DatasetRef
from mypt.training.lineage import read_lineage
from tasks.approval import approved
from tasks.assets import asset, dataset_asset, materialized, model_asset
from tasks.keys import stage_key
from tasks.reporting.evaluations import report_evaluation
from tasks.reporting.inputs import dataset_input
from tasks.stages import Output, announce, make_room, stage, tell
from tasks.stopping import StoppableTask
from tasks.tracking.recording import note_work, recorded
from tasks.tracking.records import Params, flatten

NOT_ASKED = "not asked"
"""What a run says of the gate where its config does not ask it."""
_APART: dict[str, object] = {"tokens": None, "answers": (), "hits": {}}
"""What takes figures apart stands in the whole report."""
PROMOTED, REFUSED = "mypt.gate.promoted", "mypt.gate.refused"
"""Prefect events of a model that became the champion, or did not."""


@stage("evaluate {name}", whole_evaluation)
def evaluate(
    base: CheckpointRef,
    sft: CheckpointRef,
    dataset: DatasetRef,
    config: EvaluateConfig,
    name: str,
    form: Form = "chat",
) -> Output[Summary]:
    """Ask both models the same, and write down what fine-tuning changed.

    Args:
        base: The base model.
        sft: What fine-tuning made of it.
        dataset: Chat data whose validation split both are scored on.
        config: How much to score and to ask.
        name: Prefix of the report's folder.
        form: How both are asked.
    """
    read = [base.digest, sft.digest, dataset.digest]
    read += [read_manifest(Path(place)).digest for place in config.sets.values()]
    asked = find_files(Source(path=config.questions)) if config.questions else ()
    named = (*map(Path, config.harness), *asked)
    read += [files.digest_file(path) for path in named if path.is_file()]
    read += [form] * (form != "chat")
    measured = config.model_copy(update={"gate": False})  # which changes no figure
    folder = home() / "evaluations" / f"{name}-{stage_key(code, measured, *read)}"
    key = f"evaluate-{folder.name}"

    def make() -> Summary:
        with recorded(key, f"evaluate {name}") as run:
            run.write(Params(values=flatten(config)))
            run.write(dataset_input(dataset, "evaluate"))
            if make_room(folder, whole_evaluation):
                with files.new_folder(folder) as unfinished:
                    report = compare(base, sft, dataset, config, form=form)
                    digest = files.digest_file(write_report(report, unfinished))
                    summary = _summary(report, folder, digest)
                    files.write_sealed(unfinished / SUMMARY, summary.model_dump(mode="json"))
            summary = read_summary(folder)
            report_evaluation(run, name, summary, dataset)
        upstream = [model_asset(base), model_asset(sft), dataset_asset(dataset)]
        facts = {"digest": summary.digests["evaluation"], "path": str(folder)}
        materialized(asset("evaluations", folder.name), upstream, **facts)
        return summary

    return Output(folder, key, make)


def _summary(report: EvaluationReport, folder: Path, digest: str) -> Summary:
    assert report.base
    tuned = read_lineage(Path(report.sft.checkpoint.path))
    return Summary(
        base=report.base.model_copy(update=_APART),
        sft=report.sft.model_copy(update=_APART),
        base_plain=(report.base_plain or report.base).model_copy(update=_APART),
        policy=tuned.policy,
        supervised_tokens=tuned.supervised,
        mask_density=tuned.density,
        checkpoint=report.sft.checkpoint.path,
        evaluation=str(folder / EVALUATION),
        pairs=report.pairs,
        sets=report.sets,
        digests={
            "base_dataset": read_lineage(Path(report.base.checkpoint.path)).dataset.digest,
            "pair_dataset" if report.pairs else "chat_dataset": report.dataset.digest,
            "base_checkpoint": report.base.checkpoint.digest,
            "checkpoint": report.sft.checkpoint.digest,
            "evaluation": digest,
        },
    )


def decide(model: CheckpointRef, dataset: DatasetRef, config: EvaluateConfig, name: str) -> str:
    """Let a model that is better than the champion replace it, and return what was decided.

    The answer hangs on who is champion just now, so it is never taken from a cache; only the
    champion itself is not measured again. The verdict is told to Prefect as an event, which an
    automation may pass on; the run completes either way. Where a person is asked, others may
    promote meanwhile, and then it is asked again.

    Args:
        model: The fine-tuned model.
        dataset: Chat data whose validation split candidate and champion are scored on.
        config: How much to score and to ask.
        name: What people call the pipeline.

    Raises:
        MyptError: As :func:`mypt.evaluation.gate.judge`.
    """
    tell(f"gate {name}")
    while True:
        with lock("gate"):
            held = champion(model)
            if held is not None and held.digest == model.digest:
                return _told(name, f"promoted: {HELD}")
            note_work("gate")
            # The rule asks nothing of the harness.
            verdict = weigh(model, dataset, config.model_copy(update={"harness": ()}))
            if config.gate != "ask":
                settle(verdict)
                break
        verdict = approved(verdict, name)
        with lock("gate"):
            if champion(model) == held:
                settle(verdict)
                break
        tell(f"gate {name}: there is another champion by now; weighed again")
    reasons = "; ".join(verdict.reasons)
    announce(
        PROMOTED if verdict.promoted else REFUSED,
        verdict.candidate.model,
        reasons=reasons,
        rule=RULE,
        digest=model.digest,
        path=model.path,
        dataset=dataset.digest,
        champion=held.digest if held else None,
    )
    if verdict.promoted:
        facts = {"digest": model.digest, "path": model.path}
        materialized(asset("champions", name), [model_asset(model)], **facts)
    return _told(name, f"{'promoted' if verdict.promoted else 'refused'}: {reasons}")


def objections(asked: StageGate, summary: Summary, name: str) -> str:
    """Return what speaks against going on after a stage, empty if nothing does.

    Args:
        asked: The stage's gate.
        summary: Its model beside the one before.
        name: What people call the stage's model.
    """
    if pairs := summary.pairs:
        said = f"{pairs.accuracy:.1%} of pairs moved the right way, {pairs.low:.1%} at least"
        against = [f"{said}; more than half expected"] * (pairs.low <= 0.5)
    else:
        verdict = rule.decide(summary.sft, summary.base)
        against = [] if verdict.promoted else list(verdict.reasons)
    for found in (BASE_CORPUS, DATA_OF_BASE):
        of = summary.sets.get(found)
        if of and asked.forgets is not None and of.change > asked.forgets:
            against.append(f"{found} forgotten by {of.change:.3f} nats, {asked.forgets:g} allowed")
    decided = "; ".join(against)
    tell(f"gate {name}: {decided or 'goes on'}")
    if decided:
        announce(REFUSED, name, reasons=decided, digest=summary.digests["checkpoint"])
    return decided


def _told(name: str, decided: str) -> str:
    tell(f"gate {name}: {decided}")
    return decided


gate = StoppableTask(decide, name="gate", task_run_name="gate {name}", cache_policy=NO_CACHE)
