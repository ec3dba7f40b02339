"""The run of a whole pipeline in MLflow, parent of its stages' runs, linked both ways."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from prefect.runtime import flow_run
from pydantic import BaseModel

from mypt import files
from mypt.config import PipelineConfig, PipelineStage
from mypt.data.manifest import SPLITS, read_manifest
from mypt.data.policies import EVERY_TOKEN, policy_words
from mypt.data.reading.sources import source_name
from mypt.evaluation.scores import ModelScores, Summary
from mypt.provenance.lineage_page import render_page
from mypt.provenance.trace import trace
from mypt.references import CheckpointRef, DatasetRef
from mypt.text import markdown, shorten
from mypt.training.checkpoints.state import read_state
from mypt.training.lineage import read_lineage
from tasks.reporting import artifacts
from tasks.reporting.artifacts import training_plot
from tasks.reporting.datasets import PREVIEW
from tasks.reporting.evaluations import (
    answer_journals,
    evaluation_tables,
    pair_metrics,
    score_metrics,
    summary_metrics,
)
from tasks.reporting.inputs import SHOWN_DIGITS, called, dataset_input
from tasks.stages import tell
from tasks.tracking.destination import (
    GATE_TAG,
    KIND_TAG,
    NOTE_TAG,
    PIPELINE,
    PREFECT_TAG,
    REUSED,
    SWEEP,
    mlflow_url,
    overview_url,
    read_sent,
    shown_uri,
    ui_answers,
    ui_server,
)
from tasks.tracking.journal import Journal, is_finished
from tasks.tracking.recording import recorded, reuse, reused_everything
from tasks.tracking.records import (
    Described,
    Metrics,
    Opened,
    Params,
    Tags,
    Text,
    Upload,
    flatten,
    journal_path,
    names,
    read,
)

PREFECT_UI = "http://127.0.0.1:4200"
"""Where ``mypt up`` shows what runs without a server left."""
_JOURNAL = "pipeline-{}"
"""Of a flow run, by its id."""
_KNOB = re.compile(r"\b\w+(\.\w+)+=")
_SEEN, _DATA = 24, 11
"""Characters of a run's name that MLflow's lists show, and how many of them name the data."""


@contextmanager
def pipeline_run(config: PipelineConfig) -> Iterator[Journal]:
    """Record what the block does as one run of the pipeline, with its resolved config."""
    tuned, config = config.tuned, _in_force(config)
    learned = tuned.mask if tuned.checked.use_loss_mask else None
    policy = policy_words(learned) if learned else EVERY_TOKEN
    title = _title(policy, [source_name(source) for source in tuned.data.sources], config.name)
    if _is_sweep(_asked_by()):  # lists cut names, so that they hold the values alone
        title = f"{_KNOB.sub('', flow_run.name or '')} ({config.name})"
    # Short words come first: they are the columns by which people tell runs apart.
    words = {"policy": policy, "template": config.chain[0].data.template}
    with _recorded_flow(title, config.name, config, {KIND_TAG: PIPELINE}, words) as run:
        yield run
    _tell_where_ranked(run.name, config.name)


@contextmanager
def sweep_run(config: PipelineConfig, knobs: dict[str, str]) -> Iterator[Journal]:
    """Record what the block does as one run above the pipelines of a sweep.

    Args:
        config: What the pipelines have but for the knobs.
        knobs: What is varied, and the values.
    """
    title = f"{shorten('sweep over ' + ', '.join(knobs), _SEEN)} ({config.name})"
    words = {f"over.{knob}": values for knob, values in knobs.items()}
    with _recorded_flow(title, config.name, config, {KIND_TAG: SWEEP}, words) as run:
        yield run


def _title(policy: str, sources: list[str], pipeline: str) -> str:
    """Return a run's name: what differs within an experiment comes first, since lists cut names."""
    data = ", ".join(sources)
    if len(data) > _DATA:
        more = f" +{len(sources) - 1}" if len(sources) > 1 else ""
        data = shorten(sources[0], _DATA - len(more)) + more
    return f"{shorten(policy, _SEEN - len(data) - len(': '))}: {data} ({pipeline})"


def _in_force(config: PipelineConfig) -> PipelineConfig:
    """Return the config with what each training really has; the base corpus has no masks."""
    if config.stages:
        pairs = zip(config.stages, config.chain, strict=True)
        stages = tuple(said.model_copy(update=dict(found.checked)) for said, found in pairs)
        return config.model_copy(update={"stages": stages})
    assert config.pretrain, "said, where there are no stages"
    masked = {"use_loss_mask": bool(config.pretrain.use_loss_mask)}
    base = config.pretrain.model_copy(update=masked)
    return config.model_copy(update={"pretrain": base, "sft": config.tuning()})


