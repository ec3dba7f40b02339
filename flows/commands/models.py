"""Commands that train a model and measure it. None starts Prefect."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from flows.commands.flags import MaybeWhole, Whole, check_kind
from flows.commands.names import adapted, full_name
from flows.console import Console, print_json
from mypt import files
from mypt.config import EvaluateConfig, Preset, load_config
from mypt.data.manifest import read_manifest
from mypt.errors import ConfigError
from mypt.home import check_name, lock
from mypt.parsing import override, parse_config
from mypt.text import visible

if TYPE_CHECKING:
    from rich.table import Table

    from mypt.evaluation.scores import ModelScores, TokenReport
    from mypt.training.launch.nodes import Nodes
    from mypt.training.plan import RunPlan


Form = Literal["auto", "chat", "plain"]
_SLOWEST = 1e-4
"""Lowest learning rate at which fine-tuning may begin with random weights."""


def train(
    *,
    config_file: Path,
    model_name: str,
    dataset_dir: Path,
    init_from_model: str | None = None,
    base: Literal["mypt", "transformers"] | None = None,
    max_iters: MaybeWhole = None,
    epochs: float | None = None,
    learning_rate: float | None = None,
    batch_size: MaybeWhole = None,
    eval_interval: MaybeWhole = None,
    seed: MaybeWhole = None,
    device: str | None = None,
    threads: MaybeWhole = None,
    use_loss_mask: bool | None = None,
    nodes: str | None = None,
    rendezvous: str | None = None,
    extend: bool = False,
    json: bool = False,
) -> int:
    """Train a model, or go on where the same name and config stopped.

    Args:
        config_file: A preset such as configs/tiny_sft.json.
        model_name: The model's name under MYPT_HOME/models.
        dataset_dir: A dataset that mypt prepared or adopted.
        init_from_model: Base model, hf:FOLDER or gguf:FILE; its weights and architecture are kept.
        base: Whose module hf:FOLDER is: mypt's, or transformers' where it is none of ours.
        max_iters: Optimizer steps, instead of the preset's, or of its epochs.
        epochs: Passes over the training rows, instead of the preset's, or of its max_iters.
        learning_rate: Peak learning rate, instead of the preset's.
        batch_size: Rows a micro-batch, instead of the preset's.
        eval_interval: Steps between evaluations, instead of the preset's.
        seed: Seed of weights, order and dropout, instead of the preset's.
        device: auto, cpu, cuda or mps, instead of the preset's.
        threads: CPU threads, instead of the preset's.
        use_loss_mask: Learn only what the masks supervise; --use_loss_mask=false: every token.
        nodes: Machines that train together, each started so: 2, or 1:4 where some come or go.
        rendezvous: HOST:PORT of the machine where they meet.
        extend: Go on with a run whose max_iters is higher now, ended or not.
        json: Print nothing but the end, as JSON: step, reason and the checkpoint to use.
    """
    asked = _Stop()  # first of all: reading datasets takes time too
    given = {
        "base": base, "max_iters": max_iters, "epochs": epochs, "learning_rate": learning_rate,
        "seed": seed, "batch_size": batch_size, "eval_interval": eval_interval, "device": device,
        "threads": threads, "use_loss_mask": use_loss_mask,
    }  # fmt: skip
    preset = _preset(config_file, given, from_base=init_from_model is not None)
    check_name(model_name, "model name")  # before torch is loaded, which takes seconds
    read_manifest(dataset_dir)
    from mypt.training.launch.nodes import Nodes

    machines = Nodes.parse(nodes, rendezvous)
    plan = _planned(preset, model_name, dataset_dir, init_from_model, extend)
    return _train(plan, machines, asked, json)


def _planned(
    preset: Preset, model_name: str, dataset_dir: Path, init_from: str | None, extend: bool
) -> "RunPlan":
    from mypt.training import claim
    from mypt.training.plan import plan_run

    preset = claim.as_begun(preset, model_name) if extend else preset
    begins_with = init_from and full_name(init_from)
    plan = plan_run(preset, model_name, dataset_dir, init_from=begins_with)
    if extend:
        claim.extend(plan)
    return plan


def _train(plan: "RunPlan", machines: "Nodes", asked: "_Stop", json: bool) -> int:
    from flows.outcome import show_training
    from mypt.training.events import Finished
    from mypt.training.launch.launch import train_anywhere
    from tasks.progress import watch

    began = time.monotonic()
    events = train_anywhere(plan, should_stop=asked, nodes=machines)
    *_, end = events if json else watch(events, plan)
    if not isinstance(end, Finished):
        return asked.code
    if json:
        checkpoint = end.checkpoint.model_dump(mode="json")
        print_json({"step": end.step, "reason": end.reason, "checkpoint": checkpoint})
    else:
        show_training(Path(end.checkpoint.path), time.monotonic() - began)
    stopped_elsewhere = end.reason == "stopped"
    return asked.code or (128 + signal.SIGTERM) * stopped_elsewhere


def evaluate(
    model: str,
    *,
    adapter: str | None = None,
    dataset_dir: Path | None = None,
    form: Form = "auto",
    exercises: Whole = 0,
    questions: Path | None = None,
    eval_iters: Whole = 50,
    harness: Sequence[str] = (),
    out_dir: Path | None = None,
    gate: bool = False,
    json: bool = False,
) -> int:
    """Measure a model: loss and perplexity over supervised tokens, exact match, stops.

    Args:
        model: A name or its beginning, a model folder or a step folder.
        adapter: As for mypt generate.
        dataset_dir: Dataset to score; default: the one it was trained on.
        form: How questions are asked; auto follows the training data.
        exercises: Held-out generated questions to ask.
        questions: File of questions and their answers, in any format that prepare reads, to ask.
        eval_iters: Batches of the validation split to score; 0 scores all of it.
        harness: Task of lm-evaluation-harness to ask: a name or a YAML file; may be given again.
        out_dir: A new folder for evaluation.json and evaluation.html, in which the model that the
            training began with stands beside it.
        gate: Compare with the champion of the same pipeline and tokenizer, make the model champion
            where it is better, write down why, and exit 1 where it is not.
        json: Print the scores as JSON.
    """
    from mypt.evaluation import report

    config = EvaluateConfig(
        exercises=exercises,
        questions=str(questions or ""),
        eval_iters=eval_iters,
        harness=tuple(harness),
    )
    if gate and out_dir:
        raise ConfigError("--gate and --out_dir: the gate writes its own verdict; give one of them")
    if out_dir and out_dir.exists():
        raise ConfigError(f"{out_dir} exists and is never overwritten; name another")
    model = adapted(model, adapter)
    if gate:
        return _judge(model, dataset_dir, config, json)
    if out_dir:
        found = report.report_on(model, dataset_dir, config, form=form)
        with files.new_folder(out_dir) as folder:
            report.write_report(found, folder)
        scores = found.sft
    else:
        scores = report.evaluate_model(model, dataset_dir, config, form=form)
    if json:
        print_json(scores.model_dump(mode="json"))
    else:
        Console().print(render(scores))
        if out_dir:
            Console().print(f"written: {out_dir}", markup=False, soft_wrap=True)
    return 0


def _judge(model: str, dataset_dir: Path | None, config: EvaluateConfig, json: bool) -> int:
    from flows.environment import prepare_environment
    from mypt.evaluation.gate import judge
    from tasks.tracking.destination import mlflow_is_there

    with lock("gate"):
        verdict = judge(model, dataset_dir, config)
    if verdict.promoted and mlflow_is_there():
        prepare_environment()  # before MLflow is imported
        from tasks.tracking.mirror import mirror_champion

        mirror_champion()
    if json:
        print_json(verdict.model_dump(mode="json"))
    else:
        said = "promoted" if verdict.promoted else "not promoted"
        Console().print(f"{model} {said}: {'; '.join(verdict.reasons)}", markup=False)
    return 0 if verdict.promoted else 1


def _preset(path: Path, given: dict[str, Any], *, from_base: bool) -> Preset:
    """Return a preset with what was typed in place of its values."""
    check_kind(path, "preset")
    preset = load_config(path)
    values = {key: value for key, value in given.items() if value is not None}
    known = preset.model_dump(exclude_unset=True)
    asked = parse_config(override(known, values), Preset, "the command line")
    _check_rate(asked, from_base=from_base)
    return asked


def _check_rate(preset: Preset, *, from_base: bool) -> None:
    """Refuse a fine-tuning from random weights that would end as babble."""
    if not from_base and preset.use_loss_mask and preset.learning_rate < _SLOWEST:
        raise ConfigError(
            f"learning_rate {preset.learning_rate:g} is a base model's, and there is none: random"
            " weights would learn next to nothing; give --init_from_model BASE or --learning_rate"
            " 1e-3, or take configs/small_chat.json"
        )


class _Stop:
    """Whether SIGTERM or Ctrl-C has asked for a stop; the loop looks at each step boundary.

    A second Ctrl-C ends at once.
    """

    def __init__(self) -> None:
        self._code = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    @property
    def code(self) -> int:
        """What the process exits with: 143 after SIGTERM, 130 after Ctrl-C, else 0."""
        return self._code

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self._code = 128 + number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if number == signal.SIGINT:
            os.write(2, b"\nmypt: stopping after this step; Ctrl-C again ends at once\n")

    def __call__(self) -> bool:
        return self._code != 0


def render(scores: "ModelScores") -> "Table":
    """Return what was measured, a line a figure, as something that rich can print."""
    from rich.table import Table

    from mypt.evaluation.scores import harness_metrics

    table = Table(title=f"{scores.model} at {scores.checkpoint.path}", show_header=False)
    scored = f"{scores.supervised:,} of {scores.available:,} supervised tokens"
    table.add_row("validation loss", f"{scores.val_loss:.4f} nats", scored)
    table.add_row("perplexity", f"{scores.perplexity:.3f}", "")
    if scores.preferred is not None:
        table.add_row("pairs right", f"{scores.preferred:.1%}", "the chosen side is likelier")
    for task, share in scores.exact_match.items():
        low, high = scores.between.get(task, (share, share))
        sure = f", 95 % between {low:.1%} and {high:.1%}" if task in scores.between else ""
        table.add_row(f"exact match, {task}", f"{share:.1%}", f"asked as {scores.form}{sure}")
    if scores.stop_recall is not None:
        table.add_row("answers that stop", f"{scores.stop_recall:.1%}", f"of {scores.asked}")
        table.add_row("answers that leak role tags", _share(scores.leak_rate), "")
        table.add_row("repeated stretches", _share(scores.repetition), "of four tokens")
    for task, metric in harness_metrics([scores]):
        value = scores.harness[task][metric]
        table.add_row(f"harness, {visible(task)}", f"{value:.4f}", visible(metric))
    if scores.tokens is not None:
        _add_tokens(table, scores.tokens)
    return table


def _add_tokens(table: "Table", tokens: "TokenReport") -> None:
    if tokens.bits_per_byte is not None:
        table.add_row("bits per byte", f"{tokens.bits_per_byte:.4f}", "")
    table.add_row("stop recall", _share(tokens.stop_recall), "where a turn ends")
    table.add_row("false stops", _share(tokens.false_stops), "where it goes on")
    for group, members in tokens.groups.items():
        for name, found in members.items():
            said = f"{found.tokens:,} tokens, {found.accuracy:.1%} right"
            table.add_row(f"{group}, {visible(name)}", f"{found.loss:.4f} nats", said)


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"
