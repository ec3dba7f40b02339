import re
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from prefect.deployments.runner import DeploymentTriggerTypes
from prefect.events.schemas.automations import AutomationCore
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent
from pydantic import TypeAdapter

from flows.service.parameters import FLOWS, NAMES, PIPELINE, TAGS
from tasks.evaluation import REFUSED

ROOT = Path(__file__).parents[2]
DEPLOYED = ROOT / "deployments"
POOL, RETRAIN, AUTOMATIONS = (
    yaml.safe_load((DEPLOYED / f"{name}.yaml").read_text())
    for name in ("prefect", "retrain", "automations")
)
FAILED = "prefect.task-run.Failed"
CROWNED = "prefect.asset.materialization.succeeded"
DEPLOYMENTS = POOL["deployments"] + RETRAIN["deployments"]


def flow_of(deployment):
    module, _, name = deployment["entrypoint"].rpartition(".")
    return getattr(import_module(module), name)


def test_every_flow_has_a_deployment_on_the_pool():
    deployed = {flow_of(deployment).name: deployment["name"] for deployment in POOL["deployments"]}
    served = {flow: f"{name}-pool" for flow, name in NAMES.items()}
    assert deployed == served | {PIPELINE: "pool"}
    assert set(FLOWS) == {PIPELINE, "prepare", "pretrain", "sft", "evaluate", "sft-sweep"}


def test_no_two_deployments_are_called_alike_and_the_pipelines_name_stays():
    assert len(set(NAMES.values())) == len(FLOWS)
    assert NAMES[PIPELINE] == "local"


@pytest.mark.parametrize("deployment", POOL["deployments"], ids=lambda d: d["entrypoint"])
def test_a_deployment_says_what_its_flow_does(deployment):
    assert deployment["description"] == flow_of(deployment).description.partition("\n")[0]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["entrypoint"])
def test_a_deployment_is_tagged_by_its_flow(deployment):
    assert deployment["tags"][0] == TAGS[flow_of(deployment).name]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["entrypoint"])
def test_every_parameter_is_one_of_the_flows(deployment):
    flow = flow_of(deployment)
    assert FLOWS[flow.name] is flow
    for name, value in deployment.get("parameters", {}).items():
        assert name in flow.parameters.properties
        assert (ROOT / value).is_file()


def test_the_examples_are_what_prefect_reads():
    (trigger,) = RETRAIN["deployments"][0]["triggers"]
    TypeAdapter(DeploymentTriggerTypes).validate_python(trigger)
    for automation in AUTOMATIONS["automations"]:
        AutomationCore.model_validate(automation)


def event(name, resource, called=""):
    labels = {"prefect.resource.id": resource, "prefect.resource.name": called}
    now = datetime.now(UTC)
    return ReceivedEvent(occurred=now, received=now, event=name, resource=labels, id=uuid4())


@pytest.mark.parametrize(
    ("happened", "told"),
    [
        (event("prefect.flow-run.Crashed", "prefect.flow-run.1"), "a run failed or crashed"),
        (event("prefect.flow-run.Completed", "prefect.flow-run.1"), None),
        (event(FAILED, "prefect.task-run.1", "validate chat x"), "data were refused"),
        (event(FAILED, "prefect.task-run.1", "pretrain x"), None),
        (event(REFUSED, "mypt.model.chat-1"), "the gate refused a model"),
        (event(CROWNED, "mypt://champions/demo"), "there is a new champion of the demo"),
        (event(CROWNED, "mypt://models/demo-chat"), None),
        (event("mypt.data.changed", "mypt.data.raw"), None),
    ],
)
def test_each_automation_is_set_off_by_what_its_name_says(happened, told):
    fires = [
        automation["name"]
        for automation in AUTOMATIONS["automations"]
        if EventTrigger.model_validate(automation["trigger"]).covers(happened)
    ]
    assert fires == ([f"mypt: {told}"] if told else [])


def test_a_run_is_triggered_by_the_line_that_the_file_tells_people_to_emit():
    (emitted,) = re.findall(
        r"prefect event emit (\S+) --resource-id (\S+)", (DEPLOYED / "retrain.yaml").read_text()
    )
    (trigger,) = RETRAIN["deployments"][0]["triggers"]
    assert EventTrigger.model_validate(trigger).covers(event(*emitted))
