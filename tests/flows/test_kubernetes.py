"""What Kubernetes is given: rendered as Prefect renders it, held against Kubernetes' own schema."""

import copy
import json
import re
from importlib import import_module
from pathlib import Path
from uuid import uuid4

import kubernetes_validate
import pytest
import yaml
from prefect.utilities.schema_tools import is_valid_schema, validate
from prefect.utilities.templating import apply_values, find_placeholders
from prefect.workers.base import BaseJobConfiguration

from flows.cli import app
from flows.commands import models
from mypt.config import load_config
from mypt.training.launch.nodes import Nodes, check_sizes

FOLDER = Path(__file__).parents[2] / "deployments" / "kubernetes"
POOL = json.loads((FOLDER / "pool.json").read_text())
PREFECT = yaml.safe_load((FOLDER / "prefect.yaml").read_text())
SERVICE, PRESETS, JOB = yaml.safe_load_all((FOLDER / "nodes.yaml").read_text())
DOCKERFILE = (FOLDER.parent / "Dockerfile").read_text()
VERSIONS = ("1.33", "1.37")
"""Of Kubernetes: what clusters run, and the newest."""
VARIABLES = POOL["variables"]["properties"]
(DEPLOYMENT,) = PREFECT["deployments"]


def rendered(**values):
    """The job that Prefect's worker makes of the pool's template and a deployment's variables."""
    defaults = {name: one["default"] for name, one in VARIABLES.items() if "default" in one}
    known = {name: value for name, value in (defaults | values).items() if value is not None}
    found = apply_values(copy.deepcopy(POOL["job_configuration"]), known)
    container = found["job_manifest"]["spec"]["template"]["spec"]["containers"][0]
    # What the worker itself puts in: the flow run's command, and its environment as pairs.
    container["args"] = str(BaseJobConfiguration._base_flow_run_command()).split()
    environment = BaseJobConfiguration._base_environment() | found["env"]
    container["env"] = [{"name": name, "value": value} for name, value in environment.items()]
    found["job_manifest"]["metadata"]["labels"] = {"prefect.io/flow-run-id": str(uuid4())}
    return found["job_manifest"]


def checked(manifest):
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


def pods():
    return [rendered(image="mypt:1")["spec"]["template"]["spec"], JOB["spec"]["template"]["spec"]]


def test_the_pools_variables_are_what_prefect_shows_as_a_form():
    assert is_valid_schema(POOL["variables"]) is None
    names = {one.name for one in find_placeholders(POOL["job_configuration"])}
    assert names == set(VARIABLES)
    required = set(POOL["variables"]["required"])
    assert required == {name for name, one in VARIABLES.items() if "default" not in one}
    wrong = {"image": "mypt:1", "gpus": -1, "user": 0}
    assert len(validate(wrong, POOL["variables"])) == 2
    assert validate({}, POOL["variables"])
    for name in BaseJobConfiguration.model_fields:
        assert name in POOL["job_configuration"]


@pytest.mark.parametrize("values", [{}, {"gpus": 8, "env": {"A": "b"}, "finished_job_ttl": None}])
def test_a_rendered_job_is_one_of_kubernetes(values):
    given = {"image": "registry.example.org/mypt@sha256:0f"} | values
    assert not validate(given, POOL["variables"])
    job = rendered(**given)
    assert not find_placeholders(job)
    pod = job["spec"]["template"]["spec"]
    # Prefect's worker refuses a template without these two, which Kubernetes ignores here.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    checked(job)
    (container,) = pod["containers"]
    assert container["name"] == "prefect-job"  # by which the worker finds it
    assert pod["restartPolicy"] == "Never"
    assert job["spec"]["backoffLimit"] == 0  # Prefect starts a flow run again, and nobody else
    assert container["resources"]["limits"]["nvidia.com/gpu"] == values.get("gpus", 0)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda pod: pod.update(completions=1),
        lambda pod: pod["containers"][0].pop("name"),
        lambda pod: pod.update(terminationGracePeriodSeconds="soon"),
    ],
    ids=["a key in the wrong place", "a missing one", "a wrong type"],
)
def test_the_schema_refuses_what_kubernetes_would(spoil):
    job = copy.deepcopy(JOB)
    checked(job)
    spoil(job["spec"]["template"]["spec"])
    with pytest.raises(kubernetes_validate.ValidationError):
        checked(job)


