"""OpenAI's protocol as its clients speak it: requests and errors."""

import json
import re
import secrets
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import from_json

from mypt.config import Reading
from mypt.data.conversations import Message, Part
from mypt.data.reading.formats.calls import Turn, link_results, unfold
from mypt.data.reading.formats.chats import frame
from mypt.data.reading.formats.message import read_message
from mypt.data.reading.formats.tags import mark_message
from mypt.data.reading.records import Dropped, Place, Tally
from mypt.errors import DataError
from mypt.inference.sampling import COLDEST, Sampling
from mypt.inference.server.tools import MOST_TOOLS, NamedTool, Tool
from mypt.text import shorten

_LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key")
"""Parameters that change no answer."""
_ID = re.compile("0|-?[1-9][0-9]*")
_MOST_STOPS = 4
_MOST_BIASED = 1024
_MOST_TOP = 20
_MOST_SHOWN = 60
MOST_ANSWERS = 32
"""Answers that one request may ask for."""


class Refused(Exception):  # noqa: N818 - becomes an answer, in the form below
    """A request that gets an error for an answer."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        """Note what OpenAI's clients turn into their own exceptions."""
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {"message": message, "type": _kind(status), "param": param, "code": code}
        }


class StreamOptions(BaseModel):
    """What a stream holds besides the answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(BaseModel):
    """What an answer in JSON is to hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    name: str = Field(pattern=r"\A[a-zA-Z0-9_-]{1,64}\z")
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What form an answer has; in JSON it has it surely, strict or not."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("expected json_schema where that is the type, and only there")
        return self

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """What the answer is to hold in JSON; None where it is a text."""
        if self.json_schema is not None:
            return self.json_schema.schema_ or {}
        return {"type": "object"} if self.type == "json_object" else None


def _read_id(key: Any) -> int:
    if not _ID.fullmatch(str(key)):  # else " 1" and "01" are 1 too
        raise ValueError("expected an id in digits alone")
    return int(key)


class Asked(BaseModel):
    """One request; ``top_k``, ``min_p`` and ``repetition_penalty`` go beyond the protocol."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    only: ClassVar[dict[str, tuple[Any, ...]]] = {
        "store": (False,), "service_tier": ("auto", "default"),
    }  # fmt: skip
    """Parameters that clients send and that mean nothing with these values; others are refused."""
    model: str
    n: int | None = Field(default=None, ge=1, le=MOST_ANSWERS)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=1)
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100.0)
    presence_penalty: float | None = Field(default=None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(default=None, ge=-2.0, le=2.0)
    logit_bias: dict[Annotated[int, BeforeValidator(_read_id)], float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop")
    @classmethod
    def _few_and_not_empty(cls, value: str | list[str] | None) -> str | list[str] | None:
        texts = [value] if isinstance(value, str) else value or []
        if not all(texts) or len(texts) > _MOST_STOPS:
            raise ValueError(f"expected up to {_MOST_STOPS} texts, none of them empty")
        return value

    @field_validator("temperature")
    @classmethod
    def _divides(cls, value: float | None) -> float | None:
        if value and value < COLDEST:
            raise ValueError(f"expected 0, or at least {COLDEST}")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _few_and_small(cls, value: dict[int, float] | None) -> dict[int, float] | None:
        held = value or {}
        if len(held) > _MOST_BIASED or not all(-100 <= bias <= 100 for bias in held.values()):
            raise ValueError(f"expected up to {_MOST_BIASED} ids, each with -100 to 100")
        return value

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def longest(self) -> int | None:
        """Tokens that the answer may have; None: what the context holds."""
        return self.max_tokens

    @property
    def top(self) -> int | None:
        """How many likely tokens are told beside each; None tells of none."""
        return None

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen; the protocol's default temperature is 1, and a seed is drawn."""
        values = {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "seed": secrets.randbits(63) if self.seed is None else self.seed % 2**63,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty or 1.0,
            "presence_penalty": self.presence_penalty or 0.0,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "logit_bias": self.logit_bias or {},
        }
        return Sampling.model_validate(values)


