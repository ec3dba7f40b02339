"""Tool calls as files spell them, the results that come back, and which result answers which call.

OpenAI's ``tool_calls`` and messages of the role tool, Anthropic's blocks ``tool_use`` and
``tool_result``, Gemini's parts ``functionCall`` and ``functionResponse``.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from mypt.data.conversations import Message
from mypt.data.reading import strict_json
from mypt.data.reading.records import WEIGHTS, Place, Tally, Within, first_of, verdict_of
from mypt.errors import DataError
from mypt.text import names, shown

CALLS: Final = frozenset({"tool_call", "function_call", "tool_use", "functionCall"})
"""Types of parts, or names of their only field, that hold a call."""
RESULTS: Final = frozenset({"tool_result", "function_response", "functionResponse"})
"""The same for what a tool gives back, wherever in a message it stands."""
CALL_IDS: Final = ("tool_call_id", "tool_use_id", "call_id")
"""Fields of a result that say which call it answers."""
_STATUS: Final = {
    "error": True, "failed": True, "failure": True,
    "outcome_failed": True, "outcome_deadline_exceeded": True,
    "ok": False, "success": False, "completed": False, "outcome_ok": False,
}  # fmt: skip
_MARKS: Final = frozenset({"is_error", "isError", "status", "outcome", "error"})
LOST_ERROR: Final = "a result marked as an error whose call cannot be told"
"""What is counted where a mark is read and nothing can be made of it."""
_ARGUMENTS: Final = ("arguments", "args", "input", "parameters")
_AROUND: Final = frozenset({"id", "call_id", "type", "function", *WEIGHTS})
_CALLED: Final = {key: frozenset({"id", "name", key}) for key in (*_ARGUMENTS, "")}
"""What is read of a call by the field that holds its arguments."""
_CALL: Final = {key: _AROUND | read for key, read in _CALLED.items()}
_SPEAKER: Final = ("role", "from")
_GIVEN: Final = ("content", "response", "output", "value")


class Turn(NamedTuple):
    """A message, and what its links to others are read from."""

    fields: dict[str, Any]
    message: Message
    place: Place


def kind_of(part: Any) -> str | None:
    """Return the type of a part; where it names none, the field that tells it; else None."""
    if not isinstance(part, dict):
        return None
    kind = part.get("type")
    if kind is None:
        kind = next((key for key in part if key in CALLS or key in RESULTS or key == "text"), None)
        return "reasoning" if kind == "text" and part.get("thought") is True else kind
    return kind if isinstance(kind, str) else None


def call_in(part: dict[str, Any], kind: str) -> Any:
    """Return the call that a part of type ``kind`` holds: an object, or text."""
    inner = first_of(part, ("value", "content", "text", kind))
    return part if inner is None else inner


def spell_call(call: Any, place: Place, tally: Tally) -> str:
    """Return a call as ``{"name": ..., "arguments": ...}``; as text or object, they are equal.

    Raises:
        DataError: If it has no name, or its arguments are no object.
    """
    called = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(called, dict) or not isinstance(called.get("name"), str):
        raise DataError(f"{place}: a tool call is {shown(call)}; expected a name and arguments")
    if called is not call:
        tally.check_fields(call, _AROUND, place, "a tool call")
    key = next((key for key in _ARGUMENTS if called.get(key) is not None), "")
    read = _CALL if called is call else _CALLED
    tally.check_fields(called, read[key], place, "a tool call")
    named = Within(place, f"arguments of {shown(called['name'])}")
    arguments = called.get(key)
    if isinstance(arguments, str):
        arguments = strict_json.parse_text(arguments, named) if arguments.strip() else None
    if not isinstance(arguments, dict | None):
        raise DataError(f"{named}: found {shown(arguments)}; expected an object with a field each")
    return strict_json.spell({"name": called["name"], "arguments": arguments or {}}, named)


def spell_text(text: str, place: Place, tally: Tally) -> list[str]:
    """Return the calls that stand in a text: JSON as :func:`spell_call`, else it as it stands.

    Raises:
        DataError: If it begins as JSON does and is none, or as a call that cannot be spelled.
    """
    if not text.lstrip().startswith(("{", "[")):
        return [text]
    named = Within(place, "the text of a call")
    value = strict_json.parse_text(text, named)
    calls = value if isinstance(value, list) else [value]
    if calls and all(
        isinstance(call, dict) and ("name" in call or "function" in call) for call in calls
    ):
        return [spell_call(call, place, tally) for call in calls]
    return [strict_json.spell(value, named)]


def unfold(fields: Any) -> Sequence[Any]:
    """Return a message whose content holds results of tools as one message for each of them.

    What else it says stays a message of its own, at its place among them.
    """
    content = fields.get("content") or fields.get("parts") if isinstance(fields, dict) else None
    if not isinstance(content, list) or not any(kind_of(part) in RESULTS for part in content):
        return (fields,)
    key = "content" if content is fields.get("content") else "parts"
    beside = {name: value for name, value in fields.items() if name not in (key, "role", "from")}
    unfolded: list[dict[str, Any]] = []
    said: list[Any] | None = None
    for part in content:
        if kind_of(part) in RESULTS:
            unfolded.append(beside | _result(part))
            said = None
        elif said is None:
            said = [part]
            unfolded.append(fields | {key: said})
        else:
            said.append(part)
    return unfolded


def _result(part: dict[str, Any]) -> dict[str, Any]:
    kind = kind_of(part) or ""
    inner = part[kind] if isinstance(part.get(kind), dict) else part
    key = next((key for key in _GIVEN if inner.get(key) is not None), "content")
    given = inner.get(key)
    beside = {name: value for name, value in inner.items() if name not in ("type", key)}
    if inner is not part:
        if "id" in beside:
            beside["tool_call_id"] = beside.pop("id")
        beside |= {name: value for name, value in part.items() if name not in ("type", kind)}
    # Whoever is named in it, a result is the tool's.
    beside = {f"{kind}.{name}" if name in _SPEAKER else name: beside[name] for name in beside}
    return beside | {"role": "tool", "content": "" if given is None else given}


def verdicts_of(result: Mapping[str, Any]) -> dict[str, bool]:
    """Return which fields of a result say no more than whether its call failed, and what."""
    if _MARKS.isdisjoint(result):
        return {}
    found = {key: verdict_of(result.get(key)) for key in ("is_error", "isError")}
    found |= {key: _STATUS.get(str(result.get(key)).lower()) for key in ("status", "outcome")}
    error = result.get("error")
    found["error"] = error if isinstance(error, bool) else None
    return {key: failed for key, failed in found.items() if failed is not None}


def has_failed(result: Mapping[str, Any]) -> bool:
    """Return whether a result is marked as an error.

    It is by ``is_error``, a ``status`` or ``outcome``, or an ``error`` that says something, which
    may stand in the object that the tool gave back.
    """
    given = result.get("content")
    inner = given.get("error") if isinstance(given, dict) else None
    return any(verdicts_of(result).values()) or _is_error(result.get("error")) or _is_error(inner)


def _is_error(value: Any) -> bool:
    said = isinstance(value, bool | str | dict | list) and bool(value)
    return said and verdict_of(value) is not False


def link_results(turns: list[Turn], tally: Tally) -> list[Message]:
    """Return the messages; results in a row stand in the order of the calls that they answer.

    A result says by an id which call it answers, or by the name that was called; if by neither,
    it answers the first call that waits. A call whose result is marked as an error is of the kind
    ``failed_call``.

    Raises:
        DataError: If a result has an id that no call before it has, though calls have ids.
    """
    failed = any(turn.message.role == "tool" and has_failed(turn.fields) for turn in turns)
    if not failed and _are_in_order(turns):
        return [turn.message for turn in turns]
    calls, linked, results = _Calls(tally), list[Message](), list[Turn]()
    for turn in turns:
        if turn.message.role == "tool":
            results.append(turn)
            continue
        linked += calls.answer(results)
        results = []
        calls.add(turn, len(linked))
        linked.append(turn.message)
    linked += calls.answer(results)
    calls.count_missing(is_open=bool(turns) and turns[-1].message.role == "assistant")
    return calls.told_apart(linked)


def _are_in_order(turns: list[Turn]) -> bool:
    """Return whether each call has an id and its one result, in order, as in most files."""
    waiting: list[Any] = []
    for fields, message, _ in turns:
        if message.role == "tool":
            if not waiting:
                return False
            key, name = waiting.pop()
            if fields.get("tool_call_id") != key or fields.get("name") not in (None, name):
                return False
        elif waiting:
            return False
        elif calls := [call for call in fields.get("tool_calls") or () if call is not None]:
            waiting = [
                (call.get("id"), call.get("function", call).get("name")) for call in reversed(calls)
            ]
            ids = {str(key) for key, _ in waiting if key}
            if len(ids) < len(waiting):
                return False
    return not waiting


class _Calls:
    """The calls of a conversation up to some turn."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._by_id: dict[str, int] = {}
        self._names: list[Any] = []
        self._answered: list[int] = []
        """How many results each call has."""
        self._turn: list[int] = []
        """Which turn made each."""
        self._places: list[tuple[int, int] | None] = []
        """Message and part that each is; None where a text holds several."""
        self._failed: set[tuple[int, int]] = set()
        self._waiting: list[tuple[int, Any]] = []
        """Index and name of those of the turns in a row that called last."""
        self._goes_on = False
        """Whether calls of the next turn are parallel to them."""
        self._n_turns = 0

    def add(self, turn: Turn, at: int) -> None:
        """Take in the calls that message ``at`` makes."""
        parts = turn.message.parts if turn.message.role == "assistant" else ()
        places = [(at, number) for number, part in enumerate(parts) if part.kind == "tool_call"]
        n_calls = len(places)
        if n_calls and not self._goes_on:
            self._waiting = []
        self._goes_on = n_calls > 0
        if not n_calls:
            return
        made = list(_raw_calls(turn.fields)) or [(None, None)] * n_calls
        if turn.fields.get("function_call") is not None and len(made) > n_calls:
            made.pop()  # the older name of a call that was read already
        told = places if len(made) >= n_calls else []
        self._places += [*told, *[None] * (len(made) - len(told))]
        for key, name in made:
            index = len(self._answered)
            if isinstance(key, str | int):
                self._by_id[str(key)] = index
            self._names.append(name)
            self._answered.append(0)
            self._turn.append(self._n_turns)
            self._waiting.append((index, name))
        self._n_turns += 1

    def answer(self, results: list[Turn]) -> list[Message]:
        """Return the messages of results that follow each other, in the order of the calls."""
        if not results:
            return []
        found = list(self._find(results))
        self._goes_on = False
        for at in (at for turn, at in zip(results, found, strict=True) if has_failed(turn.fields)):
            place = None if at is None else self._places[at]
            if place is None:
                self._tally.notes[LOST_ERROR] += 1
            else:
                self._failed.add(place)
        messages = [turn.message for turn in results]
        known = [at for at in found if at is not None]
        if len(known) < len(found) or known == sorted(known):
            return messages
        self._tally.notes["results of parallel calls put into the order of the calls"] += 1
        return [messages[place] for place in sorted(range(len(known)), key=known.__getitem__)]

    def _find(self, results: list[Turn]) -> Iterator[int | None]:
        """Yield the index of the call that each result answers; None: nobody knows."""
        by_name: dict[Any, deque[int]] = defaultdict(deque)
        by_turn = deque(index for index, _ in self._waiting)
        for index, name in self._waiting:
            if isinstance(name, str):
                by_name[name].append(index)
        for fields, _, place in results:
            at, name = self._by_its_id(fields, place), fields.get("name")
            if at is not None and name not in (None, self._names[at]):
                self._tally.notes["a result whose name is not that of the call with its id"] += 1
            if at is None:
                at = self._first(by_name[name] if isinstance(name, str) else by_turn)
                if at is None and self._waiting and isinstance(name, str):
                    self._tally.notes["a result with a name that no waiting call has"] += 1
            if at is not None:
                if self._answered[at]:
                    self._tally.notes["a call with several results"] += 1
                self._answered[at] += 1
            yield at

    def _by_its_id(self, fields: dict[str, Any], place: Place) -> int | None:
        key = first_of(fields, CALL_IDS)
        if key is None:
            return None
        at = self._by_id.get(str(key)) if isinstance(key, str | int) else None
        if at is None and self._by_id:
            raise DataError(
                f"{place}: a result of the call {shown(key)}, which no message before it makes;"
                f" expected one of {names(self._by_id)}; mend the id or remove the result"
            )
        if at is None:
            self._tally.notes["a result with the id of a call, where no call has an id"] += 1
        return at

    def _first(self, waiting: deque[int]) -> int | None:
        while waiting and self._answered[waiting[0]]:
            waiting.popleft()
        return waiting.popleft() if waiting else None

    def told_apart(self, messages: list[Message]) -> list[Message]:
        """Return the messages, those of its calls that failed being of a kind of their own."""
        if self._failed:
            self._tally.notes["a call whose result is marked as an error"] += len(self._failed)
        for at, number in self._failed:
            parts = list(messages[at].parts)
            parts[number] = replace(parts[number], kind="failed_call")
            messages[at] = replace(messages[at], parts=tuple(parts))
        return messages

    def count_missing(self, *, is_open: bool) -> None:
        """Count the calls without a result, but those of a conversation's end that wait for all.

        Args:
            is_open: Whether the conversation ends with a message of the assistant.
        """
        has_result = {turn for turn, n in zip(self._turn, self._answered, strict=True) if n}
        waits = self._n_turns - 1 if is_open and self._goes_on else -1
        missing = sum(
            not n and (turn in has_result or turn != waits)
            for turn, n in zip(self._turn, self._answered, strict=True)
        )
        if missing:
            self._tally.notes["a call without a result beside calls that have one"] += missing


def _raw_calls(fields: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield id and name of the calls of a message that was read, in order."""
    content = fields.get("content") or fields.get("parts")
    listed: Iterable[Any] = fields.get("tool_calls") or []
    inside = content if isinstance(content, list) else []
    calls = [call_in(part, kind) for part in inside if (kind := kind_of(part)) in CALLS]
    for call in (*calls, *listed, fields.get("function_call")):
        if isinstance(call, dict):
            called = call.get("function", call)
            yield first_of(call, ("id", "call_id")), called.get("name")
        elif call is not None:
            yield None, None
