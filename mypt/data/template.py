"""Chat templates: tags, separators and where each role begins and ends."""

import re
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from mypt import files
from mypt.config import Role, later
from mypt.data.conversations import WRITTEN_AS, PartKind
from mypt.data.spans import KIND
from mypt.errors import ConfigError, DataError
from mypt.parsing import Frozen, read_config

END_OF_TEXT = "<|endoftext|>"
Shape = tuple[Role | Literal["text"], bool, tuple[PartKind, ...]]
"""All that decides how a turn is written: who speaks ("text": a document, which no template
dresses up), whether the turn opens its conversation, and the kinds of its parts."""
_BUILT_IN = Path(__file__).parent / "templates"


class Slot(NamedTuple):
    """One place in the written form of a turn: fixed text, a special token, or a part."""

    kind: int
    """Index into :data:`mypt.data.spans.KINDS`."""
    text: str | None = None
    """Fixed text."""
    special: str | None = None
    """Special token. Where neither is given, the turn's next part stands."""
    part: int = 0
    """Index of the part to which it belongs; 0 in headers and ends."""

    @property
    def is_part(self) -> bool:
        """Whether the author's own words stand here."""
        return self.text is None and self.special is None


class TurnForm(Frozen):
    """What stands around the turns of one role; the content itself is written verbatim."""

    header: str = ""
    """Written before the content, by the program."""
    end: str = ""
    """Written after the content, by whoever wrote it; the assistant's is its stop token."""


class PartForm(Frozen):
    """What the model itself writes around a part of its turn."""

    open: str = ""
    """Before the part."""
    close: str = ""
    """After the part."""


