"""Prefect tasks that train: the same stage for pretraining and for fine-tuning.

A scheduler's warning is kept back until the training has saved.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from prefect.runtime import flow_run

from mypt.config import Preset
from mypt.errors import CheckpointError
from mypt.home import models_dir
from mypt.references import CheckpointRef, DatasetRef
from mypt.training import loop
from mypt.training.events import Finished, StepReport
from mypt.training.launch.launch import train_anywhere
from mypt.training.lineage import RunContext
from mypt.training.plan import RunPlan, plan_run
from tasks.keys import stage_key
from tasks.progress import describe_step, watch
from tasks.reporting.live import live_progress
from tasks.reporting.trainings import TrainingReport
from tasks.slot import gpu_slot
from tasks.stages import Output, log, stage, whole_model
from tasks.tracking.recording import mlflow_run_id, recorded


@contextmanager
def held_back_sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM has come, and let it act when the block ends.

    Prefect's own handler raises wherever the program stands, in the middle of a step too. In
    a thread other than the main one no signal arrives, and nothing is held back.
    """
    asked = False

    def ask(_: int, __: FrameType | None) -> None:
        nonlocal asked
        asked = True

    try:
        before = signal.signal(signal.SIGTERM, ask)
    except ValueError:
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGTERM, before)
        if asked:
            signal.raise_signal(signal.SIGTERM)


def _plan(preset: Preset, name: str, dataset: DatasetRef, base: CheckpointRef | None) -> RunPlan:
    """Return the plan, with a name by which equal plans, and no others, meet again."""
    init_from = base.path if base else None
    plan = plan_run(preset, name, dataset.path, init_from=init_from, dataset_digest=dataset.digest)
    if base and plan.parent and plan.parent.digest != base.digest:
        raise CheckpointError(
            f"{base.path}: digest {plan.parent.digest[:12]} found, {base.digest[:12]} expected; the"
            " checkpoint is not the one that was referred to"
        )
    key = stage_key(loop, plan.digest)
    return plan.model_copy(update={"model_name": f"{name}-{key}"})


@stage("train {name}", whole_model)
def train(
    preset: Preset, name: str, dataset: DatasetRef, base: CheckpointRef | None = None
) -> Output[CheckpointRef]:
    """Train a model to its end, or go on where an equal run stopped.

    Args:
        preset: Architecture and training values.
        name: Prefix of the model's name.
        dataset: What to train on.
        base: The model to begin with; None begins with random weights.
    """
    plan = _plan(preset, name, dataset, base)
    key = f"train-{plan.model_name}"
    title = f"fine-tune {name}" if base else f"pretrain {name}"

    def make() -> CheckpointRef:
        with (
            gpu_slot(plan.preset.device),
            recorded(key, title) as run,
            held_back_sigterm() as asked,
            live_progress(plan.model_name) as move,
        ):
            report = TrainingReport(run, plan)
            context = RunContext(prefect_flow_run_id=flow_run.id, mlflow_run_id=mlflow_run_id())
            events = train_anywhere(plan, context=context, should_stop=asked)
            for event in watch(events, plan, log):
                report.take(event)
                if isinstance(event, StepReport):
                    move(event.step / plan.preset.max_iters, describe_step(event, plan))
            assert isinstance(event, Finished)
        return event.checkpoint

    return Output(models_dir() / plan.model_name, key, make)


pretrain = train.with_options(name="pretrain", task_run_name="pretrain {name}")
sft = train.with_options(name="sft", task_run_name="fine-tune {name}")