def _tell_where_ranked(journal: str, experiment: str) -> None:
    if found := read_sent(journal).experiment_id:  # else MLflow is away, which was said
        url = overview_url(ui_server(), found)
        served = "" if ui_answers() else " (with 'mypt up')"
        tell(f"runs of {experiment}, the best first: {url}{served}")


@contextmanager
def stage_run(config: BaseModel, name: str) -> Iterator[Journal]:
    """Record what the block does as one run of a stage alone, with its resolved config.

    Args:
        config: All that was asked for.
        name: The experiment that the run is in; runs of one name are compared.
    """
    with _recorded_flow(flow_run.name or name, name, config, {}, {}) as run:
        yield run


@contextmanager
def _recorded_flow(
    title: str, experiment: str, config: BaseModel, tags: dict[str, str], words: dict[str, str]
) -> Iterator[Journal]:
    journal = _JOURNAL.format(flow_run.id or uuid4())
    with recorded(
        journal, title, experiment=experiment, tags=tags, shared=_way_back(), parent=_asked_by()
    ) as run:
        values = config.model_dump(mode="json")
        if stages := values.get("stages"):
            del values["mask"]  # each stage has its own
        run.write(Text(name="config.json", text=json.dumps(values, indent=2)))
        by_name = {"stages": {one["name"]: one for one in stages}} if stages else {}
        run.write(Params(values=words | _known(values | by_name)))
        artifacts.mlflow_link(title, shown_uri(), lambda: mlflow_url(run.name))
        yield run
        if reused_everything():
            run.write(Tags(values={KIND_TAG: REUSED, REUSED: "everything"}))


def _asked_by() -> str | None:
    """Return the journal of the flow run that asked for this one, maybe on another pool."""
    name = _JOURNAL.format(flow_run.parent_flow_run_id)
    return name if journal_path(name).exists() else None


def _is_sweep(journal: str | None) -> bool:
    first = next(read(journal)).record if journal else None
    return isinstance(first, Opened) and first.tags.get(KIND_TAG) == SWEEP


def _known(config: dict[str, Any]) -> dict[str, str]:
    """Return what is known before the data are there; epochs become steps later."""
    values = flatten(config)
    epochs = [key for key in values if key.endswith("epochs") and values[key] != "None"]
    steps = {key.removesuffix("epochs") + "max_iters" for key in epochs}
    return {key: value for key, value in values.items() if key not in steps}


def report_training(
    run: Journal, stage: PipelineStage, dataset: DatasetRef, model: CheckpointRef
) -> None:
    """Repeat on the parent what a stage learned from, and how that went."""
    kinds = ("pretrain",) if stage.mask is None else ("train", "validation")
    for context in ("prefer",) if stage.train.of_pairs else kinds:
        run.write(dataset_input(dataset, context))
    params = {f"{stage.name}_dataset": dataset.digest[:SHOWN_DIGITS]}
    folder = Path(model.path)
    lineage, best = read_lineage(folder), read_state(folder).best_val_loss
    figures = {"tokens_learned": float(lineage.supervised), "tokens_read": float(lineage.tokens)}
    figures |= {} if best is None else {"best_val_loss": best}
    run.write(Metrics(values={f"{stage.label}_{key}": value for key, value in figures.items()}))
    if stage.train.epochs is not None:
        params[f"{stage.knobs}.max_iters"] = str(lineage.config.max_iters)
    run.write(Params(values=params))
    journal = f"train-{lineage.model_name}"
    if journal_path(journal).exists():  # a model may come from another home
        plot = training_plot(journal, lineage.model_name)
        run.write(Text(name=f"{stage.label}.svg", text=plot))


def report_stage(
    run: Journal,
    config: PipelineConfig,
    stage: PipelineStage,
    data: dict[str, DatasetRef],
    summary: Summary,
) -> None:
    """Repeat on the parent what runs are compared by: the list of runs shows parents first.

    Args:
        run: The parent's.
        config: The pipeline's; of any number of stages, figures go by the stage's name too.
        stage: The stage that was evaluated.
        data: By stage.
        summary: Its model beside the one before.
    """
    if config.stages:
        changes = {
            f"change_{name.replace(' ', '_')}": of.change for name, of in summary.sets.items()
        }
        named = score_metrics(summary.sft) | changes
        run.write(Metrics(values={f"{stage.name}/{key}": value for key, value in named.items()}))
    if summary.pairs is not None:
        _report_preference(run, data[stage.name], summary)
        return
    its, place = data[stage.name], list(data).index(stage.name) if config.stages else 0
    # MLflow takes the last step's figure for the run's own.
    run.write(Metrics(step=place, values=summary_metrics(summary) | _data_sizes(its)))
    named_digests = {f"digest.{name}": digest for name, digest in summary.digests.items()}
    run.write(Tags(values={"checkpoint": summary.checkpoint, **named_digests}))
    _describe(run, config, stage, data, summary)
    for record in evaluation_tables(summary):
        run.write(record)
    run.write(Text(name="lineage.html", text=render_page(trace(Path(summary.checkpoint)))))


