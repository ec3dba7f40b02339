"""Prefect task that compares the runs of a sweep, and what their parent says of it."""

import json
from collections.abc import Sequence
from pathlib import Path

from mypt import files
from mypt.config import EvaluateConfig
from mypt.evaluation import ranking as code
from mypt.evaluation.ranking import Compared, SweepReport, SweptRun, render_page
from mypt.evaluation.scores import Summary
from mypt.home import home
from mypt.references import DatasetRef
from tasks.keys import stage_key
from tasks.reporting import artifacts
from tasks.stages import Output, make_room, stage, tell
from tasks.tracking.journal import Journal
from tasks.tracking.recording import recorded
from tasks.tracking.records import Artifact, Described, Metrics, Tags, Text

REPORT, PAGE = "sweep.json", "sweep.html"


def swept(settings: dict[str, str], seed: int, summary: Summary) -> SweptRun:
    """Return what a pipeline's summary says, as a run of a sweep."""
    return SweptRun(
        settings=settings,
        seed=seed,
        policy=summary.policy,
        mask_density=summary.mask_density,
        scores=summary.sft,
        evaluation=summary.evaluation,
        digest=summary.digests["evaluation"],
    )


def sweep_folder(
    name: str, dataset: DatasetRef, config: EvaluateConfig, runs: Sequence[SweptRun]
) -> Path:
    """Return the folder of a sweep's report, named by what decides it."""
    decided = [files.digest_json([run.settings, run.seed, run.digest]) for run in runs]
    measured = config.model_copy(update={"gate": False})
    return home() / "sweeps" / f"{name}-{stage_key(code, measured, dataset.digest, *decided)}"


def whole_sweep(folder: Path) -> None:
    """Check the report of a sweep.

    Raises:
        ValueError: If it was changed.
        OSError: If it, or its page, cannot be read.
    """
    files.read_sealed(folder / REPORT)
    (folder / PAGE).stat()


@stage("rank {name}", whole_sweep)
def rank(
    runs: tuple[SweptRun, ...], dataset: DatasetRef, config: EvaluateConfig, name: str
) -> Output[SweepReport]:
    """Compare the runs of a sweep on the same questions and the same tokens.

    Args:
        runs: One a combination and seed.
        dataset: Whose validation split all are scored on.
        config: How much of it.
        name: Prefix of the report's folder.
    """
    folder = sweep_folder(name, dataset, config, runs)
    key = f"rank-{folder.name}"

    def make() -> SweepReport:
        with recorded(key, f"rank {name}") as run:
            make_room(folder, whole_sweep)
            report = code.rank(name, runs, dataset, config)
            with files.new_folder(folder) as unfinished:
                files.write_bytes(unfinished / PAGE, render_page(report).encode())
                files.write_sealed(unfinished / REPORT, report.model_dump(mode="json"))
            for path in sorted(folder.iterdir()):
                run.write(Artifact(path=str(path)))
            artifacts.ranking(name, report)
        tell(f"{name}: {report.why}")
        return report

    return Output(folder, key, make)


def report_sweep(run: Journal, report: SweepReport, folder: Path) -> None:
    """Say on the parent of a sweep what came of it: the table, the page, and the best if any is."""
    columns = [
        "combination",
        "seeds",
        "own loss",
        "exact match",
        "low",
        "high",
        "loss",
        "low",
        "high",
    ]
    rows = [
        [one.name, one.seeds, one.val_loss, *_figures(one.exact_match), *_figures(one.loss)]
        for one in report.ranked
    ]
    run.write(Text(name="ranking.json", text=json.dumps({"columns": columns, "data": rows})))
    shown = json.dumps([{"path": "ranking.json", "type": "table"}])
    run.write(Tags(values={"mlflow.loggedArtifacts": shown, "best": report.best or "none"}))
    run.write(Metrics(values={"combinations": len(report.ranked), "runs": len(report.runs)}))
    run.write(Text(name=PAGE, text=(folder / PAGE).read_text(encoding="utf-8")))
    run.write(Described.of({"sweep": report.why}, ("curves", run.name, PAGE)))


def _figures(figure: Compared | None) -> list[float | None]:
    return [figure.mean, figure.low, figure.high] if figure else [None, None, None]
