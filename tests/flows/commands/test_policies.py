"""A policy as people type it: words, JSON, or a file of JSON."""

import pytest

from flows.commands.flags import parse_policy
from mypt.config import MaskPolicy
from mypt.data.masking import policy_words
from mypt.errors import ConfigError

WORDS = [
    ("assistant", MaskPolicy()),
    ("last", MaskPolicy(last_turn_only=True)),
    ("user, assistant,last", MaskPolicy(roles=("user", "assistant"), last_turn_only=True)),
    ("system,no_stop", MaskPolicy(roles=("system",), end_of_turn=False)),
    ("no_reasoning,no_tool_calls", MaskPolicy(reasoning=False, tool_calls=False)),
    ("assistant,no_text", MaskPolicy(text=False)),
]


@pytest.mark.parametrize(("text", "policy"), WORDS)
def test_words_mean_a_policy_and_a_policy_is_told_in_words_again(text, policy):
    assert parse_policy(text) == policy
    assert parse_policy(policy_words(policy)) == policy


@pytest.mark.parametrize(("_", "policy"), WORDS)
def test_a_policy_may_be_json_or_a_file_of_it_with_comments(_, policy, tmp_path):
    text = policy.model_dump_json()
    path = tmp_path / "policy.json"
    path.write_text(f"// mine\n{text}")
    assert parse_policy(text) == parse_policy(str(path)) == policy


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tool", "'tool' is no word of a policy"),
        ("asistant", "'asistant' is no word of a policy"),
        ("assistant,,last", "'' is no word of a policy"),
        ("assistant,assistant", "expected each role once"),
        ('{"roles": ["user", "user"]}', "expected each role once"),
        ('{"roles": ["tool"]}', "role 'tool' is never supervised"),
        ('{"roles": "assistant"}', "roles: expected a list"),
        ('{"role": ["user"]}', "did you mean 'roles'"),
        ('{"end_of_turn": 0}', "end_of_turn: expected true or false"),
        ('{"roles": ["user"], "roles": ["assistant"]}', 'Duplicate key "roles"'),
        ('{"roles": ', "no JSON"),
        ('{"roles":' + "[" * 50_000, "nested too deeply"),
    ],
    ids=lambda value: value[:40],
)
def test_what_is_no_policy_is_one_line_that_says_why(text, says):
    with pytest.raises(ConfigError) as error:
        parse_policy(text)
    assert str(error.value).startswith("--policy: ")
    assert says in str(error.value)
