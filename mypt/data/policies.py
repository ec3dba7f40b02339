"""A mask policy in words, as people type it and as tables show it."""

from typing import Any

from mypt.config import MaskPolicy

WORDS: dict[str, dict[str, Any]] = {
    "last": {"last_turn_only": True},
    "no_stop": {"end_of_turn": False},
    "no_reasoning": {"reasoning": False},
    "no_tool_calls": {"tool_calls": False},
    "no_text": {"text": False},
}
"""Words beside the roles' names, and what each sets."""


def policy_words(policy: MaskPolicy) -> str:
    """Return the words that mean a policy, such as ``assistant,no_stop``."""
    values = policy.model_dump()
    on = [word for word, knobs in WORDS.items() if knobs.items() <= values.items()]
    return ",".join([*policy.roles, *on])
