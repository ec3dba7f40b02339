"""Tasks of ``lm-evaluation-harness`` asked of a checkpoint (D84); needs the extra ``eval``.

``python -m mypt.evaluation.harness --model mypt --model_args model=NAME --tasks arc_easy`` is the
harness's own command, with the model class below known to it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from mypt.data.conversations import Form, say
from mypt.data.tokenizer import Tokenizer
from mypt.errors import ConfigError
from mypt.inference.chat import chat_prompt
from mypt.inference.generation import sampling_of
from mypt.inference.reply import Reply
from mypt.model.gpt import GPT

_ROWS = 32
_LONGEST = 256
"""Tokens of an answer where a task does not say; the harness's own default."""
_FEWSHOT_SEED = 1234
"""The harness's own default."""


@register_model("mypt")
class MyptLM(LM):
    """A checkpoint as the harness asks it.

    A chat model gets each question, and the examples before it, as turns of its template; a base
    model as text. What its context has no room for is cut from the left and counted.
    """

    def __init__(
        self,
        model: str | tuple[GPT, Tokenizer],
        form: Form | Literal["auto"] = "auto",
        **ignored: object,
    ) -> None:
        """Load the model.

        Args:
            model: A name, a model folder or a step folder; or what such a one holds.
            form: How it is asked; auto follows the data that it was trained on.
            ignored: ``batch_size``, ``max_batch_size`` and ``device``, which the harness always
                gives.

        Raises:
            ConfigError: If there is another argument.
            CheckpointError: If the checkpoint is missing or damaged.
        """
        super().__init__()
        if unknown := ignored.keys() - {"batch_size", "max_batch_size", "device"}:
            raise ConfigError(f"{min(unknown)}: expected model and form in --model_args")
        chat = True
        if isinstance(model, str):
            from mypt.training.checkpoints.checkpoint import load_model

            self._model, self._tokenizer, found = load_model(model)
            chat = found.lineage.dataset.kind == "chat"
        else:
            self._model, self._tokenizer = model
        self._chat = chat if form == "auto" else form == "chat"
        self._model.eval()
        self.cut = 0
        """Requests that were longer than the model's context."""

    @property
    def tokenizer_name(self) -> str:
        """What tells the harness's caches apart."""
        return f"mypt-{self._tokenizer.digest}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:  # noqa: ARG002
        """Return what tells the harness's caches apart."""
        return self._tokenizer.template.digest

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return turns as the JSON that a request of a chat model carries.

        No template is rendered here: in a string a question could forge a role (law 1).
        """
        return json.dumps([chat_history, add_generation_prompt])

    def loglikelihood(
        self,
        requests: Sequence[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002
    ) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) its log-probability, and if greedy says it."""
        rows = []
        for context, continuation in (request.args for request in requests):
            before, begun = self._prompt(context)
            stripped = begun.rstrip()
            whole = self._ids(begun + continuation)
            at = min(len(self._ids(stripped)), len(whole) - 1) if begun else 0
            rows.append((before + whole[:at], whole[at:]))
        return self._score(rows)

    def loglikelihood_rolling(
        self,
        requests: Sequence[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002
    ) -> list[float]:
        """Return each text's log-probability as text, every token with all the context it can have.

        A long text is scored in windows: each token once, behind as many others as fit.
        """
        end = [self._tokenizer.end_of_text]
        return [self._rolling(end + self._ids(request.args[0])) for request in requests]

    def generate_until(
        self,
        requests: Sequence[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002
    ) -> list[str]:
        """Return what the model writes after each context, up to a stop string or its own end."""
        return [self._write(*request.args) for request in requests]

    def _write(self, context: str, choices: dict[str, Any]) -> str:
        known = dict(choices)
        until = known.pop("until", None) or []
        names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        asked = [found for name in names if (found := known.pop(name, None)) is not None]
        sampled = known.pop("do_sample", None)
        sampling = sampling_of(**known if sampled or sampled is None else {})
        before, begun = self._prompt(context)
        prompt = before + self._ids(begun)
        longest = self._model.config.longest
        tokens = int((asked or [_LONGEST])[0])
        kept = longest - min(tokens, longest // 2)
        reply = Reply(
            self._model,
            self._tokenizer,
            self._fitting(prompt, kept),
            max_tokens=tokens,
            stop=[text for text in ([until] if isinstance(until, str) else until) if text],
            sampling=sampling,
        )
        return "".join(reply)

    def _prompt(self, context: str) -> tuple[list[int], str]:
        """Return the ids before a continuation, and the text that it goes on with."""
        if not self._chat:
            return ([] if context.strip() else [self._tokenizer.end_of_text]), context
        history, opened = json.loads(context) if context else ([], True)
        begun = "" if opened else history.pop()["content"]
        messages = [say(turn["role"], turn["content"]) for turn in history]
        return chat_prompt(self._tokenizer, messages), begun

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).tolist()
        return ids

    def _fitting(self, ids: list[int], room: int) -> list[int]:
        self.cut += len(ids) > room
        return ids[-room:]

    def _rolling(self, ids: list[int]) -> float:
        longest = self._model.config.longest
        windows = []
        for start in range(1, len(ids), longest):
            stop = min(start + longest, len(ids))
            begin = max(0, stop - longest - 1)
            windows.append((ids[begin:start], ids[start:stop]))
        return sum(found for found, _ in self._score(windows))

    @torch.no_grad()
    def _score(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Return for (context, continuation) in ids the latter's log-probability and greediness."""
        longest = self._model.config.longest
        fitting = []
        for context, wanted in rows:
            if len(wanted) > longest or not wanted:
                raise ConfigError(
                    f"a continuation has {len(wanted)} tokens, expected 1 to {longest}, the model's"
                    " longest context; leave its task out"
                )
            ids = self._fitting(context + wanted, longest + 1)
            fitting.append((ids, min(len(wanted), len(ids) - 1)))
        order = sorted(range(len(rows)), key=lambda index: len(fitting[index][0]))
        found: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(order), _ROWS):
            some = order[start : start + _ROWS]
            scores = self._score_rows([fitting[index] for index in some])
            found |= dict(zip(some, scores, strict=True))
        return [found[index] for index in range(len(rows))]

    def _score_rows(self, rows: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        device = self._model.lm_head.weight.device
        width = max(len(ids) for ids, _ in rows) - 1
        padded = [ids[:-1] + [0] * (width + 1 - len(ids)) for ids, _ in rows]
        states = self._model.hidden(torch.tensor(padded, device=device))
        found = []
        for state, (ids, n) in zip(states, rows, strict=True):
            logits = self._model.lm_head(state[len(ids) - 1 - n : len(ids) - 1]).float()
            wanted = torch.tensor(ids[-n:], device=device)
            sure = torch.log_softmax(logits, dim=-1).gather(1, wanted[:, None])
            greedy = bool((logits.argmax(dim=-1) == wanted).all())
            found.append((float(sure.sum(dtype=torch.float64)), greedy))
        return found

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> Self:
        """Read ``--model_args model=NAME,form=chat``."""
        found: Self = super().create_from_arg_string(arg_string, additional_config)
        return found


def ask_harness(
    model: GPT, tokenizer: Tokenizer, names: Sequence[str], *, form: Form
) -> dict[str, dict[str, float]]:
    """Return the metrics of some of the harness's tasks, by task or group.

    A task is a program of the harness's: its files may name Python functions, and its data may be
    fetched over the network.

    Args:
        model: On any device.
        tokenizer: The model's own.
        names: Tasks, groups and tags that the harness knows, or YAML files of tasks.
        form: How the model is asked.

    Raises:
        ConfigError: If the harness knows no such task, or a continuation is longer than the
            model's context.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    only_files = all(Path(name).is_file() for name in names)
    try:
        tasks = TaskManager(include_defaults=not only_files).load(list(names))
    except (KeyError, ValueError, OSError) as error:
        raise ConfigError(f"harness: {error}; 'lm_eval ls tasks' lists what it knows") from None
    for task in tasks["tasks"].values():
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    asked = MyptLM((model, tokenizer), form)
    found = evaluate(
        lm=asked,
        task_dict=tasks,
        log_samples=False,
        apply_chat_template=form == "chat",
        fewshot_as_multiturn=form == "chat",
    )
    cut = {"requests cut": float(asked.cut)} if asked.cut else {}
    return {
        task: {
            name.removesuffix(",none"): float(value)
            for name, value in values.items()
            if isinstance(value, int | float)
        }
        | cut
        for task, values in found["results"].items()
    }


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
