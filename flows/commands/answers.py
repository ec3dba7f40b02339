"""Commands that let a model answer: once, in a conversation, or to clients. None starts Prefect."""

import itertools
import os
import sys
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from flows.commands.flags import MaybeWhole, Whole
from flows.commands.names import adapted, full_name
from flows.console import Console, describe, print_json
from mypt.errors import ConfigError, MyptError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mypt.data.tokenizer import Tokenizer
    from mypt.inference.chat import Session
    from mypt.inference.server.answering import Exchange
    from mypt.model.gpt import GPT
    from mypt.training.checkpoints.checkpoint import Checkpoint

Form = Literal["auto", "chat", "plain"]
_WORDS = {
    "/undo": "takes back the last question and its answer",
    "/reset": "begins a new conversation",
    "/save FILE": "keeps the whole conversation as a row that mypt prepare reads",
    "/help": "says this",
    "/quit": "ends, as do an empty line and Ctrl-D",
}


def generate(
    model: str,
    *,
    prompt: str,
    adapter: str | None = None,
    max_tokens: Whole = 100,
    form: Form = "auto",
    temperature: float = 0.0,
    top_k: MaybeWhole = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: Whole = 0,
    compile: bool = False,
    json: bool = False,
) -> int:
    """Let a model answer a prompt.

    Args:
        model: A name or its beginning, a model folder or a step folder.
        prompt: The user's message, or the text to continue; not empty.
        adapter: What was learned beside the model: a model of lora, or a folder of peft's.
        max_tokens: Longest answer in tokens.
        form: chat wraps the prompt in the model's template, plain continues it; auto follows
            the training data.
        temperature: 0 takes the likeliest token each time.
        top_k: Sample among the k likeliest tokens.
        top_p: Sample among the likeliest tokens of this total probability.
        min_p: Sample among tokens of at least this share of the likeliest one's probability.
        repetition_penalty: Above 1 makes tokens that stood there before less likely.
        seed: Seed of the sampling.
        compile: Compile what each token needs: some seconds at the start, then quicker. A model
            trained with compile: true is compiled in any case.
        json: Print text, number of tokens and ending as JSON: stop (by the model), length (by
            max_tokens) or context (the model's is full).
    """
    if not prompt:
        raise ConfigError("--prompt is empty; expected a message, or a text to go on with")
    from mypt.inference.chat import prompt_of
    from mypt.inference.generation import sampling_of
    from mypt.inference.reply import Reply

    sampling = sampling_of(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed,
    )  # fmt: skip
    gpt, tokenizer, checkpoint = _load(adapted(model, adapter), compiled=compile)
    if form == "auto":
        form = "chat" if checkpoint.lineage.dataset.kind == "chat" else "plain"
    reply = Reply(
        gpt, tokenizer, prompt_of(tokenizer, prompt, form), max_tokens=max_tokens, sampling=sampling
    )
    text = "".join(reply)
    if json:
        print_json({"text": text, "ending": reply.ending, "n_tokens": reply.n_tokens})
        return 0
    Console().print(text, markup=False, highlight=False)
    if reply.note:
        sys.stderr.write(f"[{reply.note}]\n")
    return 0


def chat(
    model: str,
    *,
    adapter: str | None = None,
    system: str | None = None,
    max_tokens: MaybeWhole = None,
    temperature: float = 0.7,
    top_k: MaybeWhole = 50,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: Whole = 0,
    compile: bool = False,
) -> int:
    """Talk with a model; /quit or Ctrl-D ends it, /help lists what else it understands.

    When its context is full, the oldest turns leave what it reads; the system message stays.

    Args:
        model: A name or its beginning, a model folder or a step folder.
        adapter: As for mypt generate.
        system: A system message to begin with.
        max_tokens: Longest answer in tokens; default: what the model's context holds.
        temperature: 0 takes the likeliest token each time.
        top_k: Sample among the k likeliest tokens.
        top_p: Sample among the likeliest tokens of this total probability.
        min_p: Sample among tokens of at least this share of the likeliest one's probability.
        repetition_penalty: Above 1 makes tokens that stood there before less likely.
        seed: Seed of the sampling.
        compile: As for mypt generate.
    """
    from mypt.inference.chat import Session
    from mypt.inference.generation import sampling_of

    sampling = sampling_of(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed,
    )  # fmt: skip
    gpt, tokenizer, _ = _load(adapted(model, adapter), compiled=compile)
    session = Session(gpt, tokenizer, system=system, max_tokens=max_tokens, sampling=sampling)
    while (line := _read_line()) not in ("", "/quit"):
        try:
            _command(session, line) if line.startswith("/") else _talk(session, line)
        except MyptError as error:  # the conversation goes on
            _write(f"[{error}]\n")
    return 0


