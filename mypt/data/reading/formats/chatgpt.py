"""A talk with ChatGPT as it exports one: a tree of messages, of which one branch is the talk."""

from collections.abc import Iterator
from typing import Any, Final

from mypt.data.conversations import Conversation, Part
from mypt.data.reading import strict_json
from mypt.data.reading.formats.assistants import (
    Spoken,
    branch_to,
    call_part,
    count,
    fields_named,
    leave_out,
    listed,
    turns_of,
)
from mypt.data.reading.formats.message import fields_of, read_role, read_text, read_train
from mypt.data.reading.raw import Limits
from mypt.data.reading.records import Place, Tally
from mypt.errors import DataError
from mypt.text import shown

_CHATGPT: Final = fields_named("mapping current_node")
_BESIDE_CHATGPT: Final = fields_named(
    "title conversation_id conversation_template_id default_model_slug"
    " is_archived is_starred is_read_only is_study_mode is_do_not_remember moderation_results"
    " safe_urls blocked_urls gizmo_id gizmo_type plugin_ids disabled_tool_ids voice async_status"
    " conversation_origin memory_scope sugar_item_id sugar_item_visible pinned_time owner"
)
_NODE: Final = fields_named("author content metadata recipient status weight end_turn channel")
_NESTED: Final = fields_named("id parent children message")
_CONTENTS: Final = {
    "text": "parts", "multimodal_text": "parts", "thoughts": "thoughts", "code": "text",
    "execution_output": "text", "tether_quote": "text", "tether_browsing_display": "result",
}  # fmt: skip
"""The field in which a content of each type of ChatGPT's keeps what it says."""
_CONTENT: Final = fields_named("content_type response_format_name source_analysis_msg_id domain")
_SPOKEN: Final = fields_named("content_type text direction decoding_id")
_THOUGHT: Final = fields_named("content chunks finished")


def read_chatgpt(row: Any, place: Place, tally: Tally) -> Iterator[Conversation]:
    """Yield the branch of a ChatGPT conversation that ends in its ``current_node``.

    Messages of other branches, hidden and empty ones are left out and counted, and so are parts
    that are no text, by their type. Code that was run, and whatever else went to a tool, is a
    tool call; thoughts are reasoning.

    Raises:
        DataError: If the tree has no such branch, or a message is of an unknown form.
        Dropped: If nothing is said.
    """
    fields = fields_of(row, place)
    tally.check_fields(fields, _CHATGPT, place, "a conversation", _BESIDE_CHATGPT)
    nodes = fields_of(fields.get("mapping"), place)
    path = branch_to(nodes, _end(nodes, fields.get("current_node"), place), place)
    for node in path:
        tally.check_fields(node, _NESTED, place, "a node")
    messages = [node["message"] for node in path if node.get("message") is not None]
    empty = sum(node in (None, {}) or _says_nothing(node) for node in nodes.values())
    others = len(nodes) - empty - len(messages)
    count(tally, "message of another branch left out", others)
    pieces = [piece for message in messages for piece in _of_node(message, place, tally)]
    yield Conversation(turns_of(pieces, place, tally), place.origin)


def _says_nothing(node: Any) -> bool:
    return isinstance(node, dict) and node.get("message") is None and node.keys() <= _NESTED


def _end(nodes: dict[str, Any], current: Any, place: Place) -> str:
    """Return the last node of the branch to be read; where none is said, the only leaf."""
    if isinstance(current, str) and current in nodes:
        return current
    parents = {str(node.get("parent")) for node in nodes.values() if isinstance(node, dict)}
    leaves = [name for name in nodes if name not in parents]
    if current is None and len(leaves) == 1:
        return leaves[0]
    raise DataError(
        f"{place}: current_node is {shown(current)} in a tree with {len(leaves)} ends; expected"
        " the name of its last message; export it again, or remove the conversation"
    )


def _of_node(message: Any, place: Place, tally: Tally) -> Iterator[Spoken]:
    """Yield what a message of ChatGPT's says, if anything."""
    fields = fields_of(message, place)
    tally.check_fields(fields, _NODE, place, "a message")
    author, content = (
        fields_of(fields.get("author"), place),
        fields_of(fields.get("content"), place),
    )
    role = read_role(author.get("role"), place)
    about = fields_of(fields.get("metadata") or {}, place)
    if about.get("is_visually_hidden_from_conversation"):
        tally.notes["hidden message left out"] += 1
        return
    parts = list(_of_content(content, place, tally))
    if fields.get("recipient") not in (None, "all") and role == "assistant":
        text = "".join(part.text for part in parts if part.kind == "text")
        parts = [part for part in parts if part.kind != "text"]
        if text.strip():
            parts.append(call_part(fields["recipient"], _parsed(text, place), place))
    if not any(part.text.strip() for part in parts) and role != "tool":
        tally.notes["empty message left out"] += 1
        return
    status = fields.get("status")
    if role == "assistant" and status not in (None, "finished_successfully"):
        tally.notes[f"answer with status {shown(status)}"] += 1
    # Every message has a weight there, of the user too: only 0 says something about a mask.
    yield Spoken(role, parts, False if read_train(fields, place) is False else None)


def _of_content(content: dict[str, Any], place: Place, tally: Tally) -> Iterator[Part]:
    """Yield the parts of one content, whatever its type keeps them in."""
    kind = content.get("content_type")
    key = _CONTENTS.get(kind) if isinstance(kind, str) else None
    if key is None:
        leave_out(kind, place, tally)
        return
    tally.check_fields(content, _CONTENT | {key}, place, "a content")
    if key == "parts":
        for part in listed(content, key, place):
            fields = part if isinstance(part, dict) else {}
            kind, text = fields.get("content_type"), fields.get("text")
            if isinstance(part, str):
                yield Part("text", part)
            elif kind in (None, "audio_transcription") and isinstance(text, str):
                tally.check_fields(fields, _SPOKEN, place, "a part of the content")
                yield Part("text", text)
            else:
                leave_out(kind or part, place, tally)
    elif key == "thoughts":
        thoughts = [fields_of(one, place) for one in listed(content, key, place)]
        for one in thoughts:
            tally.check_fields(one, _THOUGHT, place, "a thought")
        yield Part("reasoning", "\n\n".join(read_text(one, "content", place) for one in thoughts))
    else:
        yield Part("text", read_text(content, key, place))


def _parsed(text: str, place: Place) -> Any:
    """Return the JSON that was sent to a tool; code, which is none, as it stands."""
    try:
        found = strict_json.parse(text.encode(), 0, place, Limits())
    except DataError:
        return text
    return found if isinstance(found, dict) else text
