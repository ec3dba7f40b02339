"""A mask policy as people type it: words, JSON, or a file of JSON."""

from pathlib import Path
from typing import Any

from mypt.config import MaskPolicy
from mypt.errors import ConfigError
from mypt.parsing import parse_config, parse_json, read_config

_LONGEST_PATH = 4096
ROLES = ("system", "user", "assistant")


def parse_policy(text: str, flag: str = "--policy") -> MaskPolicy:
    """Return the policy that ``text`` means, e.g. ``assistant``, ``user,assistant,last``.

    Args:
        text: Comma-separated roles and words (:data:`mypt.data.masking.WORDS`); a JSON object; or a
            file of one.
        flag: What it was given as, for errors.

    Raises:
        ConfigError: If it is none of these.
    """
    from mypt.data.masking import WORDS

    if text.lstrip().startswith("{"):
        return parse_config(parse_json(text, flag), MaskPolicy, flag)
    if len(text) < _LONGEST_PATH and Path(text).is_file():
        return read_config(Path(text), MaskPolicy)
    values: dict[str, Any] = {}
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in ROLES and word not in WORDS:
            raise ConfigError(
                f"{flag}: {word[:60]!r} is no word of a policy; expected some of"
                f" {', '.join((*ROLES, *WORDS))}, joined by"
                " commas, a JSON object or a file of one"
            )
        values |= WORDS.get(word, {})
    roles = tuple(word for word in words if word in ROLES)
    return parse_config(values | ({"roles": roles} if roles else {}), MaskPolicy, flag)