def serve(
    models: tuple[str, ...],
    /,
    *,
    host: str = "127.0.0.1",
    port: Whole = 8000,
    api_key: str | None = None,
    allow_origin: Annotated[list[str] | None, Parameter(negative=())] = None,
    allow_host: Annotated[list[str] | None, Parameter(negative=())] = None,
    waiting: Whole = 64,
    compile: bool = False,
    trace: bool = False,
) -> int:
    """Answer OpenAI's protocol for chats and completions, with a page to talk at /, until Ctrl-C.

    Args:
        models: Names or their beginnings, model folders or step folders. Requests choose one by
            its name, or by NAME/STEP where two are steps of one model.
        host: Address to listen on; one that other machines reach needs an API key.
        port: Port to listen on; 0 takes a free one.
        api_key: What clients must send; default: the environment's MYPT_API_KEY, else nothing.
        allow_origin: A site whose pages may ask the server too, such as https://example.org;
            repeatable.
        allow_host: Another name of this machine that clients may use where no key is set, such as
            host.docker.internal; repeatable.
        waiting: Requests that may wait; beyond them the answer is 429.
        compile: As for mypt generate.
        trace: Send each request and its answer to MLflow, as a trace of its experiment "served".
    """
    from mypt.inference.server import serving
    from mypt.inference.server.answering import Queue, Served
    from mypt.training.checkpoints.several import load_models

    key = api_key if api_key is not None else os.environ.get("MYPT_API_KEY") or None
    if waiting < 1 or not 0 <= port <= 65535:
        raise ConfigError(f"waiting {waiting}, port {port}: expected 1 or more, and 0 to 65535")
    with serving.listen(host, port, key) as listening:
        loaded = load_models([full_name(name) for name in models])
        checkpoints = [checkpoint for _, _, checkpoint in loaded]
        names = _names(checkpoints)
        for gpt, _, checkpoint in loaded:
            _make_ready(gpt, checkpoint, compiled=compile)
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listening.getsockname()[1]}"
        with _traced(checkpoints) if trace else nullcontext() as tell:
            queue, served = Queue(waiting), list[Served]()
            for name, (gpt, tokenizer, checkpoint) in zip(names, loaded, strict=True):
                told = partial(tell, checkpoint) if tell else None
                one = Served(gpt, tokenizer, name, checkpoint.ref, queue, time.time, told)
                served.append(one)
            title = ", ".join(map(_step_of, checkpoints))
            origins, hosts = allow_origin or (), allow_host or ()
            app = serving.create_app(served, key, origins=origins, hosts=hosts)
            _write(f"{title} at {url}, for clients {url}/v1; Ctrl-C ends\n")
            serving.serve(app, queue, listening)
    return 0


def _names(checkpoints: "Sequence[Checkpoint]") -> list[str]:
    """Return what clients call each model.

    Raises:
        ConfigError: If a step is named twice.
    """
    steps = [(one.lineage.model_name, Path(one.ref.path).name) for one in checkpoints]
    often = Counter(name for name, _ in steps)
    if len(set(steps)) < len(steps):
        name, step = Counter(steps).most_common(1)[0][0]
        raise ConfigError(f"{name} {step} is named twice; expected each once: leave one out")
    return [name if often[name] == 1 else f"{name}/{step}" for name, step in steps]


