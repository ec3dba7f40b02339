from importlib import import_module
from pathlib import Path

import pytest
import yaml
from prefect.deployments.runner import DeploymentTriggerTypes
from prefect.events.schemas.automations import AutomationCore
from pydantic import TypeAdapter

from flows.catalogue import FLOWS, PIPELINE

ROOT = Path(__file__).parents[2]
POOL, RETRAIN, AUTOMATIONS = (
    yaml.safe_load((ROOT / "deployments" / f"{name}.yaml").read_text())
    for name in ("prefect", "retrain", "automations")
)
DEPLOYMENTS = POOL["deployments"] + RETRAIN["deployments"]


def flow_of(deployment):
    module, _, name = deployment["entrypoint"].rpartition(".")
    return getattr(import_module(module), name)


def test_every_flow_has_a_deployment_on_the_pool():
    deployed = {flow_of(deployment).name: deployment["name"] for deployment in POOL["deployments"]}
    assert deployed == dict.fromkeys(FLOWS, "pool")
    assert set(FLOWS) == {PIPELINE, "prepare", "pretrain", "sft", "evaluate"}


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
