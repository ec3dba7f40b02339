"""Tools that a model may call: how its template writes a call, and calls read back from an answer.

Where the call of a probe has its name and its arguments, a call of the model has them too, so that
no family of models needs a word here.
"""

import json
import re
import secrets
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, NoReturn

from pydantic import BaseModel, ConfigDict, Field

from mypt.data.rendering.base_template import AnyTemplate, BaseTemplate
from mypt.errors import ConfigError, DataError
from mypt.inference.reply import Withheld

MOST_TOOLS: Final = 128
_STRICT: Final = ConfigDict(frozen=True, extra="forbid", strict=True)
_NAME: Final = r"[a-zA-Z0-9_.-]{1,64}"
_NAMED: Final = "q7name"
_GIVEN: Final = {"q7key": "q7value"}
_IDENTITY: Final = "q7ident00"
_WORDS: Final = re.compile(r"\w+|[^\w\s]")
_CALL: Final = {
    "type": "function",
    "id": _IDENTITY,
    "function": {"name": _NAMED, "arguments": _GIVEN},
}
_TOOL: Final = {
    "type": "function",
    "function": {"name": _NAMED, "description": "D9", "parameters": {"type": "object"}},
}


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_JSON: Final = json.JSONDecoder(parse_constant=_refuse)


class Function(BaseModel):
    """What may be called."""

    model_config = _STRICT
    name: str = Field(pattern=rf"\A{_NAME}\z")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A function as requests list it."""

    model_config = _STRICT
    type: Literal["function"]
    function: Function


class FunctionName(BaseModel):
    """Which one."""

    model_config = _STRICT
    name: str


class NamedTool(BaseModel):
    """The one tool that is to be called."""

    model_config = _STRICT
    type: Literal["function"]
    function: FunctionName


class CallForm(NamedTuple):
    """How a template writes calls; white space of a model's may differ, and the end be missing."""

    before: str
    """What stands before the name of a turn's first call."""
    between: str
    """What stands between the name and the arguments, which are an object in JSON."""
    after: str
    """What stands behind the arguments of the last call."""
    again: str | None
    """What stands between the arguments of a call and the name of the next; None: there is one."""

    @property
    def mark(self) -> str:
        """What tells that a call begins; empty where it is an answer that begins as JSON does."""
        return self.before.partition("{")[0].rstrip("[ \n")

    def read(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """Return an answer's text without its calls, and these as the protocol has them."""
        first, again, last = _patterns(self)
        match = first.search(text) if self.mark else first.match(text)
        begin, end, calls = match.start() if match else 0, 0, list[dict[str, Any]]()
        while match is not None:
            try:
                given, stop = _JSON.raw_decode(text, match.end())
            except (ValueError, RecursionError):
                break
            if not isinstance(given, dict):
                break
            function = {"name": match[1], "arguments": text[match.end() : stop]}
            identity = f"call_{secrets.token_hex(12)}"
            calls.append({"id": identity, "type": "function", "function": function})
            closed = last.match(text, stop)
            end = stop if closed is None else closed.end()
            match = again.match(text, stop)
        return (text[:begin] + text[end:], calls) if calls else (text, [])


class CallReader:
    """Takes the calls out of an answer while it is written."""

    def __init__(self, form: CallForm) -> None:
        self._form, self._held = form, Withheld([form.mark] if form.mark else [])
        self._said, self._told = "", 0
        self._may_call = not form.mark
        """Whether what is said may be a call, or the beginning of one."""

    def add(self, text: str) -> str:
        """Return the text that is certain to be none."""
        self._said += text
        if self._form.mark and not self._may_call:
            certain, self._may_call = self._held.add(text)
        elif self._may_call and (self._form.mark or self._said.lstrip()[:1] in ("", "{")):
            certain = ""
        else:
            self._may_call = False
            certain = self._said[self._told :]
        self._told += len(certain)
        return certain

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """Return the rest of the text, and the calls."""
        text, calls = self._form.read(self._said)
        return text[self._told :], calls


def call_form(template: AnyTemplate) -> CallForm:
    """Return how a template writes calls.

    Raises:
        ConfigError: If it has no form for tools, or none that can be read back.
    """
    if isinstance(template, BaseTemplate):
        found = _probed(template)
    else:
        written = template.tool_call
        found = None if written is None else _spelled(written.open, written.close)
    if found is None:
        raise ConfigError(
            f"template {template.name} has no form for tools whose calls could be read back; leave"
            " tools out"
        )
    return found


def _spelled(opens: str, closes: str) -> CallForm:
    """Return the form of calls that are spelled as training data spell them."""
    before, after = f'{opens}{{"name": "', f"}}{closes}"
    return CallForm(before, '", "arguments": ', after, after + before)


def _probed(template: BaseTemplate) -> CallForm | None:
    """Return how a base's template writes the call of a probe, if it does."""
    said = [{"role": "user", "content": "A1"}]
    other = _CALL | {"function": {"name": "z8name", "arguments": {"z8key": "z8value"}}}
    try:
        if template.write(said, tools=[_TOOL]) == template.write(said):
            return None
        fed = template.write(said, tools=[_TOOL], prompt=True)
        plain = template.write([*said, {"role": "assistant", "content": "D4"}], tools=[_TOOL])
        once = template.write([*said, _calling([_CALL])], tools=[_TOOL])
    except DataError:
        return None
    pairs = enumerate(zip(plain.partition("D4")[0], once, strict=False))
    same = next((n for n, (one, two) in pairs if one != two), plain.index("D4"))
    begin = max(same, len(fed) if once.startswith(fed) else 0)
    parts = _parts(once[begin:], _NAMED, _GIVEN)
    if parts is None:
        return None
    before, between, after = parts
    ends = [at for stop in template.stops if (at := after.find(stop)) >= 0]
    after = after[: min(ends, default=len(after))].rstrip()
    return CallForm(before.lstrip(), between, after, _again(template, said, other))


def _again(template: BaseTemplate, said: list[dict[str, Any]], other: dict[str, Any]) -> str | None:
    """Return what stands between two calls of one turn, if the template writes two."""
    try:
        twice = template.write([*said, _calling([_CALL, other])], tools=[_TOOL])
    except DataError:
        return None
    parts = _parts(twice, _NAMED, _GIVEN)
    again = _parts(parts[2], "z8name", {"z8key": "z8value"}) if parts else None
    return again[0] if again else None


def _calling(calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _parts(text: str, name: str, given: dict[str, str]) -> tuple[str, str, str] | None:
    """Return what stands before a name, between it and what is given in JSON, and behind that."""
    before, found, rest = text.partition(name)
    for brace in re.finditer(r"\{", rest) if found else ():
        try:
            value, stop = _JSON.raw_decode(rest, brace.start())
        except ValueError:
            continue
        if value == given:
            return before, rest[: brace.start()], rest[stop:]
    return None


@lru_cache
def _patterns(form: CallForm) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Return what finds the first call up to its arguments, one more, and the end of the last."""

    def words(text: str) -> list[str]:
        found = _WORDS.findall(text)
        return [r"[\w-]*" if word == _IDENTITY else re.escape(word) for word in found]

    def called(before: str, *lead: str) -> re.Pattern[str]:
        parts = [*lead, *words(before), f"({_NAME})", *words(form.between), ""]
        return re.compile(r"\s*".join(parts))

    last = ""
    for word in reversed(words(form.after)):
        last = rf"(?:\s*{word}{last})?"
    again = re.compile("(?!)") if form.again is None else called(form.again, "")
    lead = [] if form.mark else [""]
    return called(form.before, *lead), again, re.compile(last)
