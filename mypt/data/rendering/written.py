"""A conversation as a base's template writes it, and whose words stand where, proved each time.

Each text gets two private-use characters round it, inside its white space; they are taken out
again after rendering. Where the rest is what the template makes of the plain conversation, and
each text stands there once, the places are proved; otherwise the template rewrites the text, and
the row is refused. What the model writes begins where the header of inference ends.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from mypt.data.conversations import Message
from mypt.data.rendering.base_template import BaseTemplate
from mypt.data.rendering.sandbox import CLOSES, OPENS, generates
from mypt.data.spans import BY_POLICY, KIND, ROLE
from mypt.errors import DataError

_FIRST: Final = 0x100000
_MARK: Final = re.compile("[\U00100000-\U0010fffb]")
_PRIVATE: Final = re.compile("[\U00100000-\U0010ffff]")
_MOST: Final = (0x10FFFB - _FIRST) // 2
_ORDER: Final = {"reasoning": 0, "text": 1, "tool_call": 2}


_Leaf = tuple[int, str, str]
"""A message's index, the kind of one of its texts, and that text."""


class Unproved(Exception):  # noqa: N818 - no error: whoever asked decides what becomes of the row
    """The template cannot be proved for a conversation; its text is the reason."""


class Passage(NamedTuple):
    """A stretch of what was written; pieces tile it."""

    stop: int
    """Characters before its end."""
    role: int
    """Index into :data:`mypt.data.spans.ROLES`."""
    kind: int
    """Index into :data:`mypt.data.spans.KINDS`."""
    message: int
    train: int
    own: bool
    """Whether an author's words stand here, in which nothing is a special token."""


class Written(NamedTuple):
    """A conversation in the template's form."""

    text: str
    pieces: list[Passage]
    begins: list[int]
    """Where in the text the model begins to write, once for each of its turns."""
    stripped: bool
    """Whether the template left out reasoning of earlier turns."""


class _Region(NamedTuple):
    start: int
    stop: int
    message: int
    kind: str


def write_prompt(
    template: BaseTemplate, turns: Sequence[Message], controls: re.Pattern[str]
) -> Written:
    """Return what inference feeds: the conversation and the header of the answer to it.

    Args:
        template: The base's own.
        turns: The conversation.
        controls: What finds the tokens that only the template may write.

    Raises:
        Unproved: If the template cannot be proved for it.
    """
    plain, marked, leaves = _messages(turns)
    _check_calls(plain, controls)
    text = _write(template, plain, prompt=True)
    regions = _regions(_write(template, marked, prompt=True), text, leaves)
    pieces, at = list[Passage](), 0
    header = (ROLE["assistant"], KIND["header"], len(turns), BY_POLICY, False)
    for region in regions:
        role = ROLE[turns[region.message].role]
        own = (role, KIND["content"], region.message, BY_POLICY, True)
        pieces += [Passage(region.start, *header), Passage(region.stop, *own)]
        at = region.stop
    return Written(text, tiled([*pieces, Passage(max(at, len(text)), *header)]), [], False)


def write_turns(
    template: BaseTemplate, turns: Sequence[Message], controls: re.Pattern[str]
) -> Written:
    """Return a conversation as training reads it.

    Args:
        template: The base's own.
        turns: The conversation.
        controls: What finds the tokens that only the template may write.

    Raises:
        Unproved: If the template cannot be proved for it.
    """
    plain, marked, leaves = _messages(turns)
    _check_calls(plain, controls)
    text = _write(template, plain)
    regions = _regions(_write(template, marked), text, leaves)
    stripped = _check_all_stand(turns, leaves, regions)
    begins = _begins(template, turns, plain, text, regions)
    regions = _widened(regions, leaves, text, begins)
    stretches = [
        _stretch(text, index, begins, regions, template.stop, controls, _calls(turn))
        for index, turn in enumerate(turns)
        if turn.role == "assistant"
    ]
    if generates(template.source):
        _check_generation(template, plain, text, stretches)
    pieces = _pieces(turns, text, regions, dict(zip(begins, stretches, strict=True)), controls)
    return Written(text, tiled(pieces), list(begins.values()), stripped)


def _check_calls(messages: Sequence[dict[str, Any]], controls: re.Pattern[str]) -> None:
    """Refuse a token in a tool call, round whose words there are no marks."""
    for message in messages:
        if "tool_calls" in message and controls.search(_spelled(message["tool_calls"])):
            raise Unproved("a tool call spells a token of the base")


def _write(template: BaseTemplate, messages: Sequence[dict[str, Any]], prompt: bool = False) -> str:
    try:
        return template.write(messages, prompt=prompt)
    except DataError as error:
        raise Unproved(str(error)) from None


