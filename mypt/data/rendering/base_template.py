"""A base's own chat template: Jinja, as it came, with what its tokenizer's tokens are called."""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from mypt import files
from mypt.data.conversations import Message, say
from mypt.data.rendering.sandbox import render
from mypt.data.template import Shape, Slot, Template
from mypt.errors import ConfigError, DataError
from mypt.parsing import Frozen

BASE: Final = "base"
"""What people type for it."""
_FILE: Final = "chat_template.jinja"
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
    eats_before: tuple[str, ...] = ()
    """Tokens that swallow white space before them."""
    eats_after: tuple[str, ...] = ()
    """Tokens that swallow white space after them."""

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """None of its own: they are the base's."""
        return ()

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
        self, messages: Sequence[dict[str, Any]], *, prompt: bool = False, shows: bool = False
    ) -> str:
        """Return what the template makes of messages as ``transformers`` has them.

        Args:
            messages: ``role``, ``content`` and perhaps ``reasoning_content``, ``tool_calls``.
            prompt: Whether the header of an answer follows.
            shows: As :func:`mypt.data.rendering.sandbox.render`.

        Raises:
            DataError: If it refuses them.
        """
        size = sum(len(str(value)) for message in messages for value in message.values())
        variables = {
            "messages": messages, "tools": None, "documents": None,
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


def base_template(folder: Path) -> BaseTemplate:
    """Read the chat template that lies beside a base's ``tokenizer.json``.

    Raises:
        ConfigError: If it has none.
        DataError: If it cannot be read, or no token ends an assistant's turn in it.
    """
    config = _json(folder / "tokenizer_config.json")
    source = find_source(folder, config)
    if source is None:
        raise ConfigError(
            f"{folder}: no chat template ({_FILE}, or chat_template in tokenizer_config.json), as"
            " a base that was only pretrained has none; choose --template chatml or another"
        )
    added = _json(folder / "tokenizer.json").get("added_tokens", [])
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
    return found.model_copy(update={"stop": _stop(found, controls, folder)})


def find_source(folder: Path, config: dict[str, Any] | None = None) -> str | None:
    """Return the Jinja of a base's chat template, or None where it has none.

    Raises:
        DataError: If a file cannot be read.
    """
    path = folder / _FILE
    if path.is_file():
        try:
            return files.read_bytes(path).decode()
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); expected Jinja") from None
    values = _json(folder / "tokenizer_config.json") if config is None else config
    found = values.get("chat_template")
    if isinstance(found, list):  # several by name
        found = next((one.get("template") for one in found if one.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _stop(template: BaseTemplate, controls: Sequence[str], folder: Path) -> str:
    """Return the first token after the last answer, or else after the one before it.

    A template that writes none at its end stops at the header of the next message.
    """
    try:
        text = template.write([plain_message(turn) for turn in _PROBE])
    except DataError as error:
        raise DataError(f"{folder}: {error}; choose another --template") from None
    between, ending = text.partition("B2")[2].partition("C3")[0], text.rpartition("D4")[2]
    pattern = "|".join(re.escape(token) for token in sorted(controls, key=len, reverse=True))
    found = (re.search(pattern, ending) or re.search(pattern, between)) if controls else None
    if found is None:
        raise DataError(
            f"{folder}: its chat template writes {between!r:.60} after an answer; expected a token"
            " that ends it, since the model would never stop; choose another --template"
        )
    return found.group()


def plain_message(turn: Message) -> dict[str, Any]:
    """Return a message of text alone as ``transformers`` has it."""
    return {"role": turn.role, "content": turn.text}


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(files.read_bytes(path)) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error!r:.80}); expected JSON") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: no JSON object")
    return values
