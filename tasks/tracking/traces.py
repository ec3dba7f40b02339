"""Answers of models as MLflow's traces, and what they were asked as its evaluation datasets.

MLflow's public calls for traces send to the address of the process, later and from a thread, and
drop what cannot be sent. What they call is called here, with ids that follow from the run and the
place of an answer in it: sent twice, it is there once.
"""

import base64
import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import (
    Assessment,
    AssessmentSource,
    Dataset,
    DatasetInput,
    Expectation,
    Feedback,
    InputTag,
    Span,
    TraceInfo,
    TraceLocation,
    TraceState,
)
from mlflow.exceptions import MlflowException as Failure
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.tracing.client import TracingClient

from tasks.tracking.records import Told, Traces

TRIED = ("3.17",)
"""Minor versions of MLflow with which that was tried; a test fails at another."""
EXPECTED = "expected_response"
"""MLflow's word for it, by which its own judges find it."""
_BY = AssessmentSource("CODE", "mypt")
_SHOWN = 1_000
"""Characters of a preview that MLflow takes."""
_DIGITS = 12


class Answers:
    """Sends what models were asked and said to one MLflow.

    Args:
        client: Of that MLflow.
        uri: Its address.
    """

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client, self._traces = client, TracingClient(uri)
        self._datasets: dict[tuple[str, str], str] = {}

    def send(self, run: str, experiment: str, record: Traces, model: str | None) -> None:
        """Make each answer a trace of a run, and each question a row of a dataset.

        Args:
            run: Id of the MLflow run.
            experiment: Id of the experiment that it is in.
            record: The answers.
            model: Id of the logged model that gave them, if there is one.

        Raises:
            Failure: If MLflow is away or refuses something.
        """
        if record.questions is not None:
            self._ask(run, experiment, record, record.questions)
        spans = []
        for place, told in enumerate(record.told, record.first):
            trace = f"tr-{_digest(run, place)[:32]}"
            self._traces.start_trace(_info(trace, run, experiment, told, model))
            spans.append(_span(trace, experiment, record.model, told))
        try:
            self._traces.log_spans(experiment, spans)
        except NotImplementedError as error:  # an older server
            raise Failure(str(error), error_code=BAD_REQUEST) from None

    def _ask(self, run: str, experiment: str, record: Traces, digest: str) -> None:
        name = f"held-out questions {digest[:_DIGITS]}"
        if (name, experiment) not in self._datasets:
            wanted = f"name = '{name}'"
            found = next(iter(self._client.search_datasets(filter_string=wanted)), None)
            if found is None:
                found = self._client.create_dataset(name, [experiment], {"digest": digest})
            else:
                self._client.add_dataset_to_experiments(found.dataset_id, [experiment])
            self._datasets[name, experiment] = found.dataset_id
        dataset = self._datasets[name, experiment]
        rows: list[dict[str, Any]] = [
            {"inputs": told.asked, "expectations": {EXPECTED: told.expected}, "tags": told.tags}
            for told in record.told
        ]
        self._traces.store.upsert_dataset_records(dataset, rows)
        if record.first:
            return  # the run has it as its input since the first of its answers
        source = json.dumps({"dataset_id": dataset})
        shown = Dataset(name, digest[:_DIGITS], "mlflow_evaluation_dataset", source)
        context = InputTag("mlflow.data.context", "evaluate")
        self._client.log_inputs(run, [DatasetInput(shown, [context])])


def _info(trace: str, run: str, experiment: str, told: Told, model: str | None) -> TraceInfo:
    about = {"mlflow.sourceRun": run} | ({"mlflow.modelId": model} if model else {})
    return TraceInfo(
        trace_id=trace,
        trace_location=TraceLocation.from_experiment_id(experiment),
        request_time=told.time,
        state=TraceState.ERROR if told.failed else TraceState.OK,
        request_preview=_preview(told.asked),
        response_preview=told.said[:_SHOWN],
        execution_duration=told.milliseconds,
        trace_metadata=about | {"mlflow.trace_schema.version": "3"},
        tags={"mlflow.traceName": "answer"} | told.tags,
        assessments=list(_assessments(trace, run, told)),
    )


def _assessments(trace: str, run: str, told: Told) -> Iterator[Assessment]:
    shared: dict[str, Any] = {
        "source": _BY,
        "trace_id": trace,
        "metadata": {"mlflow.assessment.sourceRunId": run},
        "create_time_ms": told.time,
        "last_update_time_ms": told.time,
    }
    said: list[Assessment] = [Feedback(name, value, **shared) for name, value in told.found.items()]
    if told.expected is not None:
        said.append(Expectation(EXPECTED, told.expected, **shared))
    for assessment in said:
        assessment.assessment_id = f"a-{_digest(trace, assessment.name)[:32]}"
        yield assessment


def _span(trace: str, experiment: str, model: str, told: Told) -> Span:
    number = bytes.fromhex(trace.removeprefix("tr-"))
    began = told.time * 1_000_000
    attributes: dict[str, Any] = {
        "mlflow.traceRequestId": trace,
        "mlflow.experimentId": experiment,
        "mlflow.spanType": "CHAT_MODEL",
        "mlflow.spanInputs": told.asked,
        "mlflow.spanOutputs": told.said,
        "mlflow.llm.model": model,
    }
    if told.tokens:
        read, written = told.tokens
        counts = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
        attributes["mlflow.chat.tokenUsage"] = counts
    return Span.from_dict(
        {
            "trace_id": base64.b64encode(number).decode(),
            "span_id": base64.b64encode(sha256(number).digest()[:8]).decode(),
            "parent_span_id": None,
            "name": "answer",
            "start_time_unix_nano": began,
            "end_time_unix_nano": began + told.milliseconds * 1_000_000,
            "events": [],
            "status": {
                "code": "STATUS_CODE_ERROR" if told.failed else "STATUS_CODE_OK",
                "message": told.failed,
            },
            "attributes": {key: json.dumps(value) for key, value in attributes.items()},
        }
    )


def _preview(asked: dict[str, Any]) -> str:
    """Return what was asked last, as a list of traces shows it."""
    turns = asked.get("messages")
    last = turns[-1].get("content") if turns else asked.get("question")
    return (last if isinstance(last, str) else json.dumps(asked, ensure_ascii=False))[:_SHOWN]


def _digest(*parts: object) -> str:
    return sha256("/".join(map(str, parts)).encode()).hexdigest()
