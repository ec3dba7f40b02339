"""The whole pipeline under every combination of settings, and which of them is surely the best."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from prefect import flow
from rich.table import Table
from rich.text import Text

from flows.combinations import Combination, combine
from flows.console import Console
from flows.ending import leave_if_prefect_is_away, run_here
from flows.forms import AS_IN_FILE, PIPELINE_FILE, PipelineFile, PipelineKnobs, asked_pipeline
from flows.pipeline import sft_pipeline
from flows.pools import run_elsewhere
from flows.stages import sweep_run_name
from mypt.config import PipelineConfig
from mypt.evaluation.measuring import training_data
from mypt.evaluation.ranking import Compared, SweepReport, named
from mypt.evaluation.scores import Summary
from mypt.home import place_now
from mypt.references import DatasetRef
from mypt.text import shorten, visible
from mypt.training.lineage import read_lineage
from tasks.ranking import PAGE, REPORT, rank, report_sweep, sweep_folder, swept
from tasks.reporting.pipelines import sweep_run
from tasks.stopping import acting, stoppable

_LONGEST = 80


@flow(name="sft-sweep", flow_run_name=sweep_run_name, persist_result=False)
@stoppable
def sft_sweep(
    config: PipelineFile = PIPELINE_FILE,
    over: tuple[str, ...] = (),
    seeds: int = 1,
    overrides: PipelineKnobs = AS_IN_FILE,
    pool: str = "",
) -> SweepReport:
    """Run the pipeline under every combination of settings, and say which is surely the best.

    Args:
        config: The file that holds all knobs.
        over: What is varied, a knob a line, such as sft.learning_rate=1e-4,3e-4; where values hold
            commas, | divides them.
        seeds: How many seeds each combination is fine-tuned with.
        overrides: Knobs that shall not be as in the file in any combination; what is left empty
            is, and a list stands for the whole of the file's.
        pool: A deployment of the pipeline on another work pool, such as sft-pipeline/gpu, that is
            asked for all combinations at once; empty: they run here, one after the other.
    """
    config = asked_pipeline(config, overrides)
    combinations = dict(_titled(combine(config, over, seeds), seeds))
    knobs = dict(text.split("=", 1) for text in over) | ({"seeds": str(seeds)} if seeds > 1 else {})
    runs, dataset = [], None
    with sweep_run(config, knobs) as run:
        if pool:
            run_elsewhere(pool, {title: asked for title, (_, asked) in combinations.items()})
        for title, (settings, asked) in combinations.items():
            one = sft_pipeline.with_options(flow_run_name=partial(str, title))
            with acting(False):  # while Prefect is at work; the pipeline hears for itself
                summary = one(_ungated(asked) if pool else asked)
            dataset = dataset or _chat_data(summary)
            last = summary.others.get(asked.chain[-1].name, summary)
            runs.append(swept(settings, asked.tuned.train.seed, last))
        assert dataset is not None
        folder = sweep_folder(config.name, dataset, config.evaluate, runs)
        report = rank(tuple(runs), dataset, config.evaluate, config.name)
        report_sweep(run, report, folder)
    show_sweep(report, folder)
    leave_if_prefect_is_away(lambda: None)
    return report


def _titled(combinations: Sequence[Combination], seeds: int) -> Iterator[tuple[str, Combination]]:
    """Yield each combination with what people call its run; no two are called alike."""
    for place, one in enumerate(combinations, start=1):
        seed = f", seed {one.config.tuned.train.seed}" if seeds > 1 else ""
        yield shorten(f"{place}/{len(combinations)} {named(one.settings)}{seed}", _LONGEST), one


def _ungated(config: PipelineConfig) -> PipelineConfig:
    """Return the config of a run whose gate was asked elsewhere; that changes no figure."""
    evaluate = config.evaluate.model_copy(update={"gate": False})
    return config.model_copy(update={"evaluate": evaluate})


def _chat_data(summary: Summary) -> DatasetRef:
    """Return the conversations that the chat model learned, before any pairs."""
    place = Path(summary.checkpoint)
    parent = read_lineage(place).parent if summary.pairs else None
    return training_data(Path(place_now(parent.path)) if parent else place)


def run_sweep(config: PipelineConfig, over: Sequence[str], seeds: int) -> None:
    """Run a sweep in this process, and print its table.

    Raises:
        MyptError: If a stage cannot go on, or Prefect cannot be reached at all.
    """
    run_here(lambda: sft_sweep(config, tuple(over), seeds))


def show_sweep(report: SweepReport, folder: Path) -> None:
    """Print a sweep's table, the one in front first; the last line is ``sweep: PATH``."""
    console = Console()
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for heading in ("seeds", "own loss", "exact match", "95 % of change", "loss", "95 % of change"):
        table.add_column(heading, justify="right")
    for one in report.ranked:
        figures = (*_figures(one.exact_match), *_figures(one.loss))
        row = (str(one.seeds), f"{one.val_loss:.4f}", *figures)
        table.add_row(Text(visible(one.name)), *row)
    console.print()
    console.print(table)
    said = (report.why, f"page: {folder / PAGE}", f"sweep: {folder / REPORT}")
    for line in said:
        console.print(Text(visible(line)), soft_wrap=True)


def _figures(figure: Compared | None) -> tuple[str, str]:
    if figure is None:
        return "", ""
    return f"{figure.mean:.4f}", f"{figure.low:+.4f} to {figure.high:+.4f}"
