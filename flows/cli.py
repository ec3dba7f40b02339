"""The ``mypt`` command: parses, calls the core, prints, and turns errors into exit codes."""

import difflib
import gc
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Literal

from cyclopts import (
    App,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    UnknownCommandError,
    UnusedCliTokensError,
)

from flows.console import Console, describe
from mypt import __version__
from mypt.children import COLLECTED, SAFE
from mypt.errors import ConfigError, MissingError, MyptError
from mypt.text import visible

OK, FINDING, WRONG_USE, INTERRUPTED, PIPE_CLOSED, TERMINATED = 0, 1, 2, 130, 141, 143

app = App(
    name="mypt",
    help="Turn raw text and chat files into a chat model, and prove what it was trained on.",
    version=__version__,
    version_flags=("--version", "-V"),
    default_parameter=Parameter(name_transform=lambda name: name, negative=()),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)
_OPEN_FILES = 1 << 16
_MAY_BE_EMPTY = ("--prompt", "--system", "--search", "--join")
STAGES: dict[str, dict[str, tuple[str, str]]] = {
    "Data": {
        "prepare": ("data", "Turn raw files into a dataset of token shards and loss masks."),
        "mask": ("data", "Mask a dataset under another policy, without tokenizing again."),
        "adopt": (
            "data",
            "Take shards made by hand, or an adapter of peft's; validate them, exit 1 if broken.",
        ),
        "validate": (
            "data",
            "Check a dataset; exit 1 on a broken contract, print everything else with its count.",
        ),
        "show": ("data", "Print conversations with their supervised tokens in colour."),
    },
    "Training": {
        "plan": (
            "planning",
            "Say what a training needs and takes before it runs; exit 1 if it fits no GPU named.",
        ),
        "train": ("models", "Train a model, or go on where the same name and config stopped."),
        "evaluate": (
            "models",
            "Measure a model: loss and perplexity over supervised tokens, exact match, stops.",
        ),
    },
    "Use": {
        "generate": ("answers", "Let a model answer a prompt."),
        "chat": (
            "answers",
            "Talk with a model; /quit or Ctrl-D ends it, /help lists what else it understands.",
        ),
        "serve": (
            "answers",
            "Answer OpenAI's protocol for chats and completions, with a page to talk at /, until"
            " Ctrl-C.",
        ),
        "export": ("transfer", "Write a model or a dataset for other programs."),
    },
    "Proof": {
        "list": (
            "listing",
            "List models, datasets and runs, newest first; exit 1 where one is damaged.",
        ),
        "lineage": (
            "provenance",
            "Say what made a checkpoint: parents, dataset, masks, raw files; no server needed.",
        ),
        "reproduce": (
            "provenance",
            "Make a checkpoint again from the raw files; exit 1 and say where it parts.",
        ),
        "sign": (
            "provenance",
            "Sign a checkpoint or dataset, so that whoever has your public key can believe it.",
        ),
        "verify": (
            "provenance",
            "Check who signed a checkpoint or dataset, and all of its chain that lies here.",
        ),
        "diff": (
            "comparison",
            "Compare two datasets, checkpoints or MLflow runs: rows, settings, density, figures.",
        ),
    },
    "Pipelines and services": {
        "run": (
            "services",
            "Run the whole pipeline here, or a deployment that is served: data in, model out.",
        ),
        "sweep": (
            "services",
            "Run the pipeline under each combination of settings; say which is surely best.",
        ),
        "up": (
            "services",
            "Start the Prefect and MLflow servers on this machine and serve sft-pipeline/local.",
        ),
        "sync": (
            "services",
            "Send to MLflow what could not be sent while training; sending twice changes nothing.",
        ),
    },
}
"""Commands by stage, in the order of the README's table and of the help: the room's file that
holds each, and what it does. A file is read when its command is called, and not before."""
for place, (stage, commands) in enumerate(STAGES.items()):
    group = Group(stage, sort_key=place)
    for rank, (word, (room, does)) in enumerate(commands.items()):
        function = "list_" if word == "list" else word
        app.command(
            f"flows.commands.{room}:{function}", name=word, help=does, group=group, sort_key=rank
        )
_ABOUT = Group("This program", sort_key=len(STAGES))
app["--help"].group = app["--version"].group = _ABOUT


