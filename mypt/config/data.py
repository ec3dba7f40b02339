"""What is read, how it is written down, and which of its tokens are learned."""

import codecs
from typing import Any, Literal, Self, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator

from mypt.parsing import Frozen, own_first

Role = Literal["system", "user", "assistant", "tool"]
Format = Literal[
    "auto", "chat", "messages", "alpaca", "tagged", "text",
    "prompt_completion", "sharegpt", "tree", "mapping", "columns", "rendered",
    "chatgpt", "claude", "gemini", "slack", "discord", "telegram", "whatsapp",
]  # fmt: skip
Markup = Literal[
    "none", "chatml", "llama3", "llama2", "gemma", "zephyr", "alpaca", "guanaco", "human",
    "human_lines", "user", "vicuna", "glaive", "llama4", "oasst", "command", "deepseek",
    "harmony", "human_ai", "angled", "bold", "bracketed", "instruction", "question", "qa",
    "prompt", "customer",
]  # fmt: skip
Voice = Literal[
    "system", "user", "assistant", "tool",
    "turns", "tools", "calls", "chosen", "rejected", "label", "segments", "context", "cite",
]  # fmt: skip
_VOICES = get_args(Voice)
UNWEIGHED = (0.0, 1.0)
"""The table of weights of a mask that says no more than learned or not."""
MOST_WEIGHT = 1000.0
"""The largest weight of a token, a message, a row or a source."""
WEIGHED = (
    "system", "user", "assistant", "text", "content", "stop", "reasoning", "tool_calls",
    "context", "cite",
)  # fmt: skip
"""What a policy can weigh, besides ``source:NAME``: roles, plain text, and kinds of parts."""


def later(default: Any, **limits: Any) -> Any:
    """Return a field that came after digests were made: at its default it is not written.

    Args:
        default: Its default.
        limits: As :func:`pydantic.Field` takes them.
    """
    return Field(default=default, exclude_if=lambda value: value == default, **limits)


class MaskPolicy(Frozen):
    """Whose tokens the model learns to write; a pure rule over spans (law 1)."""

    roles: tuple[Role, ...] = ("assistant",)
    """Roles whose content is supervised; tool results never are."""
    last_turn_only: bool = False
    """Supervise only the last turn of the roles in each conversation; a turn that leaves no token
    is none."""
    last_round_only: bool = later(False)
    """Supervise only the last round: the question before the last answer, and what follows it, such
    as the tool calls that lead to the answer."""
    end_of_turn: bool = True
    """Supervise the token that ends such a turn; without it the model never stops."""
    reasoning: bool = True
    """Supervise reasoning parts."""
    skip_empty_reasoning: bool | None = later(None)
    """Leave out reasoning that is nothing but its tags, such as <think></think>; only false keeps
    it. Where there is any, making masks records how long it is as ``reasoning_above``."""
    reasoning_above: int = later(0)
    """Supervise a stretch of reasoning only if it has more tokens than this."""
    tool_calls: bool = True
    """Supervise tool calls."""
    skip_failed_calls: bool = later(False)
    """Leave out tool calls whose result is marked as an error."""
    context: bool = later(False)
    """Supervise quoted documents, whoever quotes them."""
    cite: bool = later(True)
    """Supervise citations."""
    text: bool = True
    """Supervise plain-text documents (pretraining text replayed in a chat mix)."""
    weights: dict[str, float] = later({})
    """How much a supervised token weighs where that is not 1: by role, kind of part (content, stop,
    reasoning, tool_calls, context, cite), text, or source:NAME; where several fit, they are
    multiplied."""

    def __hash__(self) -> int:
        """Hash what it says: a dict of weights has no hash of its own."""
        return hash(self.model_dump_json())

    @model_validator(mode="after")
    def _roles_are_sound(self) -> Self:
        if "tool" in self.roles:
            raise ValueError("role 'tool' is never supervised; a tool's result is not written")
        if len(set(self.roles)) < len(self.roles):
            raise ValueError(f"roles {', '.join(self.roles)}: expected each role once")
        if self.last_turn_only and self.last_round_only:
            raise ValueError("last_turn_only and last_round_only exclude each other")
        off = {role for role in ("system", "user", "assistant") if role not in self.roles}
        kinds = ("reasoning", "tool_calls", "context", "cite", "text")
        off |= {word for word in kinds if not getattr(self, word)}
        off |= set() if self.end_of_turn else {"stop"}
        if idle := sorted(off & self.weights.keys()):
            raise ValueError(f"weights: {idle[0]} is not supervised; supervise it, or leave it out")
        return self

    @field_validator("skip_empty_reasoning")
    @classmethod
    def _skipping_is_unsaid(cls, skips: bool | None) -> bool | None:
        return None if skips else skips  # as is the default

    @field_validator("weights")
    @classmethod
    def _weights_are_sound(cls, weights: dict[str, float]) -> dict[str, float]:
        for word, weight in weights.items():
            if word not in WEIGHED and not word.startswith("source:"):
                known = f"{', '.join(WEIGHED)} or source:NAME"
                raise ValueError(f"weights: {word[:60]!r} cannot be weighed; expected {known}")
            if not 0 <= weight <= MOST_WEIGHT:
                raise ValueError(f"weights: {word} {weight:g}; expected 0 to {MOST_WEIGHT:g}")
        return dict(sorted(weights.items()))


