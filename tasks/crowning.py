"""The gate's champion as an alias in MLflow's registry; the file beside the models is the truth."""

import sys

from mypt.evaluation.gate import champion
from tasks.destination import mlflow_is_there, shown_uri


def mirror_champion() -> None:
    """Let the alias ``champion`` say what the file says, where MLflow is there and lists it.

    An MLflow that is away is named on the terminal and holds nobody: ``mypt sync`` does the same.

    Raises:
        CheckpointError: If the champion's file is damaged, or its checkpoint is gone.
    """
    reference = champion()
    if reference is None or not mlflow_is_there():
        return
    from tasks.tracking import Failure, Tracker

    try:
        listed = Tracker().crown(reference.digest)
    except Failure as error:
        sys.stderr.write(
            f"mypt: MLflow at {shown_uri()} does not know the new champion ({error}); 'mypt sync'"
            " tells it\n"
        )
        return
    if not listed:
        sys.stderr.write(
            "mypt: MLflow's registry does not list the champion, which no pipeline made; its alias"
            " points at nothing\n"
        )
