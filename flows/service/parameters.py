"""Flows that are deployed, by the names that people type, and runs asked of them with parameters.

Parameters are checked by the config models before a run exists; a run is followed to its end.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from pydantic import BaseModel

from flows import stages
from flows.forms import BASE_FILE, CHAT_FILE, PIPELINE_FILE, Models, Values, changed
from flows.outcome import show_training
from flows.pipeline import sft_pipeline
from flows.pools import sft_pools
from flows.sweep import sft_sweep
from mypt.errors import ConfigError, MyptError
from tasks.progress import print_line
from tasks.tracking.records import Tags, names, read

PIPELINE = sft_pipeline.name
_ITS_OWN = 500
"""Status from which a server speaks of itself and not of what it was asked."""
FLOWS: dict[str, Flow[..., Any]] = {
    flow.name: flow
    for flow in (
        sft_pipeline,
        stages.prepare,
        stages.pretrain,
        stages.sft,
        stages.evaluate,
        sft_sweep,
    )
}
POOLED: dict[str, Flow[..., Any]] = {sft_pools.name: sft_pools}
"""Flows that wait for runs on another pool, and so are deployed on pools only."""
FILES = {
    PIPELINE: PIPELINE_FILE,
    sft_pools.name: PIPELINE_FILE,
    stages.pretrain.name: BASE_FILE,
    stages.sft.name: CHAT_FILE,
    sft_sweep.name: PIPELINE_FILE,
}
"""The config of each flow that reads one from a file, unless another is named."""
TAGS = dict(
    zip(FLOWS, ("pipeline", "data", "training", "training", "evaluation", "sweep"), strict=True)
)
"""By which deployments and runs are found, wherever the flows are deployed."""
NAMES = dict(
    zip(
        FLOWS, ("local", "prepare-data", "train-base", "fine-tune", "compare", "sweep"), strict=True
    )
)
"""What the deployments of ``mypt up`` do, in the words that a page lists them by."""
_SECONDS = 1.0
_LATE = 3.0
"""Prefect sends log lines every two seconds."""
_LOGS = 200


def change(values: Values, changes: Sequence[str], flow: Flow[..., Any]) -> Values:
    """Return the parameters of a flow with some changed, as :func:`flows.forms.changed` does."""
    return changed(values, changes, _models(flow), FILES.get(flow.name))


def _models(flow: Flow[..., Any]) -> Models:
    """Return the config model of each parameter of a flow, None where it is a plain value."""
    hints = get_type_hints(flow.fn)
    hints.pop("return", None)
    kinds = {name: get_args(hint) or (hint,) for name, hint in hints.items()}
    return {
        name: next((k for k in found if isinstance(k, type) and issubclass(k, BaseModel)), None)
        for name, found in kinds.items()
    }


def ask(word: str, changes: Sequence[str], *, wait: bool) -> int:
    """Ask a deployment for a flow run, and follow its log to its end.

    Args:
        word: The deployment, as ``FLOW/NAME`` or, for what ``mypt up`` serves, as ``FLOW``.
        changes: Parameters, as in :func:`change`.
        wait: Follow the run; else it is only asked for.

    Returns:
        0 if the run completed or was only asked for, 1 if it did not, 130 after Ctrl-C.

    Raises:
        ConfigError: If there is no such deployment, or it refuses the parameters.
        MyptError: If Prefect refuses.
    """
    with get_client(sync_client=True) as client:
        deployment = _find(client, word if "/" in word else f"{word}/{NAMES.get(word, 'local')}")
        flow = (FLOWS | POOLED).get(word.partition("/")[0])
        values = change(deployment.parameters, changes, flow) if flow else deployment.parameters
        if changes and not flow:
            raise ConfigError(f"--param knows only the flows {', '.join(FLOWS)}")
        try:
            run = client.create_flow_run_from_deployment(deployment.id, parameters=values)
        except PrefectHTTPStatusError as error:
            if error.response.status_code >= _ITS_OWN:
                raise MyptError(
                    f"Prefect's server answers {error.response.status_code} and took no run of"
                    f" {word}; it is busy or broken: look at 'mypt up', then ask again"
                ) from None
            said = error.response.json().get("detail", str(error))
            raise ConfigError(f"{word} refuses its parameters: {said}") from None
        page = f"{str(client.api_url).rstrip('/').removesuffix('/api')}/runs/flow-run/{run.id}"
        print_line(f"flow run {run.name}: {page}")
        return _follow(client, run.id, page) if wait else 0


def _find(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        flows = {flow.id: flow.name for flow in client.read_flows()}
        found = (f"{flows[d.flow_id]}/{d.name}" for d in client.read_deployments())
        raise ConfigError(
            f"no deployment {name!r}, and no such file; expected a pipeline config that ends in"
            f" .json, or one of: {', '.join(sorted(found)) or 'none is served, see mypt up'}"
        ) from None
    except PrefectHTTPStatusError as error:
        raise MyptError(f"Prefect refuses: {error.response.status_code}; if it wants a password,"
                        " set PREFECT_API_AUTH_STRING=USER:PASSWORD") from None  # fmt: skip


def _follow(client: SyncPrefectClient, run_id: UUID, page: str) -> int:
    logs = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    shown, settled = 0, False
    try:
        while True:
            run = client.read_flow_run(run_id)
            lines = client.read_logs(logs, limit=_LOGS, offset=shown)
            for line in lines:
                print_line(line.message)
            shown += len(lines)
            over = not lines and run.state is not None and run.state.is_final()
            if over and settled:
                return _ended(run)
            settled = over  # and once more: the last lines arrive after the last state
            time.sleep(_LATE if over else 0 if lines else _SECONDS)
    except KeyboardInterrupt:
        print_line(f"the run goes on: {page}; 'prefect flow-run cancel {run_id}' stops it")
        return 130


def _ended(run: FlowRun) -> int:
    assert run.state is not None
    message = f": {run.state.message}" if run.state.message else ""
    print_line(f"flow run {run.name}: {run.state.name}{message}")
    if not run.state.is_completed():
        return 1
    if made := _made(run.id):
        show_training(made, run.total_run_time.total_seconds())
    return 0


def _made(run_id: UUID) -> Path | None:
    """Return the checkpoint that a run of this machine made, by its journal or a stage's."""
    mine = f"pipeline-{run_id}"
    for name in sorted(names(), key=lambda name: name != mine):
        lines = read(name)
        first = next(lines, None)
        if name == mine or (first and getattr(first.record, "parent", None) == mine):
            tags = (line.record.values for line in lines if isinstance(line.record, Tags))
            found = [values["checkpoint"] for values in tags if "checkpoint" in values]
            if found and Path(found[-1]).is_dir():
                return Path(found[-1])
    return None
