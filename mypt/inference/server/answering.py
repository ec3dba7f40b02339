"""One request, one answer: whole, or streamed as server-sent events.

Requests wait in a bounded queue for the one thread that lets the models write, a token of several
answers at a time.
"""

import asyncio
import json
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from mypt.data.tokenizer import Tokenizer
from mypt.errors import ConfigError
from mypt.inference.generation import OpenRow, Together, known_tokens
from mypt.inference.reply import Reply
from mypt.inference.server.choices import (
    Choice,
    Compile,
    Fragment,
    choices_of,
    chunk,
    completion,
    head_of,
    hold,
    usage,
)
from mypt.inference.server.protocol import Asked, Refused
from mypt.model.gpt import GPT
from mypt.references import CheckpointRef

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 0.5
"""How often a request that waits looks whether its client is still there."""
_LEFT = "the client left"


_MOST_ROWS = 32
_MOST_KEPT = 2**30
"""Bytes that all answers which are being written may keep, unless it is a single one."""


def bytes_of_row(model: GPT) -> int:
    """Return what an answer keeps that fills the model's context."""
    config = model.config
    row = 2 * config.n_layer * config.key_heads * config.head_width * config.longest
    return row * model.lm_head.weight.element_size()


class QueueFull(Exception):  # noqa: N818 - no fault of anybody: the request may come again
    """So many requests wait that no further one is taken."""


class Closed(Exception):  # noqa: N818 - likewise
    """The server is about to end."""


@dataclass(slots=True)
class Job:
    """One answer in the queue."""

    reply: Reply
    emit: Callable[[Fragment | BaseException | None], None]
    """Called from the writing thread: with each piece, at last with None or with what went wrong.
    """
    left: threading.Event = field(default_factory=threading.Event)
    """Set by whoever no longer wants the answer."""
    begun: bool = False
    """Whether the model has read the prompt."""

    def take(self, token: int) -> None:
        """Emit the text that one token more makes certain."""
        text = self.reply.take(token)
        self.emit(Fragment(text, self.reply.newest))

    def end(self, why: BaseException | None) -> None:
        """End the answer: None where it is whole."""
        self.reply.row.room = 0
        self.emit(why)


