"""A mask policy in the words that people type, wherever one is typed or shown."""

import difflib
import math
from pathlib import Path
from typing import Any, Final

from mypt.config import WEIGHED, MaskPolicy
from mypt.data.manifest import MaskRecord
from mypt.errors import ConfigError
from mypt.parsing import parse_config, parse_json, read_config

TYPED_ROLES: Final = ("system", "user", "assistant")
WORDS: Final[dict[str, dict[str, Any]]] = {
    "no_role": {"roles": ()},
    "last": {"last_turn_only": True},
    "last_round": {"last_round_only": True},
    "no_stop": {"end_of_turn": False},
    "no_reasoning": {"reasoning": False},
    "empty_reasoning": {"skip_empty_reasoning": False},
    "no_tool_calls": {"tool_calls": False},
    "skip_failed_calls": {"skip_failed_calls": True},
    "context": {"context": True},
    "no_cite": {"cite": False},
    "no_text": {"text": False},
}
"""Words beside the roles' names, and what each sets."""
EVERY_TOKEN: Final = "every token"
"""What a training without masks learns, whatever masks its dataset has."""
_ABOVE: Final = "reasoning_above"
_LONGEST_PATH: Final = 4096


def policy_words(policy: MaskPolicy | None) -> str:
    """Return the words that mean a policy, such as ``assistant,stop=2``; None: no policy."""
    if policy is None:
        return "made by hand"
    values = policy.model_dump()
    weighed = {word: f"{word}={weight!r}" for word, weight in policy.weights.items()}
    on = [
        weighed.pop(word, word) for word, knobs in WORDS.items() if knobs.items() <= values.items()
    ]
    named = [weighed.pop(role, role) for role in policy.roles]
    above = [f"{_ABOVE}={policy.reasoning_above}"] if policy.reasoning_above else []
    return ",".join([*named, *on, *above, *weighed.values()])


def policy_in_force(used: bool | None, mask: MaskRecord | None) -> str:
    """Return whose tokens a training learns, in words.

    Args:
        used: Whether it uses the masks of its dataset.
        mask: What they are; None where there are none.
    """
    return policy_words(mask.policy) if used and mask else EVERY_TOKEN


def parse_policy(text: str, flag: str = "--policy") -> MaskPolicy:
    """Return the policy that ``text`` means, e.g. ``assistant``, ``user=0.1,assistant,last``.

    Args:
        text: Comma-separated roles, assistant where there are none, and :data:`WORDS`; a role, a
            kind of part or source:NAME with = and a weight; a JSON object; or a file of one.
        flag: What it was given as, for errors.

    Raises:
        ConfigError: If it is none of these.
    """
    if text.lstrip().startswith("{"):
        return parse_config(parse_json(text, flag), MaskPolicy, flag)
    if len(text) < _LONGEST_PATH and Path(text).is_file():
        return read_config(Path(text), MaskPolicy)
    values: dict[str, Any] = {}
    weights: dict[str, float] = {}
    words = [word.strip() for word in text.split(",")]
    for place, word in enumerate(words):
        name, is_weight, value = word.rpartition("=")
        if name == _ABOVE and value.isdigit():
            values[name] = int(value)
        elif is_weight:
            weights[name] = _weight(name, value, weights, flag)
            words[place] = name
        elif word not in TYPED_ROLES and word not in WORDS:
            near = difflib.get_close_matches(word, (*TYPED_ROLES, *WORDS), n=1)
            raise ConfigError(
                f"{flag}: {word[:60]!r} is no word of a policy;"
                f"{f' did you mean {near[0]}?' if near else ''} expected some of"
                f" {', '.join((*TYPED_ROLES, *WORDS))}, a weight such as stop=2, joined by"
                " commas, a JSON object or a file of one"
            )
        values |= WORDS.get(words[place], {})
    roles = tuple(word for word in words if word in TYPED_ROLES)
    if roles and "roles" in values:
        raise ConfigError(f"{flag}: {roles[0]} and no_role exclude each other; leave one of them")
    values |= {"weights": weights} if weights else {}
    return parse_config(values | ({"roles": roles} if roles else {}), MaskPolicy, flag)


def _weight(name: str, value: str, others: dict[str, float], flag: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if name in others:
        raise ConfigError(f"{flag}: {name} has two weights; leave one of them")
    if not math.isfinite(weight) or not (name in WEIGHED or name.startswith("source:")):
        raise ConfigError(
            f"{flag}: {f'{name}={value}'[:60]!r} is no weight; expected one of"
            f" {', '.join(WEIGHED)} or source:NAME, = and a number, such as stop=2"
        )
    return weight
