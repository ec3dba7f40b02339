import asyncio
import json
import re
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
import yaml
from prefect.deployments.runner import DeploymentTriggerTypes
from prefect.events.schemas.automations import AutomationCore
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker
from pydantic import TypeAdapter

from flows.pools import sft_pools
from flows.service.parameters import FLOWS, NAMES, PIPELINE, POOLED, TAGS
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
    deployed = {
        flow_of(deployment).name: deployment["name"]
        for deployment in POOL["deployments"]
        if deployment["work_pool"]["name"] == "mypt"
    }
    served = {flow: f"{name}-pool" for flow, name in NAMES.items()}
    assert deployed == served | dict.fromkeys((PIPELINE, *POOLED), "pool")
    assert set(FLOWS) == {PIPELINE, "prepare", "pretrain", "sft", "evaluate", "sft-sweep"}


def test_what_data_are_prepared_for_is_trained_on_another_pool():
    asked = sft_pools.parameters.properties["training"]["default"]
    (found,) = [
        deployment
        for deployment in POOL["deployments"]
        if f"{flow_of(deployment).name}/{deployment['name']}" == asked
    ]
    assert found["work_pool"]["name"] != "mypt"
    assert "concurrency_limit" not in found, "a sweep's trainings run there side by side"


def test_no_two_deployments_are_called_alike_and_the_pipelines_name_stays():
    assert len(set(NAMES.values())) == len(FLOWS)
    assert NAMES[PIPELINE] == "local"


@pytest.mark.parametrize("deployment", POOL["deployments"], ids=lambda d: d["entrypoint"])
def test_a_deployment_says_what_its_flow_does(deployment):
    assert deployment["description"] == flow_of(deployment).description.partition("\n")[0]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["entrypoint"])
def test_a_deployment_is_tagged_by_its_flow(deployment):
    tags = TAGS | dict.fromkeys(POOLED, TAGS[PIPELINE])
    assert deployment["tags"][0] == tags[flow_of(deployment).name]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["entrypoint"])
def test_every_parameter_is_one_of_the_flows(deployment):
    flow = flow_of(deployment)
    assert (FLOWS | POOLED)[flow.name] is flow
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


class Kept:
    """What a worker asks Prefect for: variables and secrets that somebody made."""

    def __init__(self, variables=(), secrets=()):
        self.variables, self.secrets = dict(variables), dict(secrets)

    async def read_variable_by_name(self, name):
        value = self.variables.get(name)
        return value and SimpleNamespace(value=value)

    async def read_block_document_by_name(self, name, block_type_slug):
        assert block_type_slug == "secret"
        return SimpleNamespace(data={"value": self.secrets[name]}, block_type=None)


def test_a_pools_runs_get_variables_and_secrets_and_may_lack_them():
    file = (DEPLOYED / "prefect.yaml").read_text()
    (named,) = re.findall(r'#   ("MLFLOW_TRACKING_PASSWORD": .*)', file)
    (block,) = re.findall(r"save\('(.*)'\)", file)
    template = json.loads((DEPLOYED / "pool.json").read_text())

    def environment(kept, **given):
        configured = ProcessJobConfiguration.from_template_and_values(
            template, {"env": given}, client=kept
        )
        return asyncio.run(configured).env

    nothing = {"MYPT_HOME": "", "MLFLOW_TRACKING_URI": ""}
    assert environment(Kept()) == nothing, "which mypt refuses of a home"
    variables = re.findall(r"prefect variable set (\S+) (\S+)", file)
    template["variables"]["properties"]["env"]["default"] |= json.loads(f"{{{named}}}")
    assert environment(Kept(variables, {block: "open sesame"}), OTHER="1") == {
        "MYPT_HOME": "/shared/runs",
        "MLFLOW_TRACKING_URI": "http://mlflow.example.org:5000",
        "MLFLOW_TRACKING_PASSWORD": "open sesame",
        "OTHER": "1",
    }


def test_the_pools_template_is_prefects_own_but_for_what_all_runs_share():
    ours = json.loads((DEPLOYED / "pool.json").read_text())
    own = ProcessWorker.get_default_base_job_template()
    assert ours["job_configuration"] == own["job_configuration"]
    assert ours["variables"]["properties"].keys() == own["variables"]["properties"].keys()


def test_runs_work_where_the_deployment_was_made_by_a_step_that_says_so():
    ((step,),) = [list(step.items()) for step in POOL["pull"]]
    assert step == ("prefect.deployments.steps.set_working_directory", {"directory": "{{ $PWD }}"})
