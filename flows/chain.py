"""What a pipeline does stage by stage: both forms of its config come to one chain of them."""

from pathlib import Path

from mypt.config import PipelineConfig, PipelineStage
from mypt.data.manifest import read_manifest
from mypt.errors import ConfigError
from mypt.evaluation.scores import Summary
from mypt.references import CheckpointRef, DatasetRef
from tasks import training
from tasks.evaluation import NOT_ASKED, gate, objections
from tasks.masking import mask
from tasks.reporting.pipelines import report_gate
from tasks.tokenization import begin_with, replay, tokenize
from tasks.tracking.journal import Journal
from tasks.validation import validate


def prepare_all(config: PipelineConfig) -> tuple[PipelineConfig, dict[str, DatasetRef]]:
    """Prepare the data of all stages, and return them by the stages' names.

    So what is wrong with any of them is found before the first training. The config comes back with
    the folders of its held-out data among those that models are scored on.

    Raises:
        ConfigError: If a stage would learn conversations without a mask, unasked.
        MyptError: As the tasks.
    """
    tokens: dict[str, DatasetRef] = {}
    found: dict[str, DatasetRef] = {}
    last, who = None, config.preparation
    for stage in config.chain:
        name, what = stage.title, stage.what
        made = tokenize(stage.data, name, what, tokenizer=last, preparation=who)
        tokens[stage.name] = made
        if stage.replay:
            earlier = {one: tokens[one] for one in stage.replay}
            made = replay(made, earlier, dict(stage.replay), name, what)
        if stage.mask is not None:
            made = mask(made, stage.mask, name, what)
        elif config.stages and read_manifest(Path(made.path), made.digest).kind == "chat":
            raise ConfigError(
                f"{stage.knobs}: its rows are conversations, and it has no mask; add mask: {{}} to"
                " learn what the assistant says"
            )
        last = found[stage.name] = validate(made, stage.checked, name, what)
    sets = config.evaluate.sets | _held_out(config, found[config.tuned.name])
    evaluate = config.evaluate.model_copy(update={"sets": sets})
    return config.model_copy(update={"evaluate": evaluate}), found


def _held_out(config: PipelineConfig, tokenizer: DatasetRef) -> dict[str, str]:
    """Prepare what nothing learns from, in the tokens of a stage and masked as it, by name."""
    policy, what = config.tuned.mask, "held-out data"
    found = {}
    for one, asked in config.held_out.items():
        name = f"{config.name}-{one}"
        made = tokenize(asked, name, what, tokenizer=tokenizer, preparation=config.preparation)
        found[one] = (made if policy is None else mask(made, policy, name, what)).path
    return found


def begin(config: PipelineConfig, data: dict[str, DatasetRef]) -> CheckpointRef | None:
    """Return the model that the first stage begins with; None for random weights."""
    if not (named := config.init_from_model):
        return None
    first = config.chain[0]
    found: CheckpointRef = begin_with(named, data[first.name], first.train.base)
    return found


def learn(stage: PipelineStage, dataset: DatasetRef, before: CheckpointRef | None) -> CheckpointRef:
    """Train the model of a stage, from the one before it where there is one."""
    task = training.pretrain if before is None else training.sft
    task = training.prefer if stage.train.of_pairs else task
    return task(stage.train, stage.title, dataset, base=before)


def ended_by(run: Journal, stage: PipelineStage, found: Summary) -> str:
    """Return by what the pipeline ends after a stage; empty where it goes on.

    Args:
        run: The pipeline's, on which the reasons are said.
        stage: The stage.
        found: Its model beside the one before.
    """
    if stage.gate is None or not (why := objections(stage.gate, found, stage.title)):
        return ""
    ended = f"ended by the gate of {stage.name}"
    report_gate(run, f"{ended}: {why}")
    return ended


def judge(
    run: Journal,
    config: PipelineConfig,
    data: dict[str, DatasetRef],
    model: CheckpointRef | None,
    ended: str,
) -> bool:
    """Ask the gate about the last model, and return whether it was asked.

    Args:
        run: The pipeline's, on which the answer is said.
        config: Whether to ask.
        data: By stage.
        model: The last one.
        ended: By what the pipeline ended before its end; then nobody becomes champion.
    """
    asked = bool(config.evaluate.gate) and not ended
    if asked:
        where = data[config.tuned.name]
        report_gate(run, gate(model, where, config.evaluate, config.name))
    elif not ended:
        report_gate(run, NOT_ASKED)
    return asked


def whole(made: dict[str, Summary]) -> Summary:
    """Return the summary that a run is known by: the last of no pairs, with the others in it.

    Args:
        made: What each stage made of the model before, in order.
    """
    last = ([name for name in made if made[name].pairs is None] or list(made))[-1]
    return made[last].model_copy(
        update={"others": {name: found for name, found in made.items() if name != last}}
    )
