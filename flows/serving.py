"""Serves the deployments ``NAME/local``: the process that starts asked-for flow runs."""

import asyncio
import sys
from pathlib import Path
from typing import Any

from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.types.entrypoint import EntrypointType

from flows.catalogue import FLOWS, PIPELINE
from flows.safeguards import set_up

_DEMO = Path("configs/demo.json")


class _Runner(Runner):
    """A runner whose SIGTERM ends its flow runs as cancelled, with time to save."""

    def handle_sigterm(self, *_: Any, **__: Any) -> None:
        """Stop within the event loop; Prefect's own handler forgets to wait for it."""
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(lambda: loop.create_task(self.astop()))


def serve(ready: Path) -> None:
    """Register the deployments, make the file ``ready``, and start flow runs until told to stop.

    One run at a time: two trainings on one machine are slower than one after the other.
    """
    set_up()
    runner = _Runner(limit=1, pause_on_shutdown=False)
    for name, flow in FLOWS.items():
        demo = name == PIPELINE and _DEMO.exists()
        deployment = RunnerDeployment.from_flow(
            flow,
            "local",
            parameters={"config": str(_DEMO.absolute())} if demo else {},
            tags=["sft"],
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        runner.add_deployment(deployment)
    ready.touch()
    asyncio.run(runner.start())


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
