"""Text in which a chat was rendered with role tags, and the turns that it came from."""

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from mypt.config import Markup
from mypt.data.conversations import Conversation, Message
from mypt.data.reading.formats.chats import ROW, frame, read_list
from mypt.data.reading.formats.message import ROLE_NAMES, fields_of, read_text
from mypt.data.reading.raw import RawFile, decode, lines
from mypt.data.reading.records import Dropped, Place, Tally
from mypt.errors import DataError
from mypt.text import shown


class RenderedForm(NamedTuple):
    """How one family of models writes its turns."""

    needs: tuple[str, ...]
    """Texts that all stand in what was rendered so."""
    opening: str
    """What stands before a turn, as a regular expression; what it captures names the role."""
    ends: tuple[str, ...] = ()
    """What stands behind a turn and is no part of it."""
    closed: bool = False
    """Whether every turn ends so, and what stands before that is its content byte for byte."""
    begins: str = ""
    """What begins another conversation in a text file, as a regular expression."""
    lacks: tuple[str, ...] = ()
    """Texts of which none stands in what was rendered so."""
    sign: str = ""
    """What stands in it besides, as a regular expression; empty: the opening of a turn."""


def _labels(*names: str, needs: str, around: str = "{}:", where: str = "^") -> RenderedForm:
    """Return the form of turns that begin with a label alone: who asks, who answers, others."""
    label = where + re.escape(around).replace(r"\{\}", "({})")
    sign = rf"{label.format(names[0])}[\s\S]*?{label.format(names[1])}"
    opening = label.format("|".join(names))
    return RenderedForm((needs,), opening, ("<|endoftext|>", "</s>"), sign=sign)


