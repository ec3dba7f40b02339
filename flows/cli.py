"""The ``mypt`` command: parses, calls the core, prints, and turns errors into exit codes."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnusedCliTokensError

from flows.commands import (
    answers,
    comparison,
    data,
    listing,
    models,
    planning,
    provenance,
    services,
    transfer,
)
from flows.console import describe
from mypt import __version__
from mypt.errors import ConfigError, MyptError
from mypt.text import visible

OK, FINDING, WRONG_USE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

app = App(
    name="mypt",
    help="Turn raw text and chat files into a chat model, and prove what it was trained on.",
    version=__version__,
    default_parameter=Parameter(name_transform=lambda name: name, negative=()),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)
_MAY_BE_EMPTY = ("--prompt", "--system", "--search", "--join")
for command in (
    services.run, data.prepare, data.mask, data.adopt, data.validate, data.show, comparison.diff,
    planning.plan, models.train, models.evaluate, answers.generate, answers.chat, answers.serve,
    transfer.export, provenance.lineage, provenance.reproduce, services.up, services.sync,
):  # fmt: skip
    app.command(command)
app.command(listing.list_, name="list")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 success, 1 a finding or a failed run, 2 wrong use, 130 after Ctrl-C, 143 after SIGTERM.
    Every error is one line on standard error.
    """
    # Threads that wait should sleep: where other programs run, spinning ones slow each other down
    # five times (D60). Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        _check_words(words)
        with _sigterm_raises():
            code = app(words)
    except CycloptsError as error:
        return _fail(_explain(error), WRONG_USE)
    except ConfigError as error:
        return _fail(str(error), WRONG_USE)
    except MyptError as error:
        return _fail(str(error), FINDING)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe left; there is nobody to tell
        return FINDING
    except OSError as error:
        return _fail(describe(error), FINDING)
    except _Terminated:
        return _fail(
            "stopped by SIGTERM; what was complete is kept, run the same again", TERMINATED
        )
    except KeyboardInterrupt:
        return _fail("interrupted; what was complete is kept, run the same again", INTERRUPTED)
    return code if isinstance(code, int) else OK


def _explain(error: CycloptsError) -> str:
    """Say in the house's words what the parser found."""
    name = " ".join(error.command_chain or ())
    said = str(error)
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        said = f"{error.argument.name} is missing"
    elif isinstance(error, UnusedCliTokensError):
        said = f"{' '.join(error.unused_tokens or ())[:60]!r} belongs to no flag"
    return f"{said}; see 'mypt {name} --help'" if name else f"{said}; see 'mypt --help'"


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