class ChatRequest(Asked):
    """What is asked of ``/v1/chat/completions``."""

    only: ClassVar[dict[str, tuple[Any, ...]]] = Asked.only | {
        "functions": ([],), "function_call": ("none", "auto"), "modalities": (["text"],),
    }  # fmt: skip
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=_MOST_TOP)
    tools: list[Tool] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    @field_validator("top_logprobs")
    @classmethod
    def _beside_others(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise ValueError("expected logprobs: true beside it")
        return value

    @property
    def longest(self) -> int | None:
        """Tokens that the answer may have; None: what the context holds."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        """How many likely tokens are told beside each; None tells of none."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @field_validator("tool_choice")
    @classmethod
    def _among_tools(cls, value: Any, info: ValidationInfo) -> Any:
        names = [tool.function.name for tool in info.data.get("tools") or ()]
        if value not in (None, "none", "auto") and not names:
            raise ValueError("expected tools beside it")
        if isinstance(value, NamedTool) and value.function.name not in names:
            raise ValueError(f"no tool has the name {short(value.function.name)}")
        return value

    @property
    def callable(self) -> list[Tool]:
        """The tools that the model is shown: none where it may not call any."""
        return [] if self.tool_choice == "none" else self.tools or []

    def conversation(self) -> list[Message]:
        """Return the messages as the readers of training data read them, the tools among them.

        Raises:
            Refused: If one is no message that a model can read.
        """
        tally = Tally()
        turns = []
        for index, given in enumerate(self.messages):
            place = Place(f"messages[{index}]", 0, index + 1)
            turns += [_turn(fields, place, tally) for fields in unfold(given)]
        try:
            messages = link_results(turns, tally)
            unsaid = {"function": {"strict"}}
            listed = [one.model_dump(exclude_unset=True, exclude=unsaid) for one in self.callable]
            return [*frame(messages, {"tools": listed}, Place("tools", 0, 1))]
        except DataError as error:
            raise _refuse(error) from None


class CompletionRequest(Asked):
    """What is asked of ``/v1/completions``: how texts go on."""

    only: ClassVar[dict[str, tuple[Any, ...]]] = Asked.only | {"best_of": (1,), "suffix": ("",)}
    prompt: Any
    max_tokens: int | None = Field(default=16, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=_MOST_TOP)

    @field_validator("prompt")
    @classmethod
    def _texts_or_ids(cls, value: Any, info: ValidationInfo) -> list[str] | list[list[int]]:
        held = value if isinstance(value, list) else [value]
        if held and all(type(one) is int for one in held):
            held = [held]
        ids = all(isinstance(one, list) and all(type(n) is int for n in one) for one in held)
        most = MOST_ANSWERS // (info.data.get("n") or 1)
        if not (ids or all(isinstance(one, str) for one in held)) or not 0 < len(held) <= most:
            raise ValueError(f"expected a text, ids of tokens, or a list of up to {most} of either")
        return held

    @property
    def top(self) -> int | None:
        """How many likely tokens are told beside each; None tells of none."""
        return self.logprobs


Request = TypeVar("Request", bound=Asked)


def read_request(body: bytes, form: type[Request]) -> Request:
    """Return a request, or say in the protocol's form why it is none.

    Args:
        body: JSON.
        form: What is asked for.

    Raises:
        Refused: If it is no JSON, lacks something, or asks for what cannot be done here.
    """
    try:
        values = json.loads(body)
    except RecursionError:
        raise Refused(400, "the body is nested too deeply") from None
    except ValueError:
        raise Refused(400, "the body is no JSON; expected one object") from None
    if not isinstance(values, dict):
        raise Refused(400, "the body is no JSON object")
    parameters = {*form.model_fields, *form.only, *_LABELS}
    for key, value in values.items():
        _check_text(key, value)
        if key not in parameters:  # the first of however many
            name = short(key)
            raise Refused(400, f"{name}: this server does not know this parameter", param=name)
    for key in [key for key in values if key in form.only or key in _LABELS]:
        value, only = values.pop(key), form.only.get(key)
        if only is not None and value is not None and not _is_one_of(only, value):
            known = " or ".join(json.dumps(value) for value in only)
            raise Refused(400, f"{key}: this server knows only {known}; leave it out", param=key)
    try:
        return form.model_validate_json(json.dumps(values))
    except ValidationError as error:
        _check_depth(values)
        first = error.errors(include_url=False)[0]
        param = short(".".join(str(part) for part in first["loc"]))
        raise Refused(400, f"{param}: {first['msg']}", param=param) from None


def _check_text(key: str, value: Any) -> None:
    """Refuse half of a surrogate pair, which JSON can spell and no tokenizer can encode."""
    try:
        json.dumps([key, value], ensure_ascii=False).encode()
    except RecursionError:
        raise _too_deep(key) from None
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        param = short(key)
        raise Refused(
            400, f"{param}: {half} is half of a surrogate pair and no character", param=param
        ) from None


def _check_depth(values: dict[str, Any]) -> None:
    """Refuse what Python's reader of JSON takes and pydantic's does not."""
    for key, value in values.items():
        try:
            from_json(json.dumps({key: value}))
        except ValueError as error:
            if "recursion" in str(error):
                raise _too_deep(key) from None


def _too_deep(key: str) -> Refused:
    param = short(key)
    return Refused(400, f"{param}: nested too deeply", param=param)


def short(text: str) -> str:
    """Return what a client said as an error says it again: a short visible line."""
    return shorten(text[: 4 * _MOST_SHOWN], _MOST_SHOWN)


def _is_one_of(known: tuple[Any, ...], value: Any) -> bool:
    """Return whether ``value`` is among those; unlike in Python, true is not 1, nor is 1.0."""
    return any(type(value) is type(same) and value == same for same in known)


def _turn(fields: dict[str, Any], place: Place, tally: Tally) -> Turn:
    param = place.path
    try:
        message = read_message(fields, place, tally)
    except DataError as error:
        raise _refuse(error) from None
    except Dropped:
        if fields.get("role") != "assistant":
            raise Refused(400, f"{param}: says nothing; expected text", param=param) from None
        message = Message("assistant", (Part("text", ""),))  # an answer may have been empty
    if tally.unread:
        found = (
            f"{param}: this server does not read {short(next(iter(tally.unread)))}; leave it out"
        )
        raise Refused(400, found, param=param)
    if message.role == "assistant":
        message = mark_message(message, Reading().reasoning_tags, tally)
    return Turn(fields, message, place)


def _refuse(error: DataError) -> Refused:
    """Return what the client is told; the place begins with the parameter."""
    param, _, said = str(error).partition(":")
    return Refused(400, f"{param}: {said.partition(': ')[2]}", param=param)


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
