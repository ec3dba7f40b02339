"""What the readers give: conversations of messages, or documents of plain text."""

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from mypt.config import Role

PartKind = Literal["text", "reasoning", "tool_call", "failed_call", "context", "cite"]
WRITTEN_AS: Final[dict[PartKind, PartKind]] = {
    "text": "text", "reasoning": "reasoning", "tool_call": "tool_call", "failed_call": "tool_call",
    "context": "context", "cite": "cite",
}  # fmt: skip
"""As which kind each is written, and counts in what a row says: how a call ended is not in it."""
Train = bool | float | None
"""What a row says of its mask: learned or not; how much it weighs; None leaves it to the policy."""
Form = Literal["chat", "plain"]
"""Asked as a turn of a chat, or given as the beginning of a text."""

Side = Literal["", "chosen", "rejected"]
"""Which side of a preference pair a conversation is; its other side stands beside it."""


class Origin(NamedTuple):
    """Where a row came from, for errors, lineage and deletion requests."""

    file: int
    """Index of the file within its source."""
    line: int
    """Line of the file, counted from 1; for a JSON array the item, counted from 1; 0 where there
    is no file."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of one message that is of one kind."""

    kind: PartKind
    text: str
    train: Train = None
    """The part's own word about the mask; None leaves it to the message."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks, what is said, and whether the file itself decides the mask."""

    role: Role
    parts: tuple[Part, ...]
    train: Train = None
    """The row's own ``train`` or ``weight``; None leaves it to the policy."""

    @property
    def text(self) -> str:
        """All parts joined."""
        if len(self.parts) == 1:  # nearly always, and joining one text takes four times as long
            return self.parts[0].text
        return "".join([part.text for part in self.parts])


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, at least one."""

    messages: tuple[Message, ...]
    origin: Origin
    side: Side = ""


@dataclass(frozen=True, slots=True)
class Document:
    """A stretch of plain text."""

    text: str
    origin: Origin
    train: float | None = None
    """How much it weighs, where the row says so."""


Row = Conversation | Document


def say(role: Role, text: str) -> Message:
    """Return a plain message of one text part."""
    return Message(role, (Part("text", text),))
