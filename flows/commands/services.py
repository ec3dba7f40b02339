"""Commands that start Prefect or MLflow: the pipeline, the two servers, the sending of journals."""

import difflib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flows.commands.flags import Whole, check_kind
from flows.console import Console, print_lines
from mypt.config import PipelineConfig
from mypt.errors import ConfigError, MyptError
from mypt.text import counted


def run(
    config: str,
    *,
    param: Annotated[list[str] | None, Parameter(negative=())] = None,
    detach: bool = False,
) -> int:
    """Run the whole pipeline here, or a deployment that is served: data in, model out.

    Args:
        config: A pipeline config such as configs/demo.json, which runs in this process; or the
            name of a deployment, such as sft-pipeline (short for sft-pipeline/local), which runs
            where mypt up or a worker serves it.
        param: NAME=VALUE, as often as wanted: a knob by its dotted name, such as
            sft.learning_rate=1e-4, or a parameter of the flow.
        detach: Do not wait for the end of a deployment's run.
    """
    from flows.environment import check_folder, find_prefect, prepare_environment

    check_folder()
    changes = param or []
    if _is_file(Path(config)):
        check_kind(Path(config), "pipeline")
        from flows.forms import changed_config

        asked = changed_config(Path(config), changes)
        way = " -> ".join(stage.name for stage in asked.stages) or "base model -> chat model"
        print_lines([f"{asked.name}: raw files -> {way}"])
        if _is_kept(asked):
            return 0
        print_lines(["Prefect starts, in seconds"])
        wait = _start_prefect(asked)
        from flows.kept import keep_run
        from flows.pipeline import run_pipeline

        wait()
        keep_run(asked, run_pipeline(asked))
        return 0
    try:
        find_prefect()
        prepare_environment()
        from flows.service.parameters import ask

        return ask(config, changes, wait=not detach)
    except MyptError as error:
        raise _with_file(error, config) from None


def sweep(
    config: Path,
    *,
    over: Annotated[list[str] | None, Parameter(negative=())] = None,
    seeds: Whole = 1,
    param: Annotated[list[str] | None, Parameter(negative=())] = None,
) -> int:
    """Run the pipeline under each combination of settings; say which is surely best.

    What combinations have in common is made once. The same command goes on where it was stopped.

    Args:
        config: A pipeline config such as configs/demo.json.
        over: KNOB=VALUE,VALUE, as often as wanted; with commas in a value KNOB=VALUE|VALUE or
            KNOB=[VALUE, VALUE] as JSON. mask.policy means what mask --policy takes, its words
            joined by +, such as mask.policy=assistant,assistant+user=0.1.
        seeds: How many seeds each combination is fine-tuned with: the config's and those after.
        param: NAME=VALUE, a knob that all combinations have, as for run.
    """
    from flows.combinations import combine
    from flows.environment import check_folder
    from flows.forms import changed_config

    check_folder()
    check_kind(config, "pipeline")
    asked = changed_config(config, param or [])
    runs = combine(asked, over or [], seeds)
    print_lines([f"{asked.name}: {counted(len(runs), 'run')} of the pipeline; Prefect starts"])
    wait = _start_prefect(asked)
    from flows.sweep import run_sweep

    wait()
    run_sweep(asked, over or [], seeds)
    return 0


def _start_prefect(config: PipelineConfig) -> Callable[[], None]:
    """Begin what a pipeline needs of Prefect, and return what waits until it answers.

    Prefect's own modules, which take seconds, may be loaded from now on.
    """
    from flows.environment import prepare_environment
    from flows.service.temporary_api import start_temporary_api

    sys.stdout.flush()
    prepare_environment()
    _check_asks(config)
    return start_temporary_api()


def _is_kept(config: PipelineConfig) -> bool:
    """Show what an equal run came to, if there is one and no server waits to be told of another."""
    if {"PREFECT_API_URL", "MLFLOW_TRACKING_URI"} & os.environ.keys():
        return False
    from flows.kept import find_run
    from flows.summary import show_summary

    if (found := find_run(config)) is None:
        return False
    run, summary = found
    print_lines([f"reused: all of it, made on {run.when}; nothing runs, so none is recorded"])
    show_summary(summary)
    return True


def _check_asks(config: PipelineConfig) -> None:
    """Refuse a gate that asks a person where there is none, before anything is made.

    Raises:
        ConfigError: If neither Prefect nor a terminal could ask.
    """
    served = os.environ.get("PREFECT_API_URL")
    if config.evaluate.gate == "ask" and not served and not sys.stdin.isatty():
        raise ConfigError(
            'evaluate.gate "ask" asks a person, and there is neither a terminal nor a Prefect'
            " server; start it in a terminal, set PREFECT_API_URL to 'mypt up', or take"
            " --param evaluate.gate=true"
        )


def _is_file(named: Path) -> bool:
    """Return whether the name of a config file was meant, be it mistyped, and no deployment."""
    endings = difflib.get_close_matches(named.suffix, [".json"])
    return bool(endings) or named.is_file() or (named.parent.name != "" and named.parent.is_dir())


def _with_file(error: MyptError, word: str) -> MyptError:
    """Return the error of a deployment's name; name a config file if one is called so."""
    named = Path(f"{word}.json").name
    found = next((path for path in (Path(named), Path("configs") / named) if path.is_file()), None)
    if found is None:
        return error
    return ConfigError(f"{error}; to run the config of that name: mypt run {found}")


def up(
    *,
    prefect_port: Whole = 4200,
    mlflow_port: Whole = 5000,
    host: str = "127.0.0.1",
    auth: str | None = None,
) -> int:
    """Start the Prefect and MLflow servers on this machine and serve sft-pipeline/local.

    Args:
        prefect_port: Port of the Prefect server.
        mlflow_port: Port of the MLflow server, on 127.0.0.1.
        host: Address that the Prefect server listens on; another than this machine's own wants
            --auth. MLflow stays on 127.0.0.1.
        auth: USER:PASSWORD without which Prefect answers nobody; better kept in the variable
            PREFECT_SERVER_API_AUTH_STRING, which other users of this machine cannot read.
    """
    from flows.environment import check_folder, prepare_environment

    check_folder()
    prepare_environment()
    from flows.service.addresses import resolve
    from flows.service.servers import up as start

    return start(resolve(host, prefect_port, mlflow_port, auth))


def sync(*, forget: str | None = None) -> int:
    """Send to MLflow what could not be sent while training; sending twice changes nothing.

    Args:
        forget: A run that MLflow does not take any more, since it or its experiment was deleted
            there: its id, its name, or the experiment for all of them. It is sent no more, and
            stays in the journals.
    """
    from flows.environment import prepare_environment

    prepare_environment()
    from tasks.tracking.mirror import mirror_champion
    from tasks.tracking.mirror import sync as send

    Console().print(f"sent {counted(send(forget), 'record')}", markup=False)
    mirror_champion()
    return 0
