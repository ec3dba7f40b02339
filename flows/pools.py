"""Runs asked of other work pools: data are prepared on one, models are trained on another.

A run is sent where its config lies in the home that all pools see, and nothing comes back but how
it ended: what it made is found there by content.
"""

import time
from collections.abc import Mapping
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelling

from flows.chain import prepare_all
from flows.ending import leave_if_prefect_is_away
from flows.forms import (
    AS_IN_FILE,
    PIPELINE_FILE,
    PipelineFile,
    PipelineKnobs,
    asked_pipeline,
    written,
)
from flows.stages import pipeline_run_name
from mypt import files
from mypt.config import PipelineConfig
from mypt.errors import ConfigError, MyptError
from mypt.home import home
from tasks.reporting.pipelines import stage_run
from tasks.stages import tell
from tasks.stopping import acting, stoppable

_SECONDS = 2.0
"""Between two looks at runs elsewhere."""


@flow(name="sft-pools", flow_run_name=pipeline_run_name, persist_result=False)
@stoppable
def sft_pools(
    config: PipelineFile = PIPELINE_FILE,
    overrides: PipelineKnobs = AS_IN_FILE,
    training: str = "sft-pipeline/gpu",
) -> None:
    """Prepare the data of a pipeline here, and train on them where another pool runs.

    Args:
        config: The file that holds all knobs.
        overrides: Knobs that shall not be as in the file; what is left empty is, and a list
            stands for the whole of the file's.
        training: The deployment of sft-pipeline that is asked for the rest, on another pool.
    """
    config = asked_pipeline(config, overrides)
    with stage_run(config, config.name):
        prepare_all(config)
    run_elsewhere(training, {str(flow_run.name): config})
    leave_if_prefect_is_away(lambda: None)


def run_elsewhere(deployment: str, asked: Mapping[str, PipelineConfig]) -> None:
    """Ask a deployment of the pipeline for runs, all at once, and wait until all have ended.

    Where this run is stopped, so are they.

    Args:
        deployment: Its name, as ``FLOW/NAME``; a pool of its own serves it, since this run stays.
        asked: The config of each run, by what people call the run.

    Raises:
        ConfigError: If there is no such deployment, or its runs might wait for the end of this one.
        MyptError: If a run did not complete.
    """
    with acting(False, ours=False) as stopped, get_client(sync_client=True) as client:
        _check(client, deployment)
        waiting = {_ask(deployment, title, config): title for title, config in asked.items()}
        failed = []
        while waiting and not stopped():
            time.sleep(_SECONDS)
            for run in [client.read_flow_run(run_id) for run_id in waiting]:
                if run.state is None or not run.state.is_final():
                    continue
                end = f"{waiting.pop(run.id)} ({run.state.name})"
                tell(f"{end}: {run.name} on {deployment}")
                failed += [] if run.state.is_completed() else [end]
        for run_id in waiting:
            client.set_flow_run_state(run_id, Cancelling())
    if failed:
        raise MyptError(
            f"{len(failed)} of {len(asked)} runs of {deployment} did not complete:"
            f" {', '.join(failed)}; their pages say why, and the same again goes on with what is"
            " complete"
        )


def _check(client: SyncPrefectClient, deployment: str) -> None:
    example = "expected one of the pipeline on another pool, such as deployments/prefect.yaml has"
    try:
        pool = client.read_deployment_by_name(deployment).work_pool_name
    except (ObjectNotFound, ValueError):
        raise ConfigError(
            f"no deployment {deployment!r}; {example}; 'prefect deployment ls' lists them"
        ) from None
    context = FlowRunContext.get()
    ours = context.flow_run.work_pool_name if context and context.flow_run else None
    if pool in (None, ours):
        where = f"is on the pool {pool} as this run is" if pool else "is on no work pool"
        raise ConfigError(
            f"{deployment} {where}; {example}: this run keeps its place until those that it asks"
            " for have ended, and they might wait for that place"
        )


def _ask(deployment: str, title: str, config: PipelineConfig) -> UUID:
    values = written(config)
    path = home() / "asked" / f"{config.name}-{files.digest_json(values)[:12]}.json"
    files.make_folder(path.parent)
    files.write_json(path, values)
    values = {"config": str(path)}
    run = run_deployment(
        deployment,
        parameters=values,
        flow_run_name=title,
        tags=[title],  # by which it knows its name
        timeout=0,
    )
    assert isinstance(run, FlowRun), "outside of an event loop it is no coroutine"
    tell(f"{title}: asked of {deployment}")
    return run.id
