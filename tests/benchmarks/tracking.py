"""What journals, their mirror and MLflow cost beside training, at one step every 100 ms."""

import os
import tempfile
import time
from collections.abc import Iterator

from harness import Line

PACE = 0.1


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the line of this area; the sending thread's processor time counts too."""
    os.environ["MYPT_HOME"] = tempfile.mkdtemp()
    from flows.environment import prepare_environment

    prepare_environment()
    from tasks.tracking.recording import recorded
    from tasks.tracking.records import Metrics

    steps = 50 if quick else 600
    with recorded("benchmark", "benchmark") as run:
        run.write(Metrics(step=0, values={"loss": 1.0}))
        time.sleep(10 if quick else 40)  # MLflow's imports and tables, once a run
        started = time.process_time()
        for step in range(1, steps + 1):
            values = {"loss": 1.0 / step, "lr": 1e-3, "grad_norm": 0.5, "tokens_per_s": 1e4}
            run.write(Metrics(step=step, values=values))
            time.sleep(PACE)
        share = (time.process_time() - started) / (steps * PACE)
    yield Line(
        work=f"tracking: {steps} steps of 100 ms, processor time of journal and MLflow",
        against="the steps themselves",
        reach="< 2 %",
        measured=f"{100 * share:.1f} %",
        met="yes" if share < 0.02 else "no",
        note="MLflow on a SQLite file, its start not counted",
    )
