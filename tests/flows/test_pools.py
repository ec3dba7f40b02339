"""Data on one work pool, trainings on another: real servers, pools and workers on this machine."""

import json
import shlex
import signal
from datetime import datetime

import pytest
from prefect.client.orchestration import get_client

from flows.pipeline import sft_pipeline
from flows.pools import run_elsewhere
from mypt.config import PipelineConfig
from mypt.errors import ConfigError
from tasks.tracking.destination import KIND_TAG, PIPELINE, SWEEP
from tests.flows.conftest import CONFIG
from tests.flows.test_up import Up, run_id_in

DATA = ("tokenize", "mask", "validate")
ONE = {"one": PipelineConfig.model_validate(CONFIG)}
MADE = ("pretrain small-base", "fine-tune small-chat", "evaluate small")


@pytest.mark.usefixtures("prefect")
@pytest.mark.parametrize("named", ["sft-pipeline/none", "none"])
def test_a_deployment_that_is_not_there_is_named(tmp_path, monkeypatch, named):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=f"no deployment '{named}'; expected one of"):
        run_elsewhere(named, ONE)


@pytest.mark.usefixtures("prefect")
def test_a_deployment_that_a_single_process_serves_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(sft_pipeline)
        client.create_deployment(flow_id, "local")
    with pytest.raises(ConfigError, match="sft-pipeline/local is on no work pool; expected"):
        run_elsewhere("sft-pipeline/local", ONE)
    assert not (tmp_path / "asked").exists()


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """Both pools, deployed by the lines of the file, and a worker of each."""
    up = Up(tmp_path_factory.mktemp("pools"))
    workers = []
    try:
        for name in ("mypt", "mypt-gpu"):
            create = f"prefect work-pool create {name} --type process --base-job-template"
            up.run(f"{create} deployments/pool.json")
        up.run(f"prefect variable set mypt_home {up.home}")
        up.run(f"prefect variable set mypt_tracking_uri http://127.0.0.1:{up.ports[1]}")
        up.run("prefect --no-prompt deploy --all --prefect-file deployments/prefect.yaml")
        up.let("MYPT_HOME", up.folder / "nowhere")
        for name in ("mypt", "mypt-gpu"):
            workers.append(up.start(f"prefect worker start --pool {name}", folder=up.folder))
        yield up
    finally:
        for process in (*workers, up.process):
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=120)


def flow_runs(up, flow):
    """Return a flow's runs of a pool, the first first."""
    found = up.ask("flow_runs/filter", {"flows": {"name": {"any_": [flow]}}})
    return sorted((r for r in found if r["work_pool_name"]), key=lambda r: r["start_time"])


def task_runs(up, run):
    wanted = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    found = up.ask("task_runs/filter", wanted)
    return {task["name"]: task["state"]["name"] for task in found}


def when(run, key):
    return datetime.fromisoformat(run[key])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_data_are_prepared_on_one_pool_and_trained_on_by_another(pools):
    said = pools.run(f"prefect deployment run sft-pools/pool -p config={pools.small} --watch")
    (prepared,) = flow_runs(pools, "sft-pools")
    assert prepared["id"] == run_id_in(said)
    (trained,) = flow_runs(pools, "sft-pipeline")
    assert (prepared["work_pool_name"], trained["work_pool_name"]) == ("mypt", "mypt-gpu")
    assert {run["state"]["name"] for run in (prepared, trained)} == {"Completed"}
    assert trained["parent_task_run_id"], "Prefect shows it below the one that asked"
    first, then = task_runs(pools, prepared), task_runs(pools, trained)
    assert {name for name in first if name.startswith(DATA)} == {
        name for name in then if name.startswith(DATA)
    }
    assert not set(MADE) & set(first)
    assert {then[name] for name in then if name.startswith(DATA)} == {"Cached"}
    assert {then[name] for name in MADE} == {"Completed"}
    assert not (pools.folder / "nowhere" / "datasets").exists()
    assert "evaluate small" in {run.info.run_name for run in pools.mlflow_runs()}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_combinations_of_a_sweep_are_trained_side_by_side_on_a_pool(pools):
    before = len(flow_runs(pools, "sft-pipeline"))
    over = shlex.quote(json.dumps(["sft.learning_rate=2e-3,3e-3"]))  # neither is made already
    asked = f"-p config={pools.small} -p over={over} -p pool=sft-pipeline/gpu"
    pools.run(f"prefect deployment run sft-sweep/sweep-pool {asked} --watch")
    one, other = flow_runs(pools, "sft-pipeline")[before:]
    assert {run["state"]["name"] for run in (one, other)} == {"Completed"}
    titles = {f"{place}/2 sft.learning_rate={place + 1}e-3" for place in (1, 2)}
    assert {one["name"], other["name"]} == titles
    assert when(other, "start_time") < when(one, "end_time"), "the second began before the end"
    (report,) = (pools.home / "sweeps").glob("*/sweep.json")
    assert len(json.loads(report.read_text())["runs"]) == 2
    runs = pools.mlflow_runs()
    (sweep,) = [run.info.run_id for run in runs if run.data.tags.get(KIND_TAG) == SWEEP]
    parents = {
        run.info.run_name: run.data.tags.get("mlflow.parentRunId")
        for run in runs
        if run.data.tags.get(KIND_TAG) == PIPELINE
    }
    assert {parents[f"{place}/2 {place + 1}e-3 (small)"] for place in (1, 2)} == {sweep}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_asks_not_the_pool_on_which_it_keeps_a_place(pools):
    before = len(flow_runs(pools, "sft-pipeline"))
    asked = f"-p config={pools.small} -p seeds=2 -p pool=sft-pipeline/pool"
    said = pools.run(f"prefect deployment run sft-sweep/sweep-pool {asked} --watch", code=1)
    run = run_id_in(said)
    (ended,) = [one for one in flow_runs(pools, "sft-sweep") if one["id"] == run]
    assert "sft-pipeline/pool is on the pool mypt as this run is" in ended["state"]["message"]
    assert len(flow_runs(pools, "sft-pipeline")) == before
