"""Serves the deployments of ``mypt up``: the process that starts asked-for flow runs.

First it sets up its Prefect: one slot a GPU, and an end for runs that are dead.
"""

import asyncio
import sys
from datetime import timedelta
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.types.entrypoint import EntrypointType

from flows.service.internals import patient_runner
from flows.service.parameters import FILES, FLOWS, NAMES, TAGS
from mypt import __version__
from tasks.slot import LIMIT
from tasks.tracking.mirror import follow_prefect

HEARTBEAT_SECONDS = 30
"""Prefect's shortest; its default of three minutes would leave a dead run running for long."""
DEAD_RUNS = "mypt: a run without a heartbeat has crashed"
_MISSED = 4
_ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended", "AwaitingRetry")


def set_up() -> None:
    """Make the limit and the automation where they are not there; what was changed stays so."""
    with get_client(sync_client=True) as client:
        _limit_gpu(client)
        if not client.read_automations_by_name(DEAD_RUNS):
            client.create_automation(dead_runs_crash())


def _limit_gpu(client: SyncPrefectClient) -> None:
    try:
        client.read_global_concurrency_limit_by_name(LIMIT)
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=1))


def dead_runs_crash() -> AutomationCore:
    """Return the automation that marks a run as crashed when its heartbeats stop.

    A process that is killed, or a machine that goes down, cannot say how its run ended: the
    page would show it as running for ever.
    """
    beat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name=DEAD_RUNS,
        description="Marks a flow run as crashed when its process has not been heard of.",
        trigger=EventTrigger(
            after={beat},
            expect={beat, *(f"prefect.flow-run.{end}" for end in _ENDS)},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=_MISSED * HEARTBEAT_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.CRASHED,
                force=False,
                message="Its process has not been heard of for two minutes; retry it to go on.",
            )
        ],
    )


def serve(ready: Path) -> None:
    """Register the deployments, make the file ``ready``, and start flow runs until told to stop.

    One run at a time: two trainings on one machine are slower than one after the other.
    """
    set_up()
    runner = patient_runner()
    for name, flow in FLOWS.items():
        file = Path(FILES.get(name, "")).absolute()
        deployment = RunnerDeployment.from_flow(
            flow,
            NAMES[name],
            parameters={"config": str(file)} if file.is_file() else {},
            description=str(flow.description).partition("\n")[0],
            tags=[TAGS[name]],
            version=f"mypt {__version__}",
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        runner.add_deployment(deployment)
    ready.touch()
    follow_prefect(PREFECT_API_URL.value().removesuffix("/api"))
    asyncio.run(runner.start())


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