class Template(Frozen):
    """A declarative chat template; the only thing that says how turns are written.

    Wherever one of ``special_tokens`` stands in the strings below it is that one token; the
    rest is ordinary text. Rendering the first n turns gives a prefix of rendering n + 1.
    """

    name: str = Field(min_length=1)
    """What people call it."""
    special_tokens: tuple[str, ...] = Field(min_length=1)
    """In the order in which they follow the base vocabulary."""
    start: str = ""
    """Written once, before the first turn."""
    separator: str = ""
    """Written between two turns; it belongs to the second one's header."""
    turns: dict[Role, TurnForm]
    """How each role is written; a row with another role is refused."""
    reasoning: PartForm | None = None
    """How reasoning is written; None refuses rows that hold any."""
    tool_call: PartForm | None = None
    """How a tool call is written; None refuses rows that hold any."""
    context: PartForm | None = later(PartForm(open="<context>\n", close="\n</context>\n\n"))
    """How a quoted document is written; None refuses rows that hold any."""
    cite: PartForm | None = later(PartForm(open="<cite>", close="</cite>"))
    """How a citation is written; None refuses rows that hold any."""

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        if "" in self.special_tokens or len(set(self.special_tokens)) < len(self.special_tokens):
            raise ValueError("special_tokens must be distinct and not empty")
        if missing := {"user", "assistant"} - self.turns.keys():
            raise ValueError(f"turns: expected {' and '.join(sorted(missing))} too")
        if self.turns["assistant"].end not in self.special_tokens:
            raise ValueError(
                f"turns.assistant.end is {self.turns['assistant'].end!r}; expected one of"
                " special_tokens, since the model stops at that token"
            )
        if self.stop in self._specials(*self._part_strings()):
            raise ValueError(f"{self.stop!r} ends the assistant's turn; no part may hold it")
        turns = [text for form in self.turns.values() for text in (form.header, form.end)]
        repeated = self._specials(self.separator, *turns, *self._part_strings())
        if found := self._specials(self.start) & repeated:
            raise ValueError(f"start: {found.pop()!r} stands in other strings too")
        return self

    @cached_property
    def digest(self) -> str:
        """The blake3 digest of its canonical JSON, 64 hexadecimal digits."""
        return files.digest_json(self.model_dump(mode="json"))

    @property
    def forms(self) -> dict[PartKind, PartForm | None]:
        """What stands around each kind of part but text."""
        marked = (item for item in WRITTEN_AS.items() if item[0] != "text")
        return {kind: getattr(self, written) for kind, written in marked}

    @property
    def stop(self) -> str:
        """The special token that ends an assistant turn."""
        return self.turns["assistant"].end

    @property
    def stops(self) -> tuple[str, ...]:
        """Every token that ends an assistant turn: there is one."""
        return (self.stop,)

    @property
    def text_headers(self) -> tuple[str, ...]:
        """Headers that hold no special token, so that any text can spell them."""
        headers = (form.header for form in self.turns.values())
        return tuple(
            found.strip() for found in headers if found.strip() and not self._specials(found)
        )

    def form(self, shape: Shape) -> tuple[Slot, ...]:
        """Return how a turn of this shape is written.

        Raises:
            DataError: If the template has no form for its role or one of its parts.
        """
        role, first, kinds = shape
        if role == "text" or role not in self.turns:
            raise DataError(
                f"template {self.name!r} has no form for role {role!r}, only for"
                f" {', '.join(self.turns)}; choose another template or map the role"
            )
        before = self.start if first else self.separator
        slots = self._slots("header", before + self.turns[role].header)
        for index, kind in enumerate(kinds):
            slots += self._part(kind, index)
        return slots + self._slots("end", self.turns[role].end)

    def _part(self, kind: PartKind, index: int) -> tuple[Slot, ...]:
        content = Slot(KIND["content" if kind == "text" else kind], part=index)
        if kind == "text":
            return (content,)
        form = self.forms[kind]
        if form is None:
            raise DataError(
                f"template {self.name!r} has no form for {WRITTEN_AS[kind]} parts; choose another,"
                " drop these parts, or, where they stand in tags, keep them text (--reasoning_tags"
                " none)"
            )
        before, after = self._slots(kind, form.open, index), self._slots(kind, form.close, index)
        return (*before, content, *after)

    def _slots(self, kind: str, text: str, part: int = 0) -> tuple[Slot, ...]:
        return tuple(Slot(KIND[kind], *piece, part) for piece in _split(text, self.special_tokens))

    def _specials(self, *texts: str) -> set[str]:
        slots = (slot for text in texts for slot in self._slots("header", text))
        return {slot.special for slot in slots if slot.special is not None}

    def _part_strings(self) -> list[str]:
        forms = self.forms.values()
        return [text for form in forms if form is not None for text in (form.open, form.close)]


@lru_cache(maxsize=256)
def _split(text: str, special_tokens: tuple[str, ...]) -> list[tuple[str | None, str | None]]:
    """Split one of a template's own strings into (text, None) and (None, special token)."""
    longest_first = sorted(special_tokens, key=len, reverse=True)
    pattern = "|".join(re.escape(token) for token in longest_first)
    return [
        (None, piece) if index % 2 else (piece, None)
        for index, piece in enumerate(re.split(f"({pattern})", text))
        if piece
    ]


def template_names() -> tuple[str, ...]:
    """Return the names of the templates that come with the package."""
    return tuple(sorted(path.stem for path in _BUILT_IN.glob("*.json")))


def load_template(name_or_path: str | Path | Template) -> Template:
    """Read a template by name, or a user's own file of the same form; one that was read stays.

    The package's own files in ``mypt/data/templates/`` are the examples to start from;
    ``//`` comments are allowed.

    Raises:
        ConfigError: If there is no such template or the file does not describe one.
    """
    if isinstance(name_or_path, Template):
        return name_or_path
    names = template_names()
    if str(name_or_path) in names:
        return read_config(_BUILT_IN / f"{name_or_path}.json", Template)
    if not Path(name_or_path).is_file():
        raise ConfigError(
            f"no template {str(name_or_path)!r}; expected {', '.join(names)}, or a template file"
            " (copy one of mypt/data/templates/*.json)"
        )
    return read_config(Path(name_or_path), Template)
