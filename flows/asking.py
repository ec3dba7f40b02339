"""``mypt run NAME``: a deployment is asked for a run, which is followed to its end."""

import time
from collections.abc import Sequence
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from flows.catalogue import FLOWS
from flows.parameters import change
from mypt.errors import ConfigError, MyptError
from tasks.progress import print_line

_SECONDS = 1.0
_LATE = 3.0
"""Prefect sends log lines every two seconds."""
_LOGS = 200


def ask(word: str, changes: Sequence[str], *, wait: bool) -> int:
    """Ask a deployment for a flow run, and follow its log to its end.

    Args:
        word: The deployment, as ``FLOW/NAME`` or, for NAME ``local``, as ``FLOW``.
        changes: Parameters, as in :func:`change`.
        wait: Follow the run; else it is only asked for.

    Returns:
        0 if the run completed or was only asked for, 1 if it did not, 130 after Ctrl-C.

    Raises:
        ConfigError: If there is no such deployment, or it refuses the parameters.
        MyptError: If Prefect refuses.
    """
    with get_client(sync_client=True) as client:
        deployment = _find(client, word if "/" in word else f"{word}/local")
        flow = FLOWS.get(word.partition("/")[0])
        values = change(deployment.parameters, changes, flow) if flow else deployment.parameters
        if changes and not flow:
            raise ConfigError(f"--param knows only the flows {', '.join(FLOWS)}")
        try:
            run = client.create_flow_run_from_deployment(deployment.id, parameters=values)
        except PrefectHTTPStatusError as error:
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
    return 0 if run.state.is_completed() else 1
