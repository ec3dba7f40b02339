"""The flows that are deployed, by the names that people type."""

from typing import Any

from prefect import Flow

from flows import stages
from flows.pipeline import sft_pipeline

PIPELINE = sft_pipeline.name
FLOWS: dict[str, Flow[..., Any]] = {
    flow.name: flow
    for flow in (sft_pipeline, stages.prepare, stages.pretrain, stages.sft, stages.evaluate)
}