class Queue:
    """Requests that wait, first come, first served; several are answered at once.

    They may be of several models: those of one share its steps, and all share the bounds.
    """

    def __init__(self, length: int, at_once: int = _MOST_ROWS) -> None:
        """Start the thread.

        Args:
            length: How many requests may wait beside those that are answered.
            at_once: How many are answered at once, if what they keep takes 1 GiB at most.
        """
        self._together: dict[int, Together] = {}
        """What writes the answers of a model, by its id."""
        self._length, self._at_once = length, at_once
        self._jobs: deque[Job] = deque()
        self._closed = False
        self._compiler, self._compiling = ThreadPoolExecutor(1, "mypt-grammars"), 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mypt-answers", daemon=True)
        self._thread.start()

    def add(self, jobs: Sequence[Job]) -> None:
        """Let the answers to a request wait, all or none.

        Raises:
            QueueFull: If too many wait already; where none does, any request is taken.
            Closed: If the server is about to end.
        """
        with self._changed:
            if self._closed:
                raise Closed
            waiting = [one for one in self._jobs if not one.left.is_set()]
            if waiting and len(waiting) + len(jobs) > self._length:
                raise QueueFull
            self._jobs = deque([*waiting, *jobs])
            self._changed.notify()

    async def compile(self, choices: Sequence[Choice], work: Compile) -> None:
        """Let answers hold to a grammar that is made beside the event loop, one at a time.

        Raises:
            QueueFull: If as many requests wait for theirs as may wait at all.
        """
        if self._compiling >= self._length:
            raise QueueFull
        self._compiling += 1
        try:
            grammar = await asyncio.get_running_loop().run_in_executor(self._compiler, work)
        finally:
            self._compiling -= 1
        hold(choices, grammar)

    def close(self) -> None:
        """Break off the answers that are being written and refuse all that wait.

        Safe in a signal handler, where a lock might be held already: it takes none.
        """
        self._closed = True

    def join(self) -> None:
        """Wait for the thread after :meth:`close`."""
        with self._changed:
            self._changed.notify()
        self._thread.join()
        self._compiler.shutdown(cancel_futures=True)

    def _work(self) -> None:
        going: list[Job] = []
        while going := [*going, *self._next(going)]:
            for job in going:
                if not job.begun:
                    self._try([job], partial(self._begin, job))
            for model, together in self._together.items():
                if own := [job for job in going if id(job.reply.model) == model]:
                    self._try(own, partial(self._step, together, own))
                    if 2 * sum(bool(job.reply.row.room) for job in own) < together.size:
                        together.tidy()
            going = [job for job in going if job.reply.row.room]

    def _next(self, going: Sequence[Job]) -> list[Job]:
        """Return requests whose turn has come; none beside none is the end of the server."""
        with self._changed:
            if not going:
                self._changed.wait_for(lambda: self._jobs or self._closed)
            found: list[Job] = []
            kept = sum(bytes_of_row(job.reply.model) for job in going)
            while self._jobs and len(going) + len(found) < self._at_once:
                kept += bytes_of_row(self._jobs[0].reply.model)
                if kept > _MOST_KEPT and (going or found):
                    break
                found.append(self._jobs.popleft())
            return found

    def _try(self, jobs: Sequence[Job], work: Callable[[], None]) -> None:
        """Do some work for answers; if it fails they end, and the server goes on."""
        try:
            work()
        except Exception as error:
            _log(error)
            for job in jobs:
                job.end(error)

    def _begin(self, job: Job) -> None:
        """Read a prompt, alone as it would be by itself."""
        job.begun = True
        reply = job.reply
        if self._closed or job.left.is_set():
            job.end(Closed())
            return
        if id(reply.model) not in self._together:
            known = known_tokens(reply.model, reply.tokenizer)
            self._together[id(reply.model)] = Together(reply.model, known)
        reply.begin(self._together[id(reply.model)])
        if not reply.row.room:
            job.end(None)

    def _step(self, together: Together, going: Sequence[Job]) -> None:
        """Write a token of each answer, but of those that nobody wants any more."""
        for job in going:
            if self._closed or job.left.is_set():
                job.end(Closed())
        whose = {id(job.reply.row): job for job in going}

        def failed(row: OpenRow, error: Exception) -> None:
            _log(error)
            whose[id(row)].end(error)

        for row, token in together.step(failed):
            job = whose[id(row)]
            self._try([job], partial(job.take, token))
            if not row.room:
                job.end(None)


