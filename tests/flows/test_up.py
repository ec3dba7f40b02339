"""What a user of `mypt up` does, with real servers and a real worker on this machine."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from uuid import UUID

import pytest
import yaml

from mypt.data.manifest import read_manifest
from tests.flows.conftest import CONFIG
from tests.flows.processes import free_ports, processes_of
from tests.mypt.inference.browser import needs_browser, tab

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc"),
]


EVIL = (
    "[a](http://evil.invalid/a) ![b](http://evil.invalid/b) <http://evil.invalid/c>"
    " http://evil.invalid/d www.evil.invalid e@evil.invalid [f](javascript:alert(1))"
    " <img src=evil onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    " \u202eg\u200bh\x1b[31mi\x9b31m"
)
MADE_OF_DATA = r"""[
    ...[...document.querySelectorAll('*')].flatMap(made => [...made.attributes])
        .filter(said => /^(href|src|action|on.*)$/.test(said.name))
        .filter(said => /evil|alert|owned/.test(said.value))
        .map(said => said.ownerElement.outerHTML),
    ...performance.getEntriesByType('resource').map(entry => entry.name)
        .filter(name => /evil/.test(name)),
    ...(document.body.innerText.match(/[\u202a-\u202e\u200b\x1b\x9b]/g) || []),
    ...[document.title].filter(title => title === 'owned'),
]"""


class Up:
    """`mypt up` over a home of its own, and a second terminal."""

    def __init__(self, folder):
        self.folder, self.home, self.log = folder, folder / "home", folder / "up.log"
        self.small = folder / "small.json"
        self.small.write_text(json.dumps(CONFIG))
        self.ports = free_ports(2)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
        self._environment = kept | {"MYPT_HOME": str(self.home), "COLUMNS": "200"}
        self._environment |= {"OMP_NUM_THREADS": "1", "PREFECT_WORKER_QUERY_SECONDS": "1"}
        flags = ["--prefect_port", str(self.ports[0]), "--mlflow_port", str(self.ports[1])]
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [BIN / "mypt", "up", *flags],
                env=self._environment, stdout=file, stderr=file, cwd=ROOT,
            )  # fmt: skip
        while "Ctrl-C stops everything" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.5)
        export, self.watched = re.findall(
            r"^  (export .*|.*deployment run.*)$", self.log.read_text(), re.MULTILINE
        )
        name, _, self.api = export.removeprefix("export ").partition("=")
        client = folder / "client"
        client.mkdir()
        self._client = {**self._environment, name: self.api, "PREFECT_HOME": str(client)}

    def start(self, command, folder=None):
        """Type a command in the second terminal."""
        words = shlex.split(command)
        beside = words[0] in ("mypt", "prefect")
        return subprocess.Popen(
            [BIN / words[0] if beside else words[0], *words[1:]],
            env=self._client | {"PWD": str(folder or ROOT)}, cwd=folder or ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            # As from a terminal: what a shell starts in the background ignores Ctrl-C, and a
            # worker that does ignores SIGTERM too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def run(self, command, code=0, folder=None):
        """Type a command and return what it printed."""
        process = self.start(command, folder)
        said, _ = process.communicate(timeout=280)
        assert process.returncode == code, f"{command}\n{said}\n{self.log.read_text()[-3000:]}"
        return said

    def let(self, name, value):
        """Set a variable in the second terminal."""
        self._client[name] = str(value)

    def ask(self, path, body=None, **headers):
        """Ask Prefect's API."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api}/{path}", data, headers)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def answers(self):
        try:
            return self.ask("health")
        except OSError:
            return False

    def flow_run(self, run_id):
        return self.ask(f"flow_runs/{run_id}")

    def state(self, run_id, *wanted):
        """Wait until a flow run is in one of the states that are wanted; return which."""
        while (name := self.flow_run(run_id)["state"]["name"]) not in wanted:
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.5)
        return name

    def mlflow_runs(self):
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.home / 'mlflow.db'}")
        return client.search_runs([e.experiment_id for e in client.search_experiments()])


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    running = Up(tmp_path_factory.mktemp("up"))
    try:
        yield running
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=120) == 143
        assert processes_of(running.home) == []
    finally:
        if running.process.poll() is None:
            running.process.kill()


