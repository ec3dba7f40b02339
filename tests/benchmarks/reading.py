"""Reading of rows, against the bare parts of it on the same bytes; the account of unread fields."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chat_data import dialogues
from harness import Line, extra_bytes, interleave, judge, ratio

from mypt.config import Source
from mypt.data.reading.records import Tally
from mypt.data.reading.sources import open_source

Chat = list[dict[str, str]]
_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
_RESULT = {"role": "tool", "tool_call_id": "c", "content": "2"}
_TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"x": "integer"}}}]
KINDS: dict[str, tuple[Callable[[Chat], dict[str, Any]], float]] = {
    "messages": (lambda chat: {"messages": chat}, 0.21),
    "pairs": (lambda chat: {"prompt": chat[0]["content"], "completion": chat[1]["content"]}, 0.25),
    "calls": (
        lambda chat: {
            "messages": [
                chat[0], {"role": "assistant", "content": None, "tool_calls": [_CALL]}, _RESULT,
                chat[1],
            ],
            "tools": _TOOLS,
        },
        0.19,
    ),
    "plain text": (lambda chat: {"text": chat[1]["content"]}, 0.43),
    "a field unread": (
        lambda chat: {"id": 7, "about": chat[0]["content"], "messages": chat}, 0.21),
    "a field unread in each message": (
        lambda chat: {"messages": [message | {"channel": "web"} for message in chat]}, 0.21),
}  # fmt: skip
"""How a chat is written as a row, and what part of the bare parts' speed 654e372 reached."""


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the lines of this area."""
    chats = dialogues(500 if quick else 6000)
    rounds = 3 if quick else 15
    with tempfile.TemporaryDirectory() as folder:
        for kind, (as_row, reach) in KINDS.items():
            path = Path(folder) / f"{kind}.jsonl"
            path.write_text("".join(json.dumps(as_row(chat)) + "\n" for chat in chats))
            yield _compared(path, kind, reach, len(chats), rounds)
            if "unread" in kind:
                yield _account(path, kind, rounds)
        yield _memory(Path(folder), chats)


def _compared(path: Path, kind: str, reach: float, n_rows: int, rounds: int) -> Line:
    seconds = interleave({"ours": lambda: _read(path), "bare": lambda: _bare(path)}, rounds)
    found = ratio(seconds, "ours", "bare")
    return Line(
        work=f"reading of {n_rows:,} rows: {kind}",
        against="the file's bytes, their sha256 and json.loads of each line",
        reach=f">= {reach}",
        measured=str(found),
        met=judge(found.median, reach),
        note=f"{n_rows / min(seconds['ours']):,.0f} rows a processor second",
    )


def _account(path: Path, kind: str, rounds: int) -> Line:
    """Compare reading with itself where nobody asks which fields are read."""
    true = Tally.check_fields

    def without() -> None:
        Tally.check_fields = lambda *_, **__: None  # type: ignore[method-assign]
        try:
            _read(path)
        finally:
            Tally.check_fields = true  # type: ignore[method-assign]

    seconds = interleave({"with": lambda: _read(path), "without": without}, 3 * rounds)
    cost = 1 / ratio(seconds, "with", "without").median - 1
    return Line(
        work=f"account of fields that are not read: {kind}",
        against="reading of the same rows without it",
        reach="beside" if "each" in kind else "< 3 %",
        measured=f"{cost:.1%}",
        met="-" if "each" in kind else "yes" if cost < 0.03 else "no",
    )


def _memory(folder: Path, chats: list[Chat]) -> Line:
    found = {}
    for times in (1, 4):
        path = folder / f"{times}.jsonl"
        rows = (KINDS["messages"][0](chat) for chat in chats * times)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found[times] = extra_bytes(lambda path=path: _read(path)) / 2**20
    return Line(
        work="memory of reading four times as many rows",
        against="that of reading them once",
        reach="<= 4 MB more",
        measured=f"{found[4] - found[1]:.1f} MB more",
        met="yes" if found[4] - found[1] <= 4 else "no",
        note=f"{found[1]:.1f} and {found[4]:.1f} MB beside what was there before",
    )


def _read(path: Path) -> int:
    return sum(1 for _ in open_source(Source(path=str(path))))


def _bare(path: Path) -> str:
    data = path.read_bytes()
    for line in data.splitlines():
        json.loads(line)
    return hashlib.sha256(data).hexdigest()