def _messages(
    turns: Sequence[Message],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[_Leaf]]:
    """Return messages of ``transformers``, the same with marks, and whose each pair of marks is."""
    plain: list[dict[str, Any]] = []
    marked: list[dict[str, Any]] = []
    leaves: list[_Leaf] = []
    for index, turn in enumerate(turns):
        kinds = [part.kind for part in turn.parts]
        if sorted(kinds, key=_ORDER.__getitem__) != kinds:
            raise Unproved("a turn whose parts do not come as reasoning, text, tool calls")
        if any(_PRIVATE.search(part.text) for part in turn.parts):
            raise Unproved("a text with private characters from U+100000 on")
        calls = [
            _call(part.text, index, n)
            for n, part in enumerate(turn.parts)
            if part.kind == "tool_call"
        ]
        one: dict[str, Any] = {"role": turn.role}
        other: dict[str, Any] = {"role": turn.role}
        for kind, keys in (
            ("reasoning", ("reasoning_content", "thinking")),
            ("text", ("content",)),
        ):
            said = "".join(part.text for part in turn.parts if part.kind == kind)
            if said.strip():
                leaves.append((index, kind, said))
            elif kind == "reasoning":
                continue
            for key in keys:
                one[key], other[key] = said, _wrapped(said, len(leaves) - 1)
        if calls:
            one["tool_calls"] = other["tool_calls"] = calls
        plain.append(one)
        marked.append(other)
    if len(leaves) > _MOST:
        raise Unproved(f"more than {_MOST} texts")
    return plain, marked, leaves