def run_id_in(said):
    return str(UUID(re.search(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", said)[0]))


def test_the_line_that_up_prints_runs_the_pipeline_and_shows_what_it_did(up):
    said = up.run(f"{up.watched} -p 'config=\"{up.small}\"'")
    assert "Completed" in said
    run = up.flow_run(run_id_in(said))
    assert run["name"] == "small on exercises_chat"
    shown = up.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    kinds = {re.sub(r"-[0-9a-f]{12}$", "", artifact["key"]) for artifact in shown}
    assert {"mlflow-run", "mask-statistics-small-chat", "evaluation-small"} <= kinds


def test_a_short_name_and_parameters_do_for_mypt_run(up):
    said = up.run(f"mypt run sft-pipeline --param config={up.small} --param sft.max_iters=4")
    assert "small on exercises_chat: Completed" in said
    assert "reused: pretrain small-base" in said
    assert "max_iters at step 4" in said
    assert "small: exact match " in said, "the last line that the run logs"
    assert re.search(r"next: mypt generate small-chat-\w+ ", said), "and how to go on"
    asked = up.flow_run(run_id_in(said))["parameters"]
    assert asked == {"config": str(up.small), "overrides": {"sft": {"max_iters": 4}}}


def test_a_wrong_parameter_is_refused_before_a_run_exists(up):
    before = up.ask("flow_runs/count", {})
    wrong = json.dumps({"config": str(up.small), "overrides": {"sft": {"learning_rate": -1}}})
    said = up.run(f"prefect deployment run sft-pipeline/local --params '{wrong}'", 1)
    assert "Validation failed for field 'overrides.sft.learning_rate'" in said
    said = up.run("prefect deployment run sft-pipeline/local -p lr=3", 1)
    assert "not found on the deployment" in said
    said = up.run(f"mypt run sft-pipeline --param config={up.small} --param sft.n_head=5", 2)
    assert said.startswith("mypt: --param: sft: n_head 5 does not divide")
    said = up.run("mypt run sft-pipelin", 2)
    assert "one of: evaluate/compare, prepare/prepare-data" in said
    assert up.ask("flow_runs/count", {}) == before


def test_only_our_page_and_programs_are_answered(up):
    for header in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        with pytest.raises(urllib.error.HTTPError, match=r"40[03]"):
            up.ask("flow_runs/count", {}, **header)
    assert up.ask("flow_runs/count", {}, Origin=up.api.removesuffix("/api")) >= 0


def test_mlflow_answers_no_foreign_page_and_shows_no_file_but_its_own(up):
    server = f"http://127.0.0.1:{up.ports[1]}"

    def code(path, **headers):
        request = urllib.request.Request(f"{server}/{path}", headers=headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert code("health") == 200
    assert code("ajax-api/2.0/mlflow/experiments/search?max_results=1", Host="evil.example") == 403
    paths = (
        "get-artifact?run_uuid=x&path={}/passwd", "api/2.0/mlflow-artifacts/artifacts/{}",
        "static-files/{}/{}/etc/passwd",
    )  # fmt: skip
    for way in ("..", "%2e%2e", "%252e%252e", "..%2f..", "/etc"):
        for path in paths:
            assert code(path.replace("{}", way)) >= 400, (path, way)


def test_the_limit_of_the_gpu_and_the_end_of_dead_runs_are_set_up_once(up):
    assert up.ask("v2/concurrency_limits/gpu")["limit"] == 1
    (automation,) = up.ask("automations/filter", {})
    assert automation["actions"][0]["state"] == "CRASHED"


def long_config(up, name):
    """The small pipeline with a training that is long enough to be disturbed."""
    path = up.folder / f"{name}.json"
    pretrain = CONFIG["pretrain"] | {"max_iters": 3000, "checkpoint_interval": 100}
    path.write_text(json.dumps(CONFIG | {"name": name, "pretrain": pretrain}))
    return path


def steps_of(up, name):
    found = (up.home / "models").glob(f"{name}-base-*/step_*/lineage.json")
    return sorted(int(path.parent.name[5:]) for path in found)


def begun(up, name):
    """Ask for a long run, and return its id once it has made a checkpoint."""
    said = up.run(f"mypt run sft-pipeline --detach --param config={long_config(up, name)}")
    while not steps_of(up, name):
        time.sleep(0.2)
    return run_id_in(said)


def states_of(up, kind, run_id):
    """Return the types of all states that a run was ever in, in their order."""
    return [state["type"] for state in up.ask(f"{kind}_states/?{kind}_id={run_id}")]


def test_a_cancelled_run_saves_its_step_and_no_mlflow_run_stays_open(up):
    run_id = begun(up, "cancelled")
    up.run(f"prefect flow-run cancel {run_id}")
    up.state(run_id, "Cancelled")
    assert steps_of(up, "cancelled")[-1] % 100, "the step it was at, not one of the interval"
    assert states_of(up, "flow_run", run_id)[-2:] == ["CANCELLING", "CANCELLED"]
    mine = {"flow_runs": {"id": {"any_": [run_id]}}}
    ended = [states_of(up, "task_run", run["id"]) for run in up.ask("task_runs/filter", mine)]
    assert sorted(states[-1] for states in ended) == ["CANCELLED"] + ["COMPLETED"] * 5
    assert not any("CRASHED" in states for states in ended)
    mine = [run for run in up.mlflow_runs() if "cancelled" in run.info.run_name]
    assert len(mine) >= 4
    assert {run.info.status for run in mine} <= {"FINISHED", "KILLED"}


def test_a_run_that_is_cancelled_while_its_process_begins_has_not_crashed(up):
    said = up.run(f"mypt run sft-pipeline --detach --param config={long_config(up, 'early')}")
    run_id = run_id_in(said)
    while not processes_of(up.home, "prefect.engine"):
        time.sleep(0.05)
    up.ask(f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
    up.state(run_id, "Cancelled")
    assert "CRASHED" not in states_of(up, "flow_run", run_id)


def test_a_killed_run_is_retried_in_the_same_flow_run_and_the_same_mlflow_runs(up):
    run_id = begun(up, "killed")
    (pid,) = processes_of(up.home, "prefect.engine")
    os.kill(pid, signal.SIGKILL)
    up.state(run_id, "Crashed")
    up.run(f"prefect flow-run retry {run_id}")
    up.state(run_id, "Completed")
    assert up.flow_run(run_id)["run_count"] == 2
    mine = [run for run in up.mlflow_runs() if "killed" in run.info.run_name]
    names = [run.info.run_name for run in mine]
    assert sorted(names) == sorted(set(names))
    assert {run.info.status for run in mine} == {"FINISHED"}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_served_run_goes_on_while_prefect_is_dead_or_silent(up, number):
    name = f"away{int(number)}"
    run_id = begun(up, name)
    before = steps_of(up, name)[-1]
    (server,) = processes_of(up.home, "guarded_api")
    os.kill(server, number)
    end = time.monotonic() + 600
    while not list((up.home / "models").glob(f"{name}-chat-*/step_*/lineage.json")):
        assert time.monotonic() < end, f"from step {before} to {steps_of(up, name)[-1]}"
        time.sleep(0.2)
    if number == signal.SIGSTOP:
        os.kill(server, signal.SIGCONT)
    while not up.answers():
        time.sleep(0.5)
    up.state(run_id, "Completed")
    assert up.flow_run(run_id)["tags"] == ["pipeline"]
    mine = {"flow_runs": {"id": {"any_": [run_id]}}}
    assert {tuple(run["tags"]) for run in up.ask("task_runs/filter", mine)} == {()}


@needs_browser
@pytest.mark.timeout(1800)
def test_data_makes_no_link_no_picture_and_no_program_on_either_page(up, tmp_path):
    source = {"exercises": "chat", "count": 200, "seed": 0, "name": EVIL, "licence": EVIL}
    chat = CONFIG["chat"] | {"sources": [source]}
    evaluate = CONFIG["evaluate"] | {"prompts": [EVIL]}
    path = up.folder / "hostile.json"
    long = {"pretrain": CONFIG["pretrain"] | {"block_size": 512}}  # the prompt is no short one
    hostile = {"name": "hostile", "chat": chat, "evaluate": evaluate} | long
    path.write_text(json.dumps(CONFIG | hostile))
    up.run(f"mypt run {path}")
    artifacts = [found["id"] for found in up.ask("artifacts/filter", {}) if "evil" in str(found)]
    runs = [run.info for run in up.mlflow_runs() if "evil" in str(run.data.tags)]
    assert artifacts
    assert runs
    pages = [f"{up.api.removesuffix('/api')}/artifacts/artifact/{found}" for found in artifacts]
    mlflow = f"http://127.0.0.1:{up.ports[1]}/#/experiments"
    pages += [f"{mlflow}/{run.experiment_id}/runs/{run.run_id}" for run in runs]
    with tab(tmp_path) as page:
        for url in pages:
            page.open("about:blank")
            page.open(url)
            page.wait("document.body.innerText.includes('evil')")
            assert page.run(MADE_OF_DATA) == [], url


def test_the_file_of_deployments_works_from_the_root_and_from_elsewhere(up):
    up.run(f"prefect variable set mypt_home {up.home}")
    for name in ("mypt", "mypt-gpu"):
        create = f"prefect work-pool create {name} --type process --base-job-template"
        up.run(f"{create} deployments/pool.json")
    file = ROOT / "deployments" / "prefect.yaml"
    up.run("prefect --no-prompt deploy --all --prefect-file deployments/prefect.yaml")
    up.run(f"prefect --no-prompt deploy --all --prefect-file {file}", folder=up.folder)
    for deployment in yaml.safe_load(file.read_text())["deployments"]:
        flow = deployment["entrypoint"].rpartition(".")[2].replace("_", "-")
        up.run(f"prefect deployment inspect {flow}/{deployment['name']}")
    worker = up.start("prefect worker start --pool mypt", "/")
    try:
        said = up.run(
            "mypt run prepare/prepare-data-pool --param name=pooled --param mask=null --param"
            ' \'config={"sources": [{"exercises": "text", "count": 50}], "tokenization": "byte"}\''
        )
    finally:
        worker.terminate()
        worker.communicate(timeout=60)
    assert "pooled from exercises_text: Completed" in said
    (made,) = (up.home / "datasets").glob("pooled-*")
    assert read_manifest(made).tokens("train")


def test_a_change_of_the_data_asks_for_a_new_training(up):
    up.run("prefect --no-prompt deploy --all --prefect-file deployments/retrain.yaml")
    asked = {"deployments": {"name": {"any_": ["retrain"]}}}
    triggered = []
    while not triggered:
        # Whoever watches a folder says so at each change, and a server may be busy for a moment.
        up.run("prefect event emit mypt.data.changed --resource-id mypt.data.raw")
        time.sleep(2)
        found = up.ask("flow_runs/filter", asked)
        triggered = [run for run in found if not run["auto_scheduled"]]
    for run in triggered:
        assert run["created_by"]["type"] == "AUTOMATION"
        assert run["parameters"] == {"config": "configs/demo.json"}
