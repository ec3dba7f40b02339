"""The kinds of rows and files that are fuzzed for silence, each with what it is made from.

Letters that stand alone become words that can be told from all others.
"""

import json
from pathlib import Path
from typing import Any

from tests.fuzz.silence import Kind
from tests.mypt.data.reading.formats.test_markups import RENDERED
from tests.mypt.data.reading.formats.test_shapes import CASES

_CALL = {"id": "call1", "type": "function", "function": {"name": "f", "arguments": {"x": "a"}}}
_RESULT = {"type": "tool_result", "tool_use_id": "call1", "content": "c"}
_PARTED = _RESULT | {"content": [{"type": "text", "text": "c"}]}
_USE = {"type": "tool_use", "id": "call1", "name": "f", "input": {"x": "b"}}
OPENAI = (
    {"messages": [
        {"role": "system", "content": "s"}, {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "c", "reasoning_content": "d", "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "call1", "content": "e"},
        {"role": "assistant", "content": [{"type": "text", "text": "f"}], "weight": 1}],
     "tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": "a"}}}]},
    {"conversations": [
        {"from": "human", "value": "a"}, {"from": "gpt", "value": "<think>b</think>c"}],
     "system": "d"},
)  # fmt: skip
ANTHROPIC = (
    {"system": [{"type": "text", "text": "s"}], "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "b"}, {"type": "text", "text": "c"}, _USE]},
        {"role": "user", "content": [_RESULT, {"type": "text", "text": "d"}]},
        {"role": "assistant", "content": "e"}],
     "tools": [{"name": "f", "input_schema": {"x": "a"}}]},
)  # fmt: skip
GEMINI = (
    {"systemInstruction": {"parts": [{"text": "s"}]}, "contents": [
        {"role": "user", "parts": [{"text": "a"}]},
        {"role": "model", "parts": [
            {"text": "b", "thought": True}, {"text": "c"},
            {"functionCall": {"name": "f", "args": {"x": "a"}}},
            {"executableCode": {"language": "PYTHON", "code": "d"}}]},
        {"role": "user", "parts": [
            {"functionResponse": {"name": "f", "response": {"x": "a"}}},
            {"codeExecutionResult": {"outcome": "OK", "output": "e"}}]},
        {"role": "model", "parts": [{"text": "f"}]}],
     "tools": [{"functionDeclarations": [{"name": "f"}]}]},
)  # fmt: skip
CLAUDE = (
    {"uuid": "talk", "name": "t", "chat_messages": [
        {"uuid": "one", "sender": "human", "text": "a", "content": [{"type": "text", "text": "b"}]},
        {"uuid": "two", "sender": "assistant", "text": "", "content": [
            {"type": "thinking", "thinking": "c"}, _USE, _PARTED, {"type": "text", "text": "d"}]}]},
    {"uuid": "talk", "name": "", "chat_messages": [
        {"uuid": "one", "sender": "human", "text": "a", "parent_message_uuid": "none"},
        {"uuid": "two", "sender": "assistant", "text": "b", "parent_message_uuid": "one"},
        {"uuid": "three", "sender": "assistant", "text": "c", "parent_message_uuid": "one"}]},
)  # fmt: skip


def _node(name: str, parent: str | None, role: str, content: dict[str, Any], **more: Any) -> Any:
    message = {
        "id": name, "author": {"role": role}, "content": content, "weight": 1.0,
        "status": "finished_successfully", "recipient": "all", "metadata": {},
    } | more  # fmt: skip
    return {"id": name, "parent": parent, "children": [], "message": message}


def _text(*parts: Any) -> dict[str, Any]:
    return {"content_type": "multimodal_text", "parts": list(parts)}


