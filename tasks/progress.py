"""Progress on the terminal: bars where it is one, a line now and then where it is not."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mypt.home import step_folder
from mypt.text import counted, visible
from mypt.training.batches.groups import GroupLoss
from mypt.training.events import EvalReport, Event, Finished, Sample, Started, StepReport
from mypt.training.plan import RunPlan

Log = Callable[[str], None]
"""Takes every line, also those that a bar makes needless on a terminal."""
Move = Callable[[float, str], None]
"""Takes the share that is done, from 0 to 1, and a line about it; returns at once."""
Progressed = Callable[[int, int, int, int], None]

_INTERVAL = 10.0
"""Seconds between two lines about work that goes on; between lines about steps the first time."""
_SELDOM = 120.0
"""The longest between those, which grows twofold from line to line: a log is read at its end."""
_STRETCH = 600.0
"""Seconds of work from which a bar tells how much is left."""
_console = Console()


def print_line(line: str) -> None:
    """Print a line above whatever bar is shown."""
    _console.print(line, markup=False, highlight=False, soft_wrap=True)


def watch(events: Iterable[Event], plan: RunPlan, log: Log = lambda _: None) -> Iterator[Event]:
    """Pass events on and show them: evaluations as lines, steps as a bar.

    Args:
        events: What the training loop yields.
        plan: What is being trained.
        log: Gets every line besides, and those about steps.
    """
    bar = _bar(plan.model_name, MofNCompleteColumn(), _TokenRate(), "{task.fields[loss]}")
    with bar:
        steps = bar.add_task("", total=plan.preset.max_iters, loss="", tokens=0)
        pace = _Pace()
        for event in events:
            match event:
                case Started():
                    first = "" if event.step else "evaluating before the first step"
                    bar.update(
                        steps, completed=event.step, tokens=event.tokens_per_step, loss=first
                    )
                    pace.begin()
                case StepReport():
                    bar.update(steps, completed=event.step, loss=f"loss {event.loss:.3f}")
                    line = pace.line(event, plan.preset.max_iters)
                    if line:
                        log(line)
                        if not _console.is_terminal:
                            print_line(line)
            for line in describe(event):
                log(line)
                print_line(line)
            yield event


def describe(event: Event) -> Iterator[str]:
    """Yield the lines that an event is worth on every terminal; none for a step."""
    match event:
        case Started():
            yield (
                f"{event.model_name}: {event.n_parameters:,} parameters on {event.device} in"
                f" {event.dtype}, learns {event.policy}, {event.tokens_per_step:,} tokens a step,"
                f" from step {event.step} to {event.max_iters}"
            )
            yield from (f"  {line}" for line in (*event.inherited, *event.notes))
        case EvalReport():
            best = " (best)" if event.best else ""
            yield (
                f"step {event.step}: train loss {event.train_loss:.4f},"
                f" val loss {event.val_loss:.4f}{best}"
            )
            yield from _groups_line(event)
        case Sample():
            yield f"step {event.step}: {event.prompt!r} -> {event.answer!r}"
        case Finished():
            used = Path(event.checkpoint.path)
            saved = used.with_name(step_folder(event.step))
            line = f"{event.reason} at step {event.step}: {saved}"
            yield line if saved == used else f"{line}; the best is {used.name}"


def groups_of(event: EvalReport) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the losses of training and validation, nan where there is none, by group."""
    found = {}
    for by, val in event.val.items():
        learned = event.learned.get(by, {})
        names = dict.fromkeys([*learned, *val])
        found[by] = {name: (_loss(learned, name), _loss(val, name)) for name in names}
    return found


def _loss(groups: Mapping[str, GroupLoss], name: str) -> float:
    return groups[name].loss if name in groups else math.nan


def _groups_line(event: EvalReport) -> Iterator[str]:
    """Yield one line: what both losses are made of, where that is more than one thing."""
    parts = [
        f"{by}: "
        + ", ".join(
            f"{visible(name)} {'/'.join('-' if math.isnan(x) else f'{x:.2f}' for x in losses)}"
            for name, losses in members.items()
        )
        for by, members in groups_of(event).items()
        if len(members) > 1
    ]
    if parts:
        yield f"  train/val by {'; '.join(parts)}"


def describe_step(event: StepReport, plan: RunPlan) -> str:
    """Return a line about one step."""
    return (
        f"{plan.model_name}: step {event.step} of {plan.preset.max_iters}, loss {event.loss:.4f},"
        f" {event.tokens / event.seconds:,.0f} tokens/s"
    )


@contextmanager
def reading(
    what: str, log: Log = lambda _: None, move: Move = lambda _share, _line: None
) -> Iterator[Progressed]:
    """Yield a callback for bytes read, bytes in all, rows and tokens written.

    Args:
        what: What is being read.
        log: Gets a line every ten seconds.
        move: Gets the share that is read, and the line, each time.
    """
    start = shown = time.monotonic()
    with _bar(what, DownloadColumn(), "{task.fields[tokens]:,} tokens") as bar:
        task = bar.add_task("", total=None, tokens=0)

        def report(done: int, total: int, rows: int, tokens: int) -> None:
            nonlocal shown
            bar.update(task, completed=done, total=total, tokens=tokens)
            now = time.monotonic()
            share = done / max(total, 1)
            line = (
                f"{what}: {share:.0%} read, {counted(rows, 'row')}, {counted(tokens, 'token')},"
                f" {tokens / max(now - start, 1e-3):,.0f} tokens/s"
            )
            move(share, line)
            if now - shown > _INTERVAL:
                shown = now
                log(line)
                if not _console.is_terminal:
                    print_line(line)

        yield report


class _Pace:
    """Steps and tokens since the last line about them, and the time of all steps."""

    def begin(self) -> None:
        self._wait = _INTERVAL
        self._worked, self._done = 0.0, 0
        self._rest()

    def _rest(self) -> None:
        self._since = time.monotonic()
        self._seconds = 0.0
        self._tokens = self._supervised = 0

    def line(self, event: StepReport, max_iters: int) -> str | None:
        self._done += 1
        self._worked += event.seconds
        self._tokens += event.tokens
        self._supervised += event.supervised
        self._seconds += event.seconds
        if time.monotonic() - self._since < self._wait:
            return None
        seconds = self._seconds  # of steps alone: evaluations are no measure of the next steps
        left = int((max_iters - event.step) * self._worked / self._done)
        text = (
            f"step {event.step} of {max_iters}: loss {event.loss:.4f},"
            f" {self._tokens / seconds:,.0f} tokens/s,"
            f" {self._supervised / seconds:,.0f} supervised tokens/s,"
            f" {left // 60} min {left % 60:02} s left"
        )
        self._wait = min(2 * self._wait, _SELDOM)
        self._rest()
        return text


class _TokenRate(ProgressColumn):
    """Tokens a second, from the bar's own pace."""

    def render(self, task: Task) -> Text:
        speed = (task.speed or 0.0) * float(task.fields["tokens"])
        return Text(f"{speed:,.0f} tokens/s" if speed else "")


def _bar(title: str, *columns: ProgressColumn | str) -> Progress:
    return Progress(
        TextColumn(title, markup=False),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=_console,
        speed_estimate_period=_STRETCH,
        transient=True,
        disable=not _console.is_terminal,
    )