def test_the_deployment_asks_for_what_the_pool_has():
    module, _, name = DEPLOYMENT["entrypoint"].rpartition(".")
    flow = getattr(import_module(module), name)
    assert set(DEPLOYMENT["parameters"]) <= set(flow.parameters.properties)
    assert not validate(DEPLOYMENT["work_pool"]["job_variables"], POOL["variables"])
    ((step, given),) = PREFECT["pull"][0].items()
    module, _, name = step.rpartition(".")
    assert callable(getattr(import_module(module), name))
    assert f"WORKDIR {given['directory']}\n" in DOCKERFILE


def test_several_nodes_are_one_agent_a_pod_that_find_the_first():
    checked(SERVICE)
    checked(JOB)
    spec, name = JOB["spec"], JOB["metadata"]["name"]
    (container,) = spec["template"]["spec"]["containers"]
    program, *words = container["args"]
    command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert (program, command) == ("mypt", models.train)
    assert bound.arguments["nodes"] == f"1:{spec['completions']}"
    assert spec["completions"] == spec["parallelism"]
    assert spec["completionMode"] == "Indexed"  # which names pods NAME-0, NAME-1 ...
    host, _, _ = bound.arguments["rendezvous"].partition(":")
    assert host == f"{name}-0.{SERVICE['metadata']['name']}"
    assert spec["template"]["spec"]["subdomain"] == SERVICE["metadata"]["name"]
    assert SERVICE["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}


def test_several_nodes_get_a_preset_that_they_can_share(tmp_path):
    checked(PRESETS)
    (container,) = JOB["spec"]["template"]["spec"]["containers"]
    (volume,) = [one for one in JOB["spec"]["template"]["spec"]["volumes"] if "configMap" in one]
    assert volume["configMap"]["name"] == PRESETS["metadata"]["name"]
    (place,) = [v["mountPath"] for v in container["volumeMounts"] if v["name"] == volume["name"]]
    asked = Path(container["args"][container["args"].index("--config_file") + 1])
    assert asked.parent == Path(place)
    (tmp_path / "preset.json").write_text(PRESETS["data"][asked.name])
    preset = load_config(tmp_path / "preset.json")
    nodes = container["args"][container["args"].index("--nodes") + 1]
    check_sizes(preset, Nodes.parse(nodes, "mypt-0.mypt:29400"))
    assert preset.processes == container["resources"]["limits"]["nvidia.com/gpu"]
    same = load_config(FOLDER.parents[1] / "configs" / "250M_1024.json")
    assert preset.gpt() == same.gpt()
    rows = [one.batch_size * one.grad_accumulation for one in (preset, same)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("pod", pods(), ids=["pool", "nodes"])
def test_no_pod_is_root_or_may_become_it(pod):
    user = int(re.search(r"^USER (\d+):\d+$", DOCKERFILE, re.M)[1])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == user
    assert pod["securityContext"]["fsGroup"] == user  # else it could not write its volume
    assert pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["terminationGracePeriodSeconds"] >= 60
    mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert mounted.keys() == {one["name"] for one in pod["volumes"]}
    assert f"MYPT_HOME={mounted['runs']}" in DOCKERFILE


def test_prefects_server_takes_the_pool_and_what_a_deployment_asks_of_it(prefect):  # noqa: ARG001
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import PrefectHTTPStatusError

    name, asked = DEPLOYMENT["work_pool"]["name"], DEPLOYMENT["work_pool"]["job_variables"]
    with get_client(sync_client=True) as client:
        client.create_work_pool(
            WorkPoolCreate(name=name, type="kubernetes", base_job_template=POOL)
        )
        flow = client.create_flow_from_name("asks")
        client.create_deployment(flow, "asks", work_pool_name=name, job_variables=asked)
        wrong = asked | {"gpus": "all"}
        with pytest.raises(PrefectHTTPStatusError, match="gpus"):
            client.create_deployment(flow, "wrong", work_pool_name=name, job_variables=wrong)
