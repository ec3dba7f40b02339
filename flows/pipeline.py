"""The whole way of one run: raw files in, a model out, and the proof of what it saw."""

from pathlib import Path

from prefect import flow

from flows.chain import begin, ended_by, judge, learn, prepare_all, whole
from flows.ending import finished, run_here
from flows.forms import AS_IN_FILE, PIPELINE_FILE, PipelineFile, PipelineKnobs, asked_pipeline
from flows.stages import pipeline_run_name
from flows.summary import show_summary
from mypt.config import PipelineConfig, load_pipeline
from mypt.evaluation.scores import Summary
from tasks.evaluation import evaluate
from tasks.reporting.pipelines import pipeline_run, report_stage, report_training, report_weights
from tasks.stopping import stoppable
from tasks.tracking.mirror import mirror_champion


@flow(name="sft-pipeline", flow_run_name=pipeline_run_name, persist_result=False)
@stoppable
def sft_pipeline(
    config: PipelineFile = PIPELINE_FILE, overrides: PipelineKnobs = AS_IN_FILE
) -> Summary:
    """Turn raw text and chat files into a chat model, by two trainings or any number.

    Args:
        config: The file that holds all knobs.
        overrides: Knobs that shall not be as in the file; what is left empty is, and a list
            stands for the whole of the file's.
    """
    config = asked_pipeline(config, overrides)
    made, ended = dict[str, Summary](), ""
    with pipeline_run(config) as run:
        config, data = prepare_all(config)
        model = begin(config, data)
        for stage in config.chain:
            its, before = data[stage.name], model
            model = learn(stage, its, before)
            report_training(run, stage, its, model)
            if before is None:
                continue
            found = evaluate(before, model, its, config.evaluate, stage.report, stage.form)
            made[stage.name] = found
            report_stage(run, config, stage, data, found)
            if ended := ended_by(run, stage, found):
                break
        report_weights(config, made)
        decided = judge(run, config, data, model, ended)
    if decided:  # by now MLflow's registry lists the model
        mirror_champion()
    summary = whole(made)
    return finished(summary, lambda: show_summary(summary), ended)


def run_pipeline(config: Path | PipelineConfig) -> Summary:
    """Run the pipeline in this process, print its figures, and return them.

    Raises:
        MyptError: If a stage cannot go on, or Prefect cannot be reached at all.
    """
    resolved = load_pipeline(config) if isinstance(config, Path) else config
    summary = run_here(lambda: sft_pipeline(resolved))
    show_summary(summary)
    return summary