MARKUPS: Final[dict[Markup, RenderedForm]] = {
    "chatml": RenderedForm(
        ("<|im_start|>",), r"<\|im_start\|>(\w+)(?:\r?\n|<\|im_sep\|>)", ("<|im_end|>",), True,
        r"<\|im_start\|>system\b",
    ),
    "llama3": RenderedForm(
        ("<|start_header_id|>",), r"<\|start_header_id\|>(\w+)<\|end_header_id\|>(?:\n\n)?",
        ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"), True, r"<\|begin_of_text\|>",
    ),
    "gemma": RenderedForm(
        ("<start_of_turn>",), r"<start_of_turn>(\w+)\r?\n", ("<end_of_turn>",), True, "<bos>",
    ),
    "harmony": RenderedForm(
        ("<|start|>", "<|message|>"),
        r"<\|start\|>([\w.]+)([^<]*(?:<\|(?:channel|constrain)\|>[^<]*)*)<\|message\|>",
        ("<|end|>", "<|return|>", "<|call|>"), True, r"<\|start\|>system\b",
    ),
    "zephyr": RenderedForm(
        ("<|user|>", "<|assistant|>"), r"<\|(system|user|assistant)\|>\n?", ("</s>", "<|end|>"),
        True, r"<\|system\|>",
    ),
    "llama4": RenderedForm(
        ("<|header_start|>",), r"<\|header_start\|>(\w+)<\|header_end\|>(?:\n\n)?",
        ("<|eot|>", "<|eom|>", "<|end_of_text|>"), True, r"<\|begin_of_text\|>",
    ),
    "oasst": RenderedForm(
        ("<|prompter|>", "<|assistant|>"), r"<\|(system|prompter|assistant)\|>",
        ("<|endoftext|>", "</s>"), True,
    ),
    "command": RenderedForm(
        ("<|START_OF_TURN_TOKEN|>",), r"<\|START_OF_TURN_TOKEN\|><\|(\w+)_TOKEN\|>",
        ("<|END_OF_TURN_TOKEN|>",), True, "<BOS_TOKEN>",
    ),
    "deepseek": RenderedForm(
        ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"), "<\uff5c(User|Assistant)\uff5c>",
        ("<\uff5cend\u2581of\u2581sentence\uff5c>",),
        begins="<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    ),
    "llama2": RenderedForm(
        ("[INST]", "[/INST]"), r"(\[/?INST\]|<</?SYS>>)", ("</s>",), begins="<s>",
    ),
    "alpaca": RenderedForm(
        ("### Response:",), r"^### (Instruction|Input|Response):", ("<|endoftext|>", "</s>"),
        begins=r"^(?:Below is an instruction|### Instruction:)",
    ),
    "guanaco": RenderedForm(
        ("### Assistant:",), r"^### (Human|User|Assistant|System):", ("</s>",),
    ),
    "glaive": RenderedForm(
        ("USER:", "ASSISTANT:", "<|endoftext|>"),
        r"^(SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE):", ("<|endoftext|>",), begins="^SYSTEM:",
    ),
    "vicuna": RenderedForm(
        ("USER:", "ASSISTANT:"), r"(?:^|(?<=[\s>]))(SYSTEM|USER|ASSISTANT):", ("</s>",),
    ),
    "user": _labels("[Uu]ser", "[Aa]ssistant|[Bb]ot|AI", "[Ss]ystem", needs="ser:"),
    "human_ai": _labels("[Hh]uman", "AI|[Bb]ot|assistant", "[Ss]ystem", needs="uman:"),
    "angled": _labels("human", "bot", needs="<human>:", around="<{}>:", where=""),
    "bold": RenderedForm(
        ("**User", "\n**Assistant"), r"^\*\*(User|Assistant|System)(?::\*\*|\*\*:)",
    ),
    "bracketed": RenderedForm(
        ("[", "]"), r"\[((?i:SYSTEM|USER|ASSISTANT|BOT))\]:?",
        ("[/SYSTEM]", "[/USER]", "[/ASSISTANT]", "</s>"),
        sign=r"\[(?i:USER)\][\s\S]*?\[(?i:ASSISTANT|BOT)\]",
    ),
    "instruction": _labels("Instruction", "Response", "Input", needs="Instruction:"),
    "prompt": _labels("Prompt", "Response|Completion", needs="Prompt:"),
    "customer": _labels("Customer", "Agent", needs="Customer:"),
    "question": _labels("Question", "Answer", needs="Question:"),
    "qa": _labels("Q", "A", needs="Q:"),
    "human_lines": RenderedForm(
        ("Human:", "\nAssistant:"), r"^(Human|Assistant|System):", ("<|endoftext|>", "</s>"),
        lacks=("\n\nHuman:", "\n\nAssistant:"),
    ),
    "human": RenderedForm(("Human:",), r"(?:\A|\n\n)(Human|Assistant|System):"),
}  # fmt: skip
"""In the order in which they are tried."""
_ROLES: Final = {
    "[INST]": "user", "[/INST]": "assistant", "<<SYS>>": "system", "<</SYS>>": "user",
    "Instruction": "user", "Input": "user", "Response": "assistant", "SYSTEM": "system",
    "USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool", "Human": "user",
    "Assistant": "assistant", "System": "system", "ipython": "tool", "User": "user",
    "CHATBOT": "assistant", "AI": "assistant", "Question": "user", "Answer": "assistant",
    "Q": "user", "A": "assistant", "Prompt": "user", "Completion": "assistant",
    "Customer": "user", "Agent": "assistant",
}  # fmt: skip
_AROUND: Final = re.compile(
    r"<\|begin_of_text\|>|<\|endoftext\|>|</?s>|<bos>|<eos>|<BOS_TOKEN>"
    "|<\uff5cbegin\u2581of\u2581sentence\uff5c>"
)
_TO: Final = re.compile(r"\bto=([\w.]+)")
_HEADER: Final = re.compile(r"\bto=[\w.]+|<\|(?:channel|constrain)\|>\s*\w+|\b(?:json|code)\b")
_CALL: Final = re.compile(
    r'<functioncall>\s*\{\s*"name":\s*"([^"]+)"(?:\s*,\s*"arguments":\s*\'(.*)\')?\s*\}\s*',
    re.DOTALL,
)


def markup_of(text: str) -> Markup | None:
    """Return how a text was rendered; None if it holds no role tags."""
    marks = [mark for mark in "<[:*" if mark in text]
    for name, form in MARKUPS.items() if marks else ():
        if form.needs[0] not in text:  # so it is with nearly all
            continue
        if not all(sign in text for sign in form.needs) or any(sign in text for sign in form.lacks):
            continue
        if re.search(form.sign or form.opening, text, re.MULTILINE):
            return name
    return None


def head_of(raw: RawFile) -> str:
    """Return the text that a file begins with."""
    return next(raw.chunks(), b"").decode("utf-8", "ignore")


def refuse_rendered(text: str, place: Place) -> None:
    """See that a text may be taken for plain text.

    Raises:
        DataError: If it holds role tags, all of which would be learned, with both ways out.
    """
    name = markup_of(text)
    if name is not None:
        tag = _opening(MARKUPS[name]).search(text)
        raise DataError(
            f"{place}: text with role tags such as {shown(tag[0].strip() if tag else name)};"
            f" expected plain text; --format rendered --markup {name} reads its turns, --format"
            " text takes it as it is, every token learned"
        )


def read_turns_of(text: str, place: Place, tally: Tally, markup: Markup | None) -> list[Message]:
    """Return the messages of a rendered text.

    What stands before the first tag is the system's.

    Args:
        text: The whole conversation.
        place: The row, for errors.
        tally: Counts turns that are not ended.
        markup: How it was rendered; None finds out.

    Raises:
        DataError: If there are no such tags, or text stands between two turns.
        Dropped: If one of them says nothing.
    """
    turns = _turns(text, place, tally, markup)
    return read_list([(turn, place) for turn in turns], tally)


def _turns(text: str, place: Place, tally: Tally, markup: Markup | None) -> list[Any]:
    name = markup or markup_of(text)
    form = MARKUPS.get(name) if name else None
    tags = list(_opening(form).finditer(text)) if form else []
    if form is None or not tags:
        raise DataError(
            f"{place}: found {shown(text.strip())}, without tags of"
            f" {name or ', '.join(MARKUPS)}; expected a chat rendered so; name its --markup, or"
            " --format text where it is none"
        )
    before = _AROUND.sub("", text[: tags[0].start()]).strip()
    turns: list[Any] = [{"role": "system", "content": before}] if before else []
    for tag, following in zip(tags, [*tags[1:], None], strict=True):
        content = _content(text[tag.end() : following.start() if following else None], form)
        if content is None:
            raise DataError(
                f"{place}: text behind the end of the turn that {shown(tag[0].strip())} began;"
                f" expected the next tag of {name}; mend the text"
            )
        if form.closed and not content[1]:
            tally.notes[f"turn without its end tag {form.ends[0]}"] += 1
        if tag[1] == "Input" and turns:
            turns[-1]["content"] += f"\n\n{content[0]}"
        elif tag[1] != "[INST]" or content[0]:
            turn = _turn(_ROLES.get(tag[1], tag[1]), content[0])
            turn = _of_channel(tag, content[0]) if name == "harmony" else turn
            if turns and turns[-1].keys() == {"role", "reasoning_content"}:
                turn = turns.pop() | turn if turn["role"] == "assistant" else turn
            turns.append(turn)
    return turns


def _of_channel(tag: re.Match[str], content: str) -> dict[str, Any]:
    """Return the turn of a harmony header, which names a channel and who is called."""
    header = tag[2]
    role = tag[1] + _HEADER.sub("", header).rstrip()  # what else stands there is no role
    called, thinks = _TO.search(header), "<|channel|>analysis" in header
    if role not in ROLE_NAMES and (called or role.startswith("functions.")):
        return {"role": "tool", "name": role.removeprefix("functions."), "content": content}
    if role == "assistant" and called:
        call = {"name": called[1].removeprefix("functions."), "arguments": content}
        return {"role": role, "tool_calls": [call]}
    return {"role": role, "reasoning_content" if thinks else "content": content}


def _opening(form: RenderedForm) -> re.Pattern[str]:
    return re.compile(form.opening, re.MULTILINE)


def _content(stretch: str, form: RenderedForm) -> tuple[str, bool] | None:
    """Return what is said, and whether it was ended; None if more follows the end."""
    at, end = min(((stretch.find(e), e) for e in form.ends if e in stretch), default=(-1, ""))
    said, rest = (stretch[:at], stretch[at + len(end) :]) if end else (stretch, "")
    if _AROUND.sub("", rest).strip():
        return None
    return (said if form.closed else _AROUND.sub("", said).strip()), bool(end)


def _turn(role: str, content: str) -> dict[str, Any]:
    call = _CALL.search(content)
    if role != "assistant" or not call or call.end() < len(content):
        return {"role": role, "content": content}
    called = {"name": call[1], "arguments": call[2] or "{}"}
    before = content[: call.start()].strip()
    return {"role": role, "tool_calls": [called]} | ({"content": before} if before else {})


def read_rendered(
    row: Any, place: Place, tally: Tally, markup: Markup | None
) -> Iterator[Conversation]:
    """Yield the conversation of a row whose ``text`` is rendered.

    Raises:
        DataError: If there is no text, or it was not rendered so.
        Dropped: If one of its turns says nothing.
    """
    fields = fields_of(row, place)
    tally.check_fields(fields, ROW | {"text"}, place)
    messages = read_turns_of(read_text(fields, "text", place), place, tally, markup)
    yield Conversation(frame(messages, fields, place), place.origin)


def read_rendered_file(raw: RawFile, tally: Tally, markup: Markup | None) -> Iterator[Conversation]:
    """Yield the conversations of a text file that is rendered.

    One ends before what begins another in its markup, and, where every turn has an end tag, at an
    empty line behind one; else the file is one conversation.

    Raises:
        DataError: For text that was not rendered so, or a conversation beyond the limits.
    """
    form = MARKUPS.get(markup or markup_of(head_of(raw)) or "none")
    held: list[str] = []
    place, n_bytes, empty = raw.place(1), 0, True
    for line in lines(raw):
        text = decode(line.data, line.offset, raw.place(line.number)) + "\n"
        if held and form and _ends(held, text, form):
            yield from _conversation("".join(held), place, tally, markup)
            held, n_bytes = [], 0
        if not held:
            if not text.strip():
                continue
            place = raw.place(line.number)
        held.append(text)
        empty = False
        n_bytes += len(line.data)
        if n_bytes > raw.limits.row_bytes:
            raise DataError(
                f"{place}: a conversation of more than {raw.limits.row_bytes:,} bytes; write one a"
                ' row, {"text": ...}, in a .jsonl file'
            )
    if empty:
        raise DataError(f"{raw.name}: only white space; expected turns; leave the file out")
    if held:
        yield from _conversation("".join(held), place, tally, markup)


def _ends(held: list[str], line: str, form: RenderedForm) -> bool:
    """Whether the lines held are a whole conversation before this one."""
    if line.strip():
        begins = bool(form.begins) and re.match(form.begins, line) is not None
        return begins and any(map(_opening(form).search, held))
    return form.closed and held[-1].rstrip().endswith(form.ends)


def _conversation(
    text: str, place: Place, tally: Tally, markup: Markup | None
) -> Iterator[Conversation]:
    try:
        messages = read_turns_of(text, place, tally, markup)
    except Dropped as dropped:
        tally.dropped[str(dropped)] += 1
        return
    yield Conversation(frame(messages, {}, place), place.origin)