@app.command(name="--install-completion", group=_ABOUT)
def install_completion(*, shell: Literal["bash", "zsh", "fish"] | None = None) -> int:
    """Complete commands and flags with Tab, from the next terminal on.

    Args:
        shell: Whose; default: the one that this was typed in.
    """
    from cyclopts.completion.detect import ShellDetectionError

    try:
        print(f"completion: {app.install_completion(shell=shell)}; open a new terminal")
    except ShellDetectionError:
        raise ConfigError("no shell is recognised; expected --shell bash, zsh or fish") from None
    return OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 success, 1 a finding or a failed run, 2 wrong use, 130 after Ctrl-C, 143 after SIGTERM.
    Every error is one line on standard error.
    """
    # Threads that wait should sleep: where other programs run, spinning ones slow each other down
    # five times (D60). Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.update(SAFE)
    gc.set_threshold(COLLECTED)
    _open_closed_streams()
    _allow_many_files()
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    try:
        _check_words(words)
        if set(words[:1]) & {word for commands in STAGES.values() for word in commands}:
            app[words[0]].help = None  # its docstring, which says more than its row
        with _sigterm_raises():
            code = app(words, console=Console())
            sys.stdout.flush()  # here a closed pipe is met, not when Python ends
    except CycloptsError as error:
        return _fail(_explain(error, words), WRONG_USE)
    except (ConfigError, MissingError) as error:
        return _fail(str(error), WRONG_USE)
    except MyptError as error:
        return _fail(str(error), FINDING)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        return _fail(describe(error), WRONG_USE if missing else FINDING)
    except _Terminated:
        return _fail(
            "stopped by SIGTERM; what was complete is kept, run the same again", TERMINATED
        )
    except KeyboardInterrupt:
        return _fail("interrupted; what was complete is kept, run the same again", INTERRUPTED)
    return code if isinstance(code, int) else OK


def _open_closed_streams() -> None:
    """Give a process that was started without standard streams (``>&-``) empty ones.

    Else the next file that is opened takes their number, and what is printed goes into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _allow_many_files() -> None:
    """Let this process open as many files as it may: each shard that is mapped keeps four open."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError):  # a system may have a limit below the one that it tells
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, min(most, _OPEN_FILES)), most))


def _explain(error: CycloptsError, words: Sequence[str]) -> str:
    """Say in the house's words what the parser found."""
    name = " ".join(error.command_chain or ())
    said = str(error)
    if isinstance(error, MissingArgumentError) and error.keyword:
        said = f"{error.keyword} is the last word; expected its value after it"
    elif isinstance(error, MissingArgumentError):
        missing = tuple(_missing(error, words))
        said = f"{', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing"
    elif isinstance(error, UnknownCommandError):
        said = _unknown((error.unused_tokens or [""])[0])
    elif isinstance(error, UnusedCliTokensError):
        said = f"{' '.join(error.unused_tokens or ())[:60]!r} belongs to no flag and no name"
    return f"{said}; see 'mypt {name} --help'" if name else f"{said}; see 'mypt --help'"


def _unknown(word: str) -> str:
    """Say which command a word may have been meant for, or which there are."""
    typed = [command for commands in STAGES.values() for command in commands]
    known = (*typed, "help", "--help", "--version", "--install-completion")
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    wanted = f"the nearest is {near[0]!r}" if near else f"expected {', '.join(typed)}"
    return f"{word[:60]!r} is no command; {wanted}"


def _missing(error: CycloptsError, words: Sequence[str]) -> Iterator[str]:
    """Yield every name and flag that is missing: the parser stops at the first one."""
    while isinstance(error, MissingArgumentError) and error.argument and not error.keyword:
        found = error.argument
        keyword_only = found.field_info.kind is found.field_info.KEYWORD_ONLY
        yield found.name if keyword_only else found.name.removeprefix("--").upper()
        words = [*words, found.name, "any"]
        try:
            app.parse_args(words)
        except CycloptsError as another:
            error = another
        else:
            return


class _Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would be, so that whatever tidies up for one does for both."""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM unwind the program; training and the flow put their own handling on top."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_words(words: Sequence[str]) -> None:
    """Refuse an empty word, which as a path would mean the folder one stands in."""
    for before, word in zip(("", *words), words, strict=False):
        flag, equals, value = word.partition("=")
        if not equals:
            flag, value = before, word
        elif not flag.startswith("--"):
            continue
        if not value and flag not in _MAY_BE_EMPTY:
            where = f"after {flag}" if flag else "first"
            raise ConfigError(f"an empty word {where}; expected a name, a path or a value")


def _fail(message: str, code: int) -> int:
    line = visible(" ".join(message.split()))  # what was typed or read stands in it
    print(f"mypt: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
