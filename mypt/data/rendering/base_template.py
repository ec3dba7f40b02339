"""A base's own chat template: Jinja, as it came, with what its tokenizer's tokens are called."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from mypt import files
from mypt.config import later
from mypt.data.conversations import Message, say
from mypt.data.template import Shape, Slot, Template
from mypt.data.vocabularies.base_files import find_source, read_tokenizer, read_tokenizer_config
from mypt.errors import ConfigError, DataError
from mypt.parsing import Frozen

BASE: Final = "base"
"""What people type for it."""
_PROBE: Final = (
    say("user", "A1"),
    say("assistant", "B2"),
    say("user", "C3"),
    say("assistant", "D4"),
)


class BaseTemplate(Frozen):
    """A chat template in Jinja, run in a sandbox; where its words stand is proved row by row."""

    kind: Literal["jinja"] = "jinja"
    name: str = BASE
    """What people call it."""
    source: str = Field(repr=False)
    """Jinja."""
    variables: dict[str, str]
    """What it calls the tokenizer's tokens, such as ``bos_token``."""
    stop: str
    """The token that it makes the model write last."""
    also_stops: tuple[str, ...] = later(())
    """Others that end a turn, before a tool's result or another turn, and stand in none."""
    each_turn: bool = later(False)
    """Whether each turn is trained on as inference sees it: the last one of a row of its own."""
    eats_before: tuple[str, ...] = ()
    """Tokens that swallow white space before them."""
    eats_after: tuple[str, ...] = ()
    """Tokens that swallow white space after them."""

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """None of its own: they are the base's."""
        return ()

    @property
    def stops(self) -> tuple[str, ...]:
        """Every token that ends an assistant turn."""
        return (self.stop, *self.also_stops)

    @cached_property
    def digest(self) -> str:
        """The blake3 digest of its canonical JSON, 64 hexadecimal digits."""
        return files.digest_json(self.model_dump(mode="json"))

    @cached_property
    def difference(self) -> str:
        """How what it feeds before an answer differs from what training reads; empty: not at all.

        It is asked about four short turns; long ones may differ all the same.
        """
        messages = [plain_message(turn) for turn in _PROBE]
        text = self.write(messages)
        for index in (1, 3):
            fed = self.write(messages[:index], prompt=True)
            if not text.startswith(fed):
                pairs = enumerate(zip(fed, text, strict=False))
                same = next((n for n, (one, other) in pairs if one != other), len(text))
                return f"{fed[same:][:40]!r} against {text[same:][:40]!r}"
        return ""

    def write(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        prompt: bool = False,
        shows: bool = False,
    ) -> str:
        """Return what the template makes of messages as ``transformers`` has them.

        Args:
            messages: ``role``, ``content`` and perhaps ``reasoning_content``, ``tool_calls``.
            tools: Schemas of what may be called.
            prompt: Whether the header of an answer follows.
            shows: As :func:`mypt.data.rendering.sandbox.render`.

        Raises:
            DataError: If it refuses them.
        """
        from mypt.data.rendering.sandbox import render  # jinja2, which own templates do without

        said = (value for message in messages for value in message.values())
        size = sum(len(str(value)) for value in (*said, *(tools or ())))
        variables = {
            "messages": messages, "tools": tools, "documents": None,
            "add_generation_prompt": prompt,
        }  # fmt: skip
        return render(self.source, self.variables | variables, size, shows=shows)

    def form(self, shape: Shape) -> tuple[Slot, ...]:
        """Say that a turn has no form apart from its conversation.

        Raises:
            DataError: Always.
        """
        raise DataError(f"a turn of the {shape[0]} has no form of its own in template {self.name}")


AnyTemplate = Template | BaseTemplate
"""A template of ours, or a base's own."""


