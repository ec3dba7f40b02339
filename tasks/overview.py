"""The page on which runs of one pipeline are told apart and ranked: a view that MLflow keeps."""

import json

from tasks.destination import ui_page

KIND_TAG = "mypt.kind"
"""Tag of a run by which the view finds those of whole pipelines."""
PIPELINE = "pipeline"
GATE_TAG = "gate"
"""Tag of a run that says whether its model became the champion."""
RANKED_BY = "exact_match_overall"
"""Losses over different masks are means over different tokens; answers are the same ones."""
_VIEW = "pipelines"
_COLUMNS = {
    "attributes": ("Created",),
    "metrics": (RANKED_BY, "val_loss", "mask_density", "supervised_tokens"),
    "params": ("policy", "template", "chat_dataset"),
    "tags": (GATE_TAG,),
}


def overview_url(server: str, experiment: str) -> str:
    """Return the page that lists an experiment's pipelines, the best first."""
    return ui_page(server, f"/experiments/{experiment}/runs", viewStateShareKey=_VIEW)


def experiment_tags(experiment: str) -> dict[str, str]:
    """Return the tags of an experiment that hold the view, and a link to it on every page."""
    view = {
        "searchFilter": f"tags.`{KIND_TAG}` = '{PIPELINE}'",
        "orderByKey": f"metrics.`{RANKED_BY}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [
            f"{kind}.`{name}`" for kind, names in _COLUMNS.items() for name in names
        ],
    }
    return {
        f"mlflow.sharedViewState.{_VIEW}": json.dumps(view),
        "mlflow.note.content": f"[Pipelines, the best first]({overview_url('', experiment)})",
    }