def _call(text: str, message: int, number: int) -> dict[str, Any]:
    """Return a tool call as ``transformers`` has it; nine letters are what Mistral wants as id."""
    try:
        called = json.loads(text)
        name, arguments = called["name"], called["arguments"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Unproved("a tool call that is no JSON with name and arguments") from None
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": f"call{message:03d}{number:02d}"[:9], "function": function}


def _spelled(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _wrapped(text: str, leaf: int) -> str:
    core = text.strip()
    if not core:
        return text
    at = text.index(core)
    opens, closes = chr(_FIRST + 2 * leaf), chr(_FIRST + 2 * leaf + 1)
    return f"{text[:at]}{opens}{core}{closes}{text[at + len(core) :]}"


def _regions(marked: str, text: str, leaves: Sequence[_Leaf]) -> list[_Region]:
    """Take the marks out again and return where they stood, in order."""
    found: list[_Region] = []
    opened: tuple[int, int] | None = None
    for taken, mark in enumerate(_MARK.finditer(marked)):
        leaf, closes = divmod(ord(mark.group()) - _FIRST, 2)
        at = mark.start() - taken
        if closes and opened is not None and opened[0] == leaf:
            found.append(_Region(opened[1], at, *leaves[leaf][:2]))
            opened = None
        elif closes or opened is not None or leaf >= len(leaves):
            raise Unproved("the template rewrites what a message says")
        else:
            opened = leaf, at
    if opened is not None or _MARK.sub("", marked) != text:
        raise Unproved("the template rewrites what a message says")
    said = {leaf[:2]: leaf[2].strip() for leaf in leaves}
    for one in found:
        core = said[one.message, one.kind]
        if text[one.start : one.stop] not in (core, _spelled(core)[1:-1]):
            raise Unproved("the template rewrites what a message says")
    if len({(one.message, one.kind) for one in found}) < len(found):
        raise Unproved("the template repeats a message")
    if [one.message for one in found] != sorted(one.message for one in found):
        raise Unproved("the template writes messages in another order")
    return found


def _widened(
    regions: Sequence[_Region], leaves: Sequence[_Leaf], text: str, begins: dict[int, int]
) -> list[_Region]:
    """Give each text the white space round it back, where the template left it there."""
    said = {leaf[:2]: leaf[2] for leaf in leaves}
    wide: list[_Region] = []
    for one, after in zip(regions, [*regions[1:], None], strict=True):
        own = said[one.message, one.kind]
        lead, rest = own[: len(own) - len(own.lstrip())], own[len(own.rstrip()) :]
        start, stop = one.start - len(lead), one.stop + len(rest)
        least = max(begins.get(one.message, 0), wide[-1].stop if wide else 0)
        most = after.start if after else len(text)
        wide.append(
            one._replace(
                start=start if start >= least and text[start : one.start] == lead else one.start,
                stop=stop if stop <= most and text[one.stop : stop] == rest else one.stop,
            )
        )
    return wide


def _check_all_stand(
    turns: Sequence[Message], leaves: Sequence[_Leaf], regions: Sequence[_Region]
) -> bool:
    """Refuse a text that was left out; say whether only earlier reasoning was."""
    standing = {(one.message, one.kind) for one in regions}
    missing = [leaf[:2] for leaf in leaves if leaf[:2] not in standing]
    asked = max((n for n, turn in enumerate(turns) if turn.role == "user"), default=-1)
    for message, kind in missing:
        if kind != "reasoning":
            raise Unproved(f"the template leaves out a message of the {turns[message].role}")
        if message > asked:
            raise Unproved("the template leaves out the reasoning of the last turn")
    return bool(missing)


def _begins(
    template: BaseTemplate,
    turns: Sequence[Message],
    plain: Sequence[dict[str, Any]],
    text: str,
    regions: Sequence[_Region],
) -> dict[int, int]:
    """Return where the model begins to write in each of its turns.

    Raises:
        Unproved: If what inference feeds is no prefix of what training reads.
    """
    begins: dict[int, int] = {}
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        fed = _write(template, plain[:index], prompt=True)
        before = max((one.stop for one in regions if one.message < index), default=0)
        own = min((one.start for one in regions if one.message >= index), default=len(text))
        if not text.startswith(fed) or not before <= len(fed) <= own:
            raise Unproved(
                "what inference feeds is no prefix of what training reads"
                f"{template.difference and f', {template.difference}'}"
            )
        begins[index] = len(fed)
    return begins


def _calls(turn: Message) -> bool:
    return any(part.kind == "tool_call" for part in turn.parts)


def _stretch(
    text: str,
    index: int,
    begins: dict[int, int],
    regions: Sequence[_Region],
    stop: str,
    controls: re.Pattern[str],
    calls: bool,
) -> tuple[int, int, int]:
    """Return where a turn's words begin, where they end, and where the token that ends it does.

    That is the template's stop; where it writes another after earlier answers, that one.
    """
    begin = begins[index]
    last = max((one.stop for one in regions if one.message == index), default=begin)
    bound = min(
        [one.start for one in regions if one.message > index]
        + [at for other, at in begins.items() if other > index],
        default=len(text),
    )
    at = text.find(stop, last, bound)
    if at >= 0:
        return begin, at, at + len(stop)
    if calls:
        raise Unproved("no token that inference stops at ends a turn that calls a tool")
    other = controls.search(text, last, bound)
    return (begin, *other.span()) if other else (begin, last, last)


def _pieces(
    turns: Sequence[Message],
    text: str,
    regions: Sequence[_Region],
    stretches: dict[int, tuple[int, int, int]],
    controls: re.Pattern[str],
) -> list[Passage]:
    pieces: list[Passage] = []
    done = 0
    for index, turn in enumerate(turns):
        said = BY_POLICY if turn.train is None else int(turn.train)
        own = [one for one in regions if one.message == index]

        def add(stop: int, kind: str, is_own: bool = False) -> None:
            where = (ROLE[turns[index].role], KIND[kind], index, said, is_own)  # noqa: B023
            pieces.append(Passage(stop, *where))

        if turn.role != "assistant":
            for one in own:
                add(one.start, "header")
                add(one.stop, "content", True)
                done = one.stop
            continue
        begin, words, end = stretches[index]
        add(begin, "header")
        at = begin
        for one in own:
            before = text[at : one.start]
            marked = one.kind == "reasoning" or at > begin or controls.search(before)
            add(one.start, "reasoning" if marked else "content")
            add(one.stop, "reasoning" if one.kind == "reasoning" else "content", True)
            at = one.stop
        add(words, "tool_call" if _calls(turn) else "end")
        add(end, "end")
        done = max(done, end)
    last = pieces[-1]
    return [*pieces, Passage(max(len(text), done), last.role, KIND["header"], *last[3:5], False)]


def tiled(pieces: Sequence[Passage]) -> list[Passage]:
    """Leave out pieces that hold nothing."""
    kept: list[Passage] = []
    for piece in pieces:
        if piece.stop > (kept[-1].stop if kept else 0):
            kept.append(piece)
    return kept


def _check_generation(
    template: BaseTemplate,
    plain: Sequence[dict[str, Any]],
    text: str,
    stretches: Sequence[tuple[int, int, int]],
) -> None:
    """Compare with what the template's author marks as the model's; white space may follow."""
    shown = template.write(plain, shows=True)
    marked: list[str] = []
    at = 0
    for number, part in enumerate(re.split(f"[{OPENS}{CLOSES}]", shown)):
        if number % 2:
            marked.append(f"{at}:{part.rstrip()}")
        at += len(part)
    ours = [f"{begin}:{text[begin:end].rstrip()}" for begin, _, end in stretches]
    if marked != ours:
        raise Unproved("its {% generation %} marks other text than inference leaves to the model")
