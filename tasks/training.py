"""Prefect tasks that train: the same stage for pretraining and for fine-tuning.

A signal is held back until the training has saved.
"""

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
from tasks.stopping import acting
from tasks.tracking.recording import mlflow_run_id, recorded


def planned(
    preset: Preset, name: str, dataset: DatasetRef, base: CheckpointRef | None = None
) -> RunPlan:
    """Return the plan, with a name by which equal plans, and no others, meet again.

    A fine-tuning whose preset does not say uses the masks.
    """
    plan = plan_run(
        preset,
        name,
        dataset.path,
        init_from=base.path if base else None,
        dataset_digest=dataset.digest,
        masks_by_default=True if base else None,
    )
    if base and plan.parent and plan.parent.digest != base.digest:
        raise CheckpointError(
            f"{base.path}: digest {plan.parent.digest[:12]} found, {base.digest[:12]} expected; the"
            " checkpoint is not the one that was referred to"
        )
    key = stage_key(loop, plan.digest)
    return plan.model_copy(update={"model_name": f"{name}-{key}"})


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
    plan = planned(preset, name, dataset, base)
    key = f"train-{plan.model_name}"
    title = f"fine-tune {name}" if base else f"pretrain {name}"

    def make() -> CheckpointRef:
        with (
            gpu_slot(plan.preset.device),
            recorded(key, title) as run,
            acting(False) as asked,
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


pretrain = stage("pretrain {name}", whole_model, name="pretrain")(train)
sft = stage("fine-tune {name}", whole_model, name="sft")(train)
prefer = stage("prefer {name}", whole_model, name="prefer")(train)