def _report_preference(run: Journal, pairs: DatasetRef, summary: Summary) -> None:
    """Repeat what became of preference pairs, and what was forgotten by them."""
    run.write(Metrics(values=pair_metrics(summary)))
    run.write(Tags(values={"preferred": summary.checkpoint}))
    assert summary.pairs, "the dataset is one of pairs"
    found = summary.pairs
    said = f"{found.accuracy:.1%} of {found.pairs:,} held out, margin {found.margin:+.3f} nats"
    lost = ", ".join(f"{name} {of.change:+.3f}" for name, of in summary.sets.items())
    lines = (f"- **pairs**: {said}", f"- **change of loss by pairs**: {markdown(lost)}")
    run.write(
        Described(
            lines=lines, pages=_pages(pairs, summary), beside=answer_journals(_evaluated(summary))
        )
    )


def report_weights(config: PipelineConfig, made: dict[str, Summary]) -> None:
    """Ask MLflow to hold the weights of all models, where the config wants that."""
    if config.tracking.upload == "weights":
        models = [one for found in made.values() for one in (found.base, found.sft)]
        _upload_weights(*{one.checkpoint.digest: one for one in models}.values())


def _upload_weights(*models: ModelScores) -> None:
    """Ask MLflow to hold the weights, in a run that is sent after those that list the models."""
    digests = [model.checkpoint.digest for model in models]
    key, title = f"upload-{files.digest_json(digests)[:12]}", "upload weights"
    if is_finished(key):
        reuse(key, title)
        return
    with recorded(key, title) as run:
        for model in models:
            run.write(Upload(name=model.model, checkpoint=model.checkpoint))


def _describe(
    run: Journal,
    config: PipelineConfig,
    stage: PipelineStage,
    data: dict[str, DatasetRef],
    summary: Summary,
) -> None:
    """Say what was learned, of which data, from which base, what came of it, and where to look."""
    scores = (summary.base, summary.sft)
    before, after = (found.exact_match.get("overall") for found in scores)
    answers = "" if after is None else f"exact match {before or 0:.1%} → {after:.1%}, "
    losses = " → ".join(f"{found.val_loss:.3f}" for found in scores)
    parent = f"{summary.base.model} step {summary.base.checkpoint.step}"
    its = data[stage.name]
    read = called(its.path, its.digest)
    if not config.stages:
        read += f"; base corpus {called(data['base'].path, data['base'].digest)}"
    facts = {
        "mask": f"{summary.policy}, {summary.mask_density:.1%} of the tokens read were learned",
        "data": read,
        "parent": called(parent, summary.digests["base_checkpoint"]),
        "model": f"{summary.sft.model}, {answers}loss {losses}",
    }
    if config.stages:
        facts = {f"{stage.name}, {what}": said for what, said in facts.items()}
    run.write(
        Described.of(facts, *_pages(its, summary), beside=answer_journals(_evaluated(summary)))
    )


def _pages(dataset: DatasetRef, summary: Summary) -> tuple[tuple[str, str, str], ...]:
    """Return what there is to look at of a stage, each on the page of the run that made it."""
    checked = f"validate-{Path(dataset.path).name}-"
    return (
        *[("preview", name, PREVIEW) for name in names() if name.startswith(checked)][:1],
        ("lineage", f"train-{summary.sft.model}", "lineage.html"),
        ("answers", _evaluated(summary), "dialogues.json"),
    )


def _evaluated(summary: Summary) -> str:
    """Return the journal of the evaluation that a summary is of."""
    return f"evaluate-{Path(summary.evaluation).parent.name}"


def report_gate(run: Journal, decided: str) -> None:
    """Say on a flow's run what the gate decided; a tag, since a retry may find it otherwise."""
    run.write(Tags(values={GATE_TAG: decided}))
    run.write(Described.of({"gate": decided}))


def _data_sizes(dataset: DatasetRef) -> dict[str, float]:
    manifest = read_manifest(Path(dataset.path), dataset.digest)
    return {f"tokens_{split}": manifest.tokens(split) for split in SPLITS}


def _way_back() -> dict[str, str]:
    """Return the tags that lead from a run in MLflow to the flow run that it is of."""
    if flow_run.id is None:
        return {}
    shown_at = flow_run.ui_url or ""
    server = shown_at.partition("/flow-runs/")[0] if shown_at.startswith("http") else PREFECT_UI
    url = f"{server}/runs/flow-run/{flow_run.id}"
    return {
        PREFECT_TAG: server,
        "prefect.flow_run_id": flow_run.id,
        "prefect.flow_run_name": flow_run.name or "",
        "prefect.flow_run_url": url,
        NOTE_TAG: f"Prefect flow run [{markdown(flow_run.name or '')}]({url})",
    }