class FieldMapping(Frozen):
    """Where an unknown file keeps its turns; paths use dots, ``a.b`` is row["a"]["b"]."""

    turns: str = "messages"
    """Field that holds the list of turns (nested lists are flattened)."""
    role: str = "role"
    """Field of a turn that says who speaks."""
    text: str = "content"
    """Field of a turn that holds the text."""
    roles: dict[str, Role] = Field(default_factory=dict)
    """What each found role means; empty: the roles are already named as here."""
    by_order: bool = False
    """Roles are speakers' ids: first to speak is the user, second the assistant."""
    join: str | None = "\n"
    """Text between consecutive turns of one role when joined; null refuses such turns."""


class Reading(Frozen):
    """How the rows of a file are understood; all that a reader is told about them."""

    format: Format = "auto"
    """Input format; auto decides by content and says what it decided."""
    mapping: FieldMapping | None = None
    """Where the turns are, for format "mapping"."""
    turns: str = ""
    """Which field of a row says what, in order: system=about,user=question,assistant=answer."""
    side: Literal["chosen", "rejected"] = "chosen"
    """Which answer of a preference row is read; the other is counted."""
    pairs: bool = later(False)
    """Read both answers of a preference row, as two conversations that share a pair id."""
    markup: Markup | None = None
    """How text with role tags was rendered, for format "rendered"; unsaid: found in each text."""
    group_by: str = ""
    """Field that says which conversation a row of one message belongs to, where auto misses it."""
    strict: bool = False
    """Refuse a field that is neither read nor known to be without meaning, instead of counting."""
    unread: str = ""
    """Fields that may stay unread where reading is strict, joined by commas; they are counted."""
    reasoning_tags: str = Field(default="think", pattern=r"^\w+(,\w+)*$")
    """Names of the tags around reasoning at the beginning of an assistant's text, joined by
    commas; "none" leaves them and <tool_call> as text."""

    parts: str = later("", pattern=r"^((context|cite)=\w+(,(context|cite)=\w+)*)?$")
    """Fields of messages, and tags in their texts, that hold a quoted document or a citation, such
    as context=documents,cite=source."""
    assistant: str = ""
    """Name or id of who is the assistant, in exports of talks between people."""
    encoding: str = "utf-8"
    """What the bytes of text files mean, such as latin-1, cp1252 or utf-16."""
    rows_at: str = ""
    """Where the rows of a .json file lie, a.b being b inside a; empty: found by content."""

    @field_validator("turns")
    @classmethod
    def _turns_are_pairs(cls, turns: str) -> str:
        for pair in turns.split(",") if turns else ():
            voice, _, path = pair.partition("=")
            if voice not in _VOICES or not path.rstrip("?").strip() or "=" in path:
                raise ValueError(
                    f"turns: {pair[:60]!r} does not say what a field is; expected a word of"
                    f" {', '.join(_VOICES)} and a field, as in user=question,assistant=answer"
                )
        return turns

    @model_validator(mode="after")
    def _only_strict_reading_waives(self) -> Self:
        if self.unread and not self.strict:
            raise ValueError(f"unread {self.unread[:60]!r}: expected only where reading is strict")
        return self

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str) -> str:
        try:
            return codecs.lookup(encoding).name if "a".encode(encoding) else encoding
        except (LookupError, ValueError):
            known = "utf-8, latin-1, cp1252 or utf-16"
            raise ValueError(f"encoding {encoding[:40]!r}: expected one such as {known}") from None