@contextmanager
def _traced(
    checkpoints: "Sequence[Checkpoint]",
) -> "Iterator[Callable[[Checkpoint, Exchange], None]]":
    """Journal what is told, as an MLflow run that ends with the server."""
    from flows.environment import prepare_environment

    prepare_environment()
    from tasks.tracking.recording import recorded
    from tasks.tracking.records import Told, Traces

    count, stop = itertools.count(), None

    def tell(checkpoint: "Checkpoint", exchange: "Exchange") -> None:
        told = Told(
            time=int((time.time() - exchange.seconds) * 1000),
            asked=exchange.asked.model_dump(mode="json", exclude_unset=True, by_alias=True),
            said=exchange.said,
            milliseconds=int(exchange.seconds * 1000),
            tokens=(exchange.n_prompt, exchange.n_tokens),
            failed=exchange.failed,
        )
        digest, model = checkpoint.ref.digest, _step_of(checkpoint)
        try:
            run.write(Traces(model=model, checkpoint=digest, first=next(count), told=(told,)))
        except MyptError as error:  # the answer is given all the same
            sys.stderr.write(f"mypt: not traced: {error}\n")

    journal = f"serve-{checkpoints[0].lineage.model_name}-{time.time_ns()}"
    title = ", ".join(map(_step_of, checkpoints))
    with recorded(journal, f"serve {title}", experiment="served") as run:
        try:
            yield tell
        except KeyboardInterrupt as ended:  # as every server does
            stop = ended
    if stop is not None:
        raise stop


def _step_of(checkpoint: "Checkpoint") -> str:
    return f"{checkpoint.lineage.model_name} step {checkpoint.ref.step}"


def _load(model: str, *, compiled: bool) -> "tuple[GPT, Tokenizer, Checkpoint]":
    """Return a model with its tokenizer and checkpoint, ready to answer."""
    from mypt.training.checkpoints.checkpoint import load_model

    gpt, tokenizer, checkpoint = load_model(model)
    _make_ready(gpt, checkpoint, compiled=compiled)
    return gpt, tokenizer, checkpoint


def _make_ready(gpt: "GPT", checkpoint: "Checkpoint", *, compiled: bool) -> None:
    """Compile a model if that or its config asks; say if its training has not ended."""
    from mypt.model.compiling import compile_reading, missing_compiler

    _tell_if_unfinished(Path(checkpoint.ref.path).parent)
    if compiled or checkpoint.preset.compile:
        missing = missing_compiler(gpt.lm_head.weight.device)
        if missing and compiled:
            raise ConfigError(f"--compile: {missing} is not on this machine; leave it out")
        if missing:
            sys.stderr.write(f"compile: {missing} is not on this machine: nothing is compiled\n")
        else:
            compile_reading(gpt)


def _tell_if_unfinished(folder: Path) -> None:
    """Say on standard error how far the training of a model came, if it has not ended."""
    from mypt.home import find_checkpoint
    from mypt.training.checkpoints.state import read_state
    from mypt.training.lineage import IMPORTED, read_lineage

    if not (folder / "latest").is_file():  # a step folder that was taken elsewhere
        return
    last = find_checkpoint(folder)
    lineage = read_lineage(last)
    if (state := read_state(last)).finished is None and lineage.dataset.kind != IMPORTED:
        steps = lineage.config.max_iters
        sys.stderr.write(
            f"{folder.name}: its training is not finished, step {state.step:,} of {steps:,}\n"
        )


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _talk(session: "Session", line: str) -> None:
    from mypt.text import visible

    told = session.left_out
    for piece in session.say(line):
        _write(visible(piece))
    _write(f"\n[{session.note}]\n" if session.note else "\n")
    if session.left_out and not told:
        _write(
            f"[the context is full: the model no longer reads the oldest turns ({session.left_out}"
            " so far); /save keeps them all]\n"
        )


def _command(session: "Session", line: str) -> None:
    word, _, rest = line.partition(" ")
    match word:
        case "/undo":
            session.undo()
            _write("[taken back]\n")
        case "/reset":
            session.reset()
            _write("[a new conversation]\n")
        case "/save":
            _save(session, rest.strip())
        case "/help":
            _write("".join(f"{word:12}{what}\n" for word, what in _WORDS.items()))
        case _:
            raise ConfigError(f"{word} is no word here, and was not sent; /help lists them")


def _save(session: "Session", name: str) -> None:
    if not name:
        raise ConfigError("/save: expected a file to write, such as /save talk.jsonl")
    try:
        session.save(Path(name))
    except OSError as error:
        raise ConfigError(describe(error)) from None
    _write(f"[saved as {name}]\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
