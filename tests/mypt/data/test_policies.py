"""A policy as people type it: words, JSON, or a file of JSON."""

from itertools import permutations, product

import pytest

from mypt.config import MaskPolicy
from mypt.data.policies import TYPED_ROLES, WORDS, parse_policy, policy_words
from mypt.errors import ConfigError

POLICIES = [
    ("assistant", MaskPolicy()),
    ("last", MaskPolicy(last_turn_only=True)),
    ("user, assistant,last", MaskPolicy(roles=("user", "assistant"), last_turn_only=True)),
    ("system,no_stop", MaskPolicy(roles=("system",), end_of_turn=False)),
    ("no_reasoning,no_tool_calls", MaskPolicy(reasoning=False, tool_calls=False)),
    ("skip_failed_calls", MaskPolicy(skip_failed_calls=True)),
    ("assistant,context", MaskPolicy(context=True)),
    ("context=0.1", MaskPolicy(context=True, weights={"context": 0.1})),
    ("no_cite", MaskPolicy(cite=False)),
    ("cite=2", MaskPolicy(weights={"cite": 2})),
    ("assistant,no_text", MaskPolicy(text=False)),
    ("no_role", MaskPolicy(roles=())),
    ("last_round", MaskPolicy(last_round_only=True)),
    ("reasoning_above=4", MaskPolicy(reasoning_above=4)),
    ("stop=2", MaskPolicy(weights={"stop": 2.0})),
    (
        "assistant,stop=2,user=0.1",
        MaskPolicy(roles=("assistant", "user"), weights={"stop": 2.0, "user": 0.1}),
    ),
    (
        "user,assistant=3,source:a=b=0.5",
        MaskPolicy(roles=("user", "assistant"), weights={"assistant": 3.0, "source:a=b": 0.5}),
    ),
]


@pytest.mark.parametrize(("text", "policy"), POLICIES)
def test_words_mean_a_policy(text, policy):
    assert parse_policy(text) == policy


_OTHERS = ("roles", "weights", "reasoning_above")


def test_every_policy_is_told_in_words_that_mean_it_again():
    roles = [some for count in range(4) for some in permutations(TYPED_ROLES, count)]
    knobs = [name for name in MaskPolicy.model_fields if name not in _OTHERS]
    told = set()
    for some, *values in product(roles, *[(True, False)] * len(knobs)):
        given = dict(zip(knobs, values, strict=True))
        if given["last_turn_only"] and given["last_round_only"]:
            continue
        policy = MaskPolicy(roles=some, **given)
        words = policy_words(policy)
        assert parse_policy(words) == policy
        assert policy_words(parse_policy(words)) == words
        told.add(words)
    assert len(told) == len(roles) * 3 * 2 ** (len(knobs) - 2)
    assert {word for words in told for word in words.split(",")} == {*TYPED_ROLES, *WORDS}


def test_masks_that_no_policy_made_are_told_as_such():
    assert policy_words(None) == "made by hand"


@pytest.mark.parametrize(("_", "policy"), POLICIES)
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
        ("last,last_round", "exclude each other"),
        ("stop=two", "'stop=two' is no weight"),
        ("header=1", "'header=1' is no weight"),
        ("stop=nan", "'stop=nan' is no weight"),
        ("stop=-1", "stop -1; expected 0 to 1000"),
        ("stop=1,stop=2", "stop has two weights"),
        ("no_stop,stop=2", "weights: stop is not supervised"),
        ('{"weights": {"user": 2}}', "weights: user is not supervised"),
        ('{"weights": {"end": 2}}', "'end' cannot be weighed"),
        ("user,no_role", "user and no_role exclude each other"),
        ('{"roles": ["user", "user"]}', "expected each role once"),
        ('{"roles": ["tool"]}', "role 'tool' is never supervised"),
        ('{"roles": "assistant"}', "roles: expected a valid array"),
        ('{"role": ["user"]}', "did you mean 'roles'"),
        ('{"end_of_turn": 0}', "end_of_turn: expected a valid boolean"),
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