_IMAGE = {"content_type": "image_asset_pointer", "asset_pointer": "i"}
_SPOKEN = {"content_type": "audio_transcription", "text": "b"}
CHATGPT = (
    {"title": "t", "current_node": "end", "mapping": {
        "ask": _node("ask", None, "user", _text("a", _SPOKEN)),
        "call": _node("call", "ask", "assistant", {"content_type": "code", "text": "c"},
                     recipient="python"),
        "out": _node("out", "call", "tool", {"content_type": "execution_output", "text": "d"}),
        "end": _node("end", "out", "assistant", _text("g"))}},
    {"title": "t", "current_node": "last", "mapping": {
        "root": {"id": "root", "parent": None, "message": None},
        "hid": _node("hid", "root", "system", _text("h"),
                     metadata={"is_visually_hidden_from_conversation": True}),
        "ask": _node("ask", "hid", "user", _text("a", _SPOKEN, _IMAGE)),
        "old": _node("old", "ask", "assistant", _text("o")),
        "run": _node("run", "ask", "assistant", {"content_type": "code", "text": "c"},
                     recipient="python"),
        "out": _node("out", "run", "tool", {"content_type": "execution_output", "text": "d"}),
        "think": _node("think", "out", "assistant", {
            "content_type": "thoughts", "thoughts": [{"summary": "e", "content": "f"}]}),
        "last": _node("last", "think", "assistant", _text("g"))}},
)  # fmt: skip
FLAT = (
    [{"conversation_id": "one", "role": "user", "content": "a", "turn": 1},
     {"conversation_id": "one", "role": "assistant", "content": "b", "turn": 2}],
    [{"conversation_id": "two", "role": "assistant", "content": "d", "turn": 2},
     {"conversation_id": "two", "role": "user", "content": "c", "turn": 1}],
)  # fmt: skip
OASST = (
    [{"message_id": "one", "parent_id": None, "message_tree_id": "one", "role": "prompter",
      "text": "a"},
     {"message_id": "two", "parent_id": "one", "message_tree_id": "one", "role": "assistant",
      "text": "b"},
     {"message_id": "three", "parent_id": "one", "message_tree_id": "one", "role": "assistant",
      "text": "c"}],
)  # fmt: skip
TREE = (
    {"message_tree_id": "one", "prompt": {"role": "prompter", "text": "a", "replies": [
        {"role": "assistant", "text": "b", "replies": []},
        {"role": "assistant", "text": "c", "replies": [
            {"role": "prompter", "text": "d", "replies": [
                {"role": "assistant", "text": "e", "replies": []}]}]}]}},
)  # fmt: skip
DISCORD = (
    {"guild": {"name": "g"}, "channel": {"name": "h"}, "messages": [
        {"id": "4", "type": "Default", "content": "a", "author": {"id": "9", "name": "ann"}},
        {"id": "5", "type": "Reply", "content": "b", "author": {"id": "8", "name": "bob"}}]},
    {"guild": {"name": "g"}, "channel": {"name": "h"}, "messages": [
        {"id": "3", "type": "GuildMemberJoin", "content": "j", "author": {"id": "9"}},
        {"id": "4", "type": "Default", "content": "a", "author": {"id": "9", "name": "ann"}},
        {"id": "5", "type": "Reply", "content": "b", "author": {"id": "8", "name": "bob"}},
        {"id": "6", "type": "Default", "content": "c", "author": {"id": "8", "name": "bob"}}]},
)  # fmt: skip
TELEGRAM = (
    {"chats": {"list": [{"name": "t", "type": "personal_chat", "id": 1, "messages": [
        {"id": 2, "type": "message", "from": "ann", "from_id": "user1", "text": "a"},
        {"id": 3, "type": "message", "from": "bob", "from_id": "user2", "text": "b"}]}]}},
    {"name": "t", "type": "personal_chat", "id": 1, "messages": [
        {"id": 1, "type": "service", "action": "create", "actor": "ann", "text": ""},
        {"id": 2, "type": "message", "from": "ann", "from_id": "user1", "text": "a"},
        {"id": 3, "type": "message", "from": "bob", "from_id": "user2", "text": [
            "b ", {"type": "bold", "text": "c"}]},
        {"id": 4, "type": "message", "from": "bob", "from_id": "user2", "text": "d"}]},
)  # fmt: skip
SLACK = (
    [{"type": "message", "user": "U1", "text": "a", "ts": "1.0"},
     {"type": "message", "user": "U2", "text": "b", "ts": "2.0"}],
    [{"type": "message", "user": "U1", "text": "a", "ts": "1.0"},
     {"type": "message", "user": "U2", "text": "b <@U1> c", "ts": "2.0"},
     {"type": "message", "user": "U2", "text": "j", "ts": "3.0", "subtype": "channel_join"},
     {"type": "message", "user": "U2", "text": "d", "ts": "4.0", "thread_ts": "1.0"}],
)  # fmt: skip
WHATSAPP = (
    "01/03/2024, 19:00 - Ann: a\n01/03/2024, 19:02 - Bob: b\nc\n",
    "01/03/2024, 18:59 - Messages and calls are encrypted.\n01/03/2024, 19:00 - Ann: a\n"
    "01/03/2024, 19:02 - Bob: b\nc\n01/03/2024, 19:03 - Ann: <Media omitted>\n"
    "01/03/2024, 19:04 - Bob: d\n",
)
TAGGED = (
    "<User>a</User><Assistant>b\n\nc</Assistant>\n\n",
    "<User>d</User>\n<Assistant>e</Assistant>\n\n",
)
PAIRS = ({"prompt": "a", "completion": "b"}, {"question": "c", "answer": "d"})
_NAMED = ("", r" - (?:(?!: ).)*w\d+z")
_NO_TEXT = ("^part .* which is no text, left out", r"\.(parts|content)\.")
_REPLIES = (("^reply left out", r"\.replies\.|^\d+\.\d+\."),)
_SERVICE = (("^(service|deleted) message .*left out|^media or notice", ""),)


