"""A conversation as a base's template writes it, and whose words stand where, proved each time.

The places of the texts come from :mod:`mypt.data.rendering.marks`; what the model writes begins
where the header of inference ends, which must be a prefix of what training reads.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from mypt.data.conversations import WRITTEN_AS, Message, Train
from mypt.data.rendering.base_template import BaseTemplate
from mypt.data.rendering.marks import (
    Leaf,
    Region,
    Said,
    Tools,
    Unproved,
    find_regions,
    marked_messages,
    spelled_json,
    widened,
)
from mypt.data.spans import KIND, ROLE
from mypt.errors import DataError

_OPENED: Final = re.compile(r"<(\w+)>(\s*)\Z")
"""A tag that the header of inference leaves open."""


class Passage(NamedTuple):
    """A stretch of what was written; pieces tile it."""

    stop: int
    """Characters before its end."""
    role: int
    """Index into :data:`mypt.data.spans.ROLES`."""
    kind: int
    """Index into :data:`mypt.data.spans.KINDS`."""
    message: int
    train: Train
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
    plain, marked, leaves, tools = marked_messages(turns)
    _check_calls(plain, tools, controls)
    text = _write(template, plain, tools, prompt=True)
    regions = find_regions(_write(template, marked, tools, prompt=True), text, leaves)
    pieces, at = list[Passage](), 0
    header = (ROLE["assistant"], KIND["header"], len(turns), None, False)
    for region in regions:
        role = ROLE[turns[region.message].role]
        own = (role, KIND["content"], region.message, None, True)
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
    plain, marked, leaves, tools = marked_messages(turns)
    _check_calls(plain, tools, controls)
    text = _write(template, plain, tools)
    if tools and text == _write(template, plain, None):
        raise Unproved("the template has no form for tools")
    regions = find_regions(_write(template, marked, tools), text, leaves)
    thought = [leaf for leaf in leaves if leaf[:2] == (len(turns) - 1, "reasoning")]
    if template.each_turn and thought:
        fed = _write(template, plain[:-1], tools, prompt=True)
        text, regions = _with_thought(text, regions, thought[0], fed)
    stripped = _check_all_stand(turns, leaves, regions)
    begins = _begins(template, turns, plain, tools, text, regions)
    regions = widened(regions, leaves, text, begins)
    stretches = {
        index: _stretch(text, index, begins, regions, template.stops, _calls(turns[index]))
        for index in begins
    }
    _check_generation(template, plain, tools, text, list(stretches.values()))
    pieces = _pieces(turns, text, regions, stretches, controls)
    if tools:
        pieces = _with_tools(pieces)
    return Written(text, tiled(pieces), list(begins.values()), stripped)


def _check_calls(messages: Said, tools: Tools, controls: re.Pattern[str]) -> None:
    """Refuse a token in a tool or its call, round whose words there are no marks."""
    for message in messages:
        calls = message.get("tool_calls") if message else None
        if calls and controls.search(spelled_json(calls)):
            raise Unproved("a tool call spells a token of the base")
    if tools and controls.search(spelled_json(tools)):
        raise Unproved("a tool's schema spells a token of the base")


def _with_tools(pieces: list[Passage]) -> list[Passage]:
    """Mark what the template writes up to the first words of another than the system.

    The tools stand there, or in front of the words of the first user.
    """
    own = (n for n, piece in enumerate(pieces) if piece.own and piece.role != ROLE["system"])
    after = next(own, len(pieces))
    system, kind = ROLE["system"], KIND["tool_call"]
    return [
        piece._replace(role=system, kind=kind, message=0, train=0)
        if n <= after and piece.kind == KIND["header"]
        else piece
        for n, piece in enumerate(pieces)
    ]


def _write(template: BaseTemplate, messages: Said, tools: Tools, prompt: bool = False) -> str:
    said = [message for message in messages if message is not None]
    try:
        return template.write(said, tools=tools, prompt=prompt)
    except DataError as error:
        raise Unproved(str(error)) from None


def _with_thought(
    text: str, regions: list[Region], thought: Leaf, fed: str
) -> tuple[str, list[Region]]:
    """Write the last turn as inference sees it, where the template leaves its reasoning out.

    It can be said of a template that feeds a tag and white space behind what stands before the
    turn's text: what is fed, the reasoning, the tag's end in the white space that its like has
    (DeepSeek-R1 feeds ``<think>`` and a line's end, and writes one before ``</think>`` and two
    after it), then the text and what ends it, as the template has them.
    """
    opened, answer = _OPENED.search(fed), regions[-1]
    if opened is None or answer[2:] != (thought[0], "text"):
        return text, regions
    before, said, white = fed[: opened.start()], thought[2].strip(), opened[2]
    if not text.startswith(before) or text[len(before) : answer.start].strip():
        return text, regions
    close = f"{white}</{opened[1]}>{white * 2}"
    written = fed + said + close
    moved = answer._replace(start=len(written), stop=len(written) + answer.stop - answer.start)
    stands = Region(len(fed), len(fed) + len(said), *thought[:2])
    return written + text[answer.start :], [*regions[:-1], stands, moved]


def _check_all_stand(
    turns: Sequence[Message], leaves: Sequence[Leaf], regions: Sequence[Region]
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
    plain: Said,
    tools: Tools,
    text: str,
    regions: Sequence[Region],
) -> dict[int, int]:
    """Return where the model begins to write in each of its turns.

    Raises:
        Unproved: If what inference feeds is no prefix of what training reads.
    """
    begins: dict[int, int] = {}
    answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    for index in answers[-1:] if template.each_turn else answers:
        fed = _write(template, plain[:index], tools, prompt=True)
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
    return any(WRITTEN_AS[part.kind] == "tool_call" for part in turn.parts)


def mixes_calls(turns: Sequence[Message]) -> bool:
    """Return whether a turn has calls that failed beside others: they are one stretch here."""
    return any({"tool_call", "failed_call"} <= {part.kind for part in turn.parts} for turn in turns)


def _stretch(
    text: str,
    index: int,
    begins: dict[int, int],
    regions: Sequence[Region],
    stops: Sequence[str],
    calls: bool,
) -> tuple[int, int, int]:
    """Return where a turn's words begin, where they end, and where the token that ends it does.

    A token at which inference would not stop is none that ends it.
    """
    begin = begins[index]
    last = max((one.stop for one in regions if one.message == index), default=begin)
    bound = min(
        [one.start for one in regions if one.message > index]
        + [at for other, at in begins.items() if other > index],
        default=len(text),
    )
    found = [(at, at + len(stop)) for stop in stops if (at := text.find(stop, last, bound)) >= 0]
    if found:
        return begin, *min(found)
    if calls:
        raise Unproved("no token that inference stops at ends a turn that calls a tool")
    return begin, last, last


def _pieces(
    turns: Sequence[Message],
    text: str,
    regions: Sequence[Region],
    stretches: dict[int, tuple[int, int, int]],
    controls: re.Pattern[str],
) -> list[Passage]:
    pieces: list[Passage] = []
    done = 0
    for index, turn in enumerate(turns):
        trains = _trains(turn)
        own = [one for one in regions if one.message == index]

        def add(stop: int, kind: str, is_own: bool = False) -> None:
            said = "tool_call" if kind == "failed_call" else kind
            train = trains.get(said, trains["end"])  # noqa: B023
            where = (ROLE[turns[index].role], KIND[kind], index, train, is_own)  # noqa: B023
            pieces.append(Passage(stop, *where))

        if index not in stretches:
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
        failed = any(part.kind == "failed_call" for part in turn.parts)
        add(words, "failed_call" if failed else "tool_call" if _calls(turn) else "end")
        add(end, "end")
        done = max(done, end)
    if not pieces:
        raise Unproved("a conversation that says nothing")
    last = pieces[-1]
    return [*pieces, Passage(max(len(text), done), last.role, KIND["header"], *last[3:5], False)]


def _trains(turn: Message) -> dict[str, Train]:
    """Return what the row says about the mask of each kind of passage, the turn's own as "end"."""
    trains: dict[str, Train] = {"end": turn.train}
    for part in turn.parts:
        written = WRITTEN_AS[part.kind]
        kind = "content" if written == "text" else written
        said = trains["end"] if part.train is None else part.train
        if trains.setdefault(kind, said) != said:
            raise Unproved(f"parts of kind {written} in one turn, some to be learned and some not")
    return trains


def tiled(pieces: Sequence[Passage]) -> list[Passage]:
    """Leave out pieces that hold nothing."""
    kept: list[Passage] = []
    for piece in pieces:
        if piece.stop > (kept[-1].stop if kept else 0):
            kept.append(piece)
    return kept


def _check_generation(
    template: BaseTemplate,
    plain: Said,
    tools: Tools,
    text: str,
    stretches: Sequence[tuple[int, int, int]],
) -> None:
    """Compare with what a template's author marks as the model's, if so; white space may follow."""
    from mypt.data.rendering.sandbox import CLOSES, OPENS, generates  # jinja2 with it

    if not generates(template.source):
        return
    said = [message for message in plain if message is not None]
    shown = template.write(said, tools=tools, shows=True)
    marked: list[str] = []
    at = 0
    for number, part in enumerate(re.split(f"[{OPENS}{CLOSES}]", shown)):
        if number % 2:
            marked.append(f"{at}:{part.rstrip()}")
        at += len(part)
    ours = [f"{begin}:{text[begin:end].rstrip()}" for begin, _, end in stretches]
    if marked[-len(ours) :] != ours or (len(marked) > len(ours) and not template.each_turn):
        raise Unproved("its {% generation %} marks other text than inference leaves to the model")