def base_template(base: Path) -> BaseTemplate:
    """Read the chat template that lies beside a base's ``tokenizer.json``, or in its GGUF.

    Raises:
        ConfigError: If it has none.
        DataError: If it cannot be read, or no token ends an assistant's turn in it.
    """
    config = read_tokenizer_config(base)
    source = find_source(base, config)
    if source is None:
        raise ConfigError(
            f"{base}: no chat template (chat_template.jinja, or chat_template in"
            " tokenizer_config.json), as a base that was only pretrained has none; choose"
            " --template chatml or another"
        )
    added = read_tokenizer(base).values.get("added_tokens", [])
    tokens = [token for token in added if isinstance(token, dict)]
    found = BaseTemplate(
        source=source,
        variables={
            key: text
            for key, value in config.items()
            if key.endswith("_token")
            and isinstance(text := value.get("content") if isinstance(value, dict) else value, str)
        },
        stop="",
        eats_before=tuple(token["content"] for token in tokens if token.get("lstrip")),
        eats_after=tuple(token["content"] for token in tokens if token.get("rstrip")),
    )
    controls = [token["content"] for token in tokens if token["content"].strip()]
    stop, *others = _stops(found, controls, base)
    return found.model_copy(update={"stop": stop, "also_stops": tuple(others)})


def _stops(template: BaseTemplate, controls: Sequence[str], base: Path) -> list[str]:
    """Return the tokens that end a turn, first the one after the last answer.

    A template that writes none at its end stops at the header of the next message. What ends an
    earlier turn, or one that calls a tool, ends turns too if it stands inside of none.
    """
    try:
        text = template.write([plain_message(turn) for turn in _PROBE])
    except DataError as error:
        raise DataError(f"{base}: {error}; choose another --template") from None
    between, ending = text.partition("B2")[2].partition("C3")[0], text.rpartition("D4")[2]
    longest_first = sorted(filter(None, controls), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
    earlier, last = pattern.search(between), pattern.search(ending)
    stop = last or earlier
    if stop is None:
        raise DataError(
            f"{base}: its chat template writes {between!r:.60} after an answer; expected a token"
            " that ends it, since the model would never stop; choose another --template"
        )
    others = [earlier.group()] if earlier else []
    others += _after_call(template, pattern, {stop.group(), *others})
    thought = _probed(template, [{"reasoning_content": "H9", "thinking": "H9", "content": "D4"}])
    inside = pattern.findall(thought.partition("H9")[2].partition("D4")[0])
    return list(dict.fromkeys([stop.group(), *(one for one in others if one not in inside)]))


def _after_call(template: BaseTemplate, pattern: re.Pattern[str], known: set[str]) -> list[str]:
    """Return the token that ends a turn that calls a tool, if a known one does not.

    It is the first behind the call that does not stand between two calls of one turn; where none
    is, the header of the tool's result stops.
    """
    one, other = ({"function": {"name": "add", "arguments": {"a": a}}, "type": "function",
                   "id": f"call0000{n}"} for n, a in enumerate(("E6", "G8")))  # fmt: skip
    result = {"role": "tool", "content": "F7", "tool_call_id": one["id"], "name": "add"}
    called = {"content": "", "tool_calls": [one]}
    ending = pattern.findall(_probed(template, [called]).partition("E6")[2])
    twice = _probed(template, [{"content": "", "tool_calls": [one, other]}])
    within = pattern.findall(twice.partition("E6")[2].partition("G8")[0])
    whole = _probed(template, [called, result]).partition("E6")[2].partition("F7")[0]
    follows = pattern.findall(whole)
    if known.intersection(ending) or ending != follows[: len(ending)]:
        return []
    own = [token for token in ending if token not in within]
    return own[:1] or follows[len(ending) :][:1]


def _probed(template: BaseTemplate, turns: Sequence[dict[str, Any]]) -> str:
    """Return a question and turns after it as the template writes them; empty if it refuses."""
    asked = [{"role": "user", "content": "A1"}, *({"role": "assistant"} | turn for turn in turns)]
    try:
        return template.write(asked)
    except DataError:
        return ""


def plain_message(turn: Message) -> dict[str, Any]:
    """Return a message of text alone as ``transformers`` has it."""
    return {"role": turn.role, "content": turn.text}