def _one(path: Path, rows: list[Any]) -> Path:
    """Write the first export as the whole file."""
    path.write_text(json.dumps(rows[0] if rows else {}))
    return path


def _flat(path: Path, rows: list[Any]) -> Path:
    """Write the messages of all conversations, one a line."""
    lists = [one if isinstance(one, list) else [one] for one in rows]
    path.write_text("".join(f"{json.dumps(one)}\n" for group in lists for one in group))
    return path


def _days(path: Path, rows: list[Any]) -> Path:
    """Write a channel of Slack's, a day a file."""
    channel = path / "garden"
    channel.mkdir(parents=True, exist_ok=True)
    for day in channel.iterdir():
        day.unlink()
    for number, day in enumerate(rows):
        (channel / f"2024-03-0{number + 1}.json").write_text(json.dumps(day))
    return path


KINDS: dict[str, Kind] = {
    **{name: Kind(tuple(rows)) for name, (rows, _) in CASES.items()},
    **{
        f"rendered {markup}": Kind(
            ({"text": text},), how=({"format": "rendered"}, {"markup": markup}, {})
        )
        for markup, (text, _) in RENDERED.items()
    },
    **{
        f"file {markup}": Kind(
            (text,), "a.txt", how=({"format": "rendered"}, {"markup": markup}, {})
        )
        for markup, (text, _) in RENDERED.items()
    },
    "openai": Kind(OPENAI, explained=(("", r"\.tool_calls\.\d+\.type\b"),)),
    "anthropic": Kind(ANTHROPIC),
    "gemini": Kind(GEMINI, quiet=frozenset({"name", "role", "outcome"}), explained=(_NO_TEXT,)),
    "claude": Kind(
        CLAUDE,
        "a.json",
        quiet=frozenset({"name", "uuid", "tool_use_id", "parent_message_uuid"}),
        explained=(
            ("^message of another branch left out", r"\.chat_messages\."),
            ("", r"\.content\.\d+\.content\.\d+\.type\b"),
            _NO_TEXT,
        ),
    ),
    "chatgpt": Kind(
        CHATGPT,
        "a.json",
        quiet=frozenset({"title", "metadata", "status", "children", "recipient"}),
        explained=(
            ("^message of another branch left out", r"\.mapping\."),
            ("^hidden message left out", r"\.mapping\.hid\."),
            ("^empty message left out", r"\.message\.weight\b"),
            _NO_TEXT,
        ),
    ),
    "tree": Kind(TREE, explained=_REPLIES),
    "flat": Kind(FLAT, write=_flat),
    "flat oasst": Kind(OASST, explained=_REPLIES, write=_flat),
    "discord": Kind(
        DISCORD, "a.json", ({"assistant": "bob"},), frozenset({"guild", "channel"}),
        (("", r"^\d+(\.\d+)?\.(name|type)\b"), *_SERVICE),
        _one, 1,
    ),
    "telegram": Kind(
        TELEGRAM, "a.json", ({"assistant": "bob"},), frozenset({"from", "from_id"}),
        (("", r"(\.chats\.list\.\d+|^\d+(\.\d+)?)\.(name|type)\b"), *_SERVICE), _one, 1,
    ),
    "slack": Kind(
        SLACK, "slack", ({"assistant": "U2"},), frozenset({"user", "replies"}), _SERVICE, _days
    ),
    "whatsapp": Kind(
        WHATSAPP, "a.txt", ({"assistant": "Bob"},), explained=(_NAMED, *_SERVICE), most=1
    ),
    "tagged": Kind(TAGGED, "a.txt"),
    "text": Kind(({"text": "a\n\nb"},)),
    "pairs": Kind(PAIRS),
}  # fmt: skip