def _log(error: Exception) -> None:
    if isinstance(error, ConfigError):  # no fault of the server
        _LOG.warning("an answer failed: %s", error)
    else:
        _LOG.error("an answer failed", exc_info=error)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that the model was asked, and how it ended."""

    asked: Asked
    said: str
    seconds: float
    """From its coming to its end; waiting is part of it."""
    n_prompt: int
    """Tokens read."""
    n_tokens: int
    """Tokens written."""
    failed: str
    """Why the answer is not whole; empty if it is."""


@dataclass(frozen=True)
class Served:
    """What answers, and under which name."""

    model: GPT
    tokenizer: Tokenizer
    name: str
    """What clients call the model."""
    checkpoint: CheckpointRef
    """What was loaded."""
    queue: Queue
    """The one of all models of a server."""
    clock: Callable[[], float]
    """Gives the seconds since 1970, which the protocol tells clients and nothing here uses."""
    told: Callable[[Exchange], None] | None = None
    """Called with each exchange when it is over."""


async def answer(served: Served, asked: Asked, request: Request) -> Response:
    """Let a request wait for its turn, and answer it.

    Raises:
        Refused: If the model cannot read what is asked, or too many wait.
    """
    choices, left_out, work = choices_of(served.model, served.tokenizer, asked)
    if work is not None:
        try:
            await served.queue.compile(choices, work)
        except QueueFull:
            raise _full() from None
    head = head_of(asked, served.checkpoint.digest, int(served.clock()), left_out)
    headers = {"x-mypt-turns-left-out": str(left_out)}
    pieces = _pieces(served.queue, choices, request)
    if served.told is not None:
        pieces = _overheard(pieces, served.told, asked, choices, request)
    if asked.stream:
        first = await anext(pieces)  # an error before the first word is an ordinary answer
        events = _events(asked, choices, head, first, pieces)
        return StreamingResponse(events, headers=headers, media_type="text/event-stream")
    async for _ in pieces:
        pass
    return JSONResponse(completion(asked, choices, head), headers=headers)


_Pieces = AsyncIterator[tuple[Choice, Fragment | None]]


async def _pieces(queue: Queue, choices: Sequence[Choice], request: Request) -> _Pieces:
    """Yield what answers say as it becomes certain, None at the end of each.

    Whoever leaves gives up his places in the queue.
    """
    loop = asyncio.get_running_loop()
    said: asyncio.Queue[tuple[Choice, Fragment | BaseException | None]] = asyncio.Queue()

    def emit(choice: Choice, piece: Fragment | BaseException | None) -> None:
        with suppress(RuntimeError):  # the server has ended meanwhile; there is nobody to tell
            loop.call_soon_threadsafe(said.put_nowait, (choice, piece))

    jobs = [Job(choice.reply, partial(emit, choice)) for choice in choices]
    looked, going = loop.time(), len(jobs)
    try:
        queue.add(jobs)
        while going:
            choice, piece = None, None
            with suppress(TimeoutError):
                choice, piece = await asyncio.wait_for(said.get(), _LOOK_SECONDS)
            if loop.time() - looked >= _LOOK_SECONDS:
                looked = loop.time()
                if await request.is_disconnected():
                    raise Refused(499, _LEFT)
            if isinstance(piece, ConfigError):
                raise Refused(400, f"the schema is too complex: {piece}")
            if isinstance(piece, BaseException):
                raise piece
            if choice is not None and (piece is None or piece.text or piece.told):
                going -= piece is None
                yield choice, piece
    except QueueFull:
        raise _full() from None
    except Closed:
        raise Refused(503, "the server is about to end") from None
    finally:
        for job in jobs:
            job.left.set()


async def _overheard(
    pieces: _Pieces,
    told: Callable[[Exchange], None],
    asked: Asked,
    choices: Sequence[Choice],
    request: Request,
) -> _Pieces:
    """Yield what answers say, and tell of each when all are over, however they ended."""
    began, failed = time.monotonic(), _LEFT
    try:
        async for one in pieces:
            yield one
        failed = _LEFT if await request.is_disconnected() else ""
    except Exception as error:
        failed = str(error) or type(error).__name__
        raise
    finally:
        seconds = time.monotonic() - began
        for reply in (choice.reply for choice in choices):
            exchange = Exchange(asked, reply.text, seconds, reply.n_prompt, reply.n_tokens, failed)
            told(exchange)


async def _events(
    asked: Asked,
    choices: Sequence[Choice],
    head: dict[str, Any],
    first: tuple[Choice, Fragment | None],
    pieces: _Pieces,
) -> AsyncIterator[str]:
    """Yield a streamed answer as server-sent events."""
    try:
        for said in first[0].pieces(first[1]):
            yield _event(chunk(asked, head, [said]))
        async for choice, piece in pieces:
            for said in choice.pieces(piece):
                yield _event(chunk(asked, head, [said]))
    except Exception as error:  # the head is sent; the error can only follow
        yield _event(refused(error).body)
        return
    if asked.stream_options and asked.stream_options.include_usage:
        yield _event(chunk(asked, head, []) | {"usage": usage(asked, choices)})
    yield "data: [DONE]\n\n"


def _full() -> Refused:
    said = "too many requests wait; ask again in a while"
    return Refused(429, said, code="rate_limit_exceeded")


def _event(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def refused(error: Exception) -> Refused:
    """Return what the client is told of an error."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):
        return Refused(error.status_code, str(error.detail))
    return Refused(500, "the answer failed; the server's terminal says why")