class Source(Reading):
    """One kind of raw input: a file, folder, glob, or the project's generated exercises."""

    model_config = ConfigDict(json_schema_extra=own_first)

    path: str = ""
    """File, folder or glob; inside ``package`` where that is given."""
    package: str | None = None
    """Installed Python package that holds the files; located, never imported."""
    exercises: Literal["text", "chat"] | None = None
    """Generated exercises, as plain-text lines or as conversations, instead of files."""
    count: int = Field(default=0, ge=0)
    """How many exercises to generate."""
    seed: int = 0
    """Seed of the generated exercises."""
    name: str = ""
    """Name in statistics; default: the file's or package's name."""
    weight: float = Field(default=1.0, gt=0.0, le=1e6)
    """How often each token is seen relative to the other sources; 1 is natural."""
    licence: str = ""
    """Licence of the data, kept in the lineage."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if bool(self.path) == bool(self.exercises):
            raise ValueError("a source has either a path or exercises")
        if self.pairs and (self.exercises or self.side != "chosen"):
            other = "exercises" if self.exercises else f"side {self.side}"
            raise ValueError(
                f"pairs with {other}: expected preference rows of a path; leave it out"
            )
        return self


class PrepareConfig(Frozen):
    """How raw files become a dataset."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """What to read, in order."""
    tokenization: str = "gpt2"
    """gpt2, byte, char, cl100k_base, o200k_base or bpe:N (trained on the corpus)."""
    tokenizer_from: str | None = None
    """Dataset or model folder whose tokenizer and template are used instead."""
    template: str = "mypt"
    """mypt, chatml, llama3, alpaca, plain, documents, base (that of hf: or gguf:), or a file."""
    train_as: Literal["whole", "inference"] = later("whole")
    """Template base: conversations whole, or each turn of the assistant in a row of its own, after
    what inference would feed for it: for templates that write earlier turns otherwise."""
    val_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of rows that go to val, by the hash of their content, so twins never cross; of pairs,
    by their prompt's."""
    shard_tokens: int = Field(default=10_000_000, ge=1, le=10**12)
    """Tokens after which a new shard begins."""

    @property
    def pairs(self) -> bool:
        """Whether its rows are preference pairs."""
        return self.sources[0].pairs

    @model_validator(mode="after")
    def _pairs_are_alone(self) -> Self:
        if len({source.pairs for source in self.sources}) > 1:
            raise ValueError("pairs: some sources have them and some not; make a dataset of each")
        if self.pairs and self.train_as == "inference":
            raise ValueError("pairs with train_as inference: expected whole; leave train_as out")
        return self


class Preparation(Frozen):
    """Who prepares data: no digest depends on it (DESIGN.md D94)."""

    engine: Literal["serial", "process", "dask"] = "process"
    """This process; processes of this machine, for inputs that are worth it; or Dask's workers."""
    workers: int = Field(default=0, ge=0, le=1024)
    """How many processes; 0 is one a core."""
    address: str = ""
    """Dask only: the scheduler's, such as tcp://host:8786; empty starts workers here."""

    @model_validator(mode="after")
    def _address_is_of_dask(self) -> Self:
        if self.address and self.engine != "dask":
            raise ValueError(f"address {self.address!r} with engine {self.engine}; expected dask")
        return self
