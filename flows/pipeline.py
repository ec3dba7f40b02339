"""The whole way of one run: raw files in, a chat model out, and the proof of what it saw."""

from pathlib import Path

from prefect import flow

from flows.ending import leave_if_prefect_is_away, run_here
from flows.forms import AS_IN_FILE, PIPELINE_FILE, PipelineFile, PipelineKnobs, asked_pipeline
from flows.stages import pipeline_run_name, prefer_after
from flows.summary import show_summary
from mypt.config import PipelineConfig, load_pipeline
from mypt.evaluation.scores import Summary
from tasks.evaluation import NOT_ASKED, evaluate, gate
from tasks.masking import mask
from tasks.reporting.pipelines import pipeline_run, report_gate, report_pipeline
from tasks.stopping import stoppable
from tasks.tokenization import tokenize
from tasks.tracking.mirror import mirror_champion
from tasks.training import pretrain, sft
from tasks.validation import validate


@flow(name="sft-pipeline", flow_run_name=pipeline_run_name, persist_result=False)
@stoppable
def sft_pipeline(
    config: PipelineFile = PIPELINE_FILE, overrides: PipelineKnobs = AS_IN_FILE
) -> Summary:
    """Turn raw text and chat files into a chat model.

    Args:
        config: The file that holds all knobs.
        overrides: Knobs that shall not be as in the file; what is left empty is, and a list
            stands for the whole of the file's.
    """
    config = asked_pipeline(config, overrides)
    base, chat, who = f"{config.name}-base", f"{config.name}-chat", config.preparation
    with pipeline_run(config) as run:
        text = tokenize(config.base, base, "base corpus", preparation=who)
        text = validate(text, config.pretrain, base, "base corpus")
        talk = tokenize(config.chat, chat, "chat data", tokenizer=text, preparation=who)
        talk = mask(talk, config.mask, chat, "chat data")
        talk = validate(talk, config.tuning(), chat, "chat data")
        base_model = pretrain(config.pretrain, base, text)
        chat_model = sft(config.sft, chat, talk, base=base_model)
        summary = evaluate(base_model, chat_model, talk, config.evaluate, config.name)
        report_pipeline(run, config, text, talk, summary)
        model, summary = prefer_after(run, config, chat_model, talk, summary)
        asked = config.evaluate.gate
        report_gate(run, gate(model, talk, config.evaluate, config.name) if asked else NOT_ASKED)
    if asked:  # by now MLflow's registry lists the model
        mirror_champion()
    leave_if_prefect_is_away(lambda: show_summary(summary))
    return summary


def run_pipeline(config: Path | PipelineConfig) -> Summary:
    """Run the pipeline in this process, print its figures, and return them.

    Raises:
        MyptError: If a stage cannot go on, or Prefect cannot be reached at all.
    """
    resolved = load_pipeline(config) if isinstance(config, Path) else config
    summary = run_here(lambda: sft_pipeline(resolved))
    show_summary(summary)
    return summary
