"""Choosing a token: greedy, and what temperature, top_k, top_p and min_p leave to chance."""

import math

import pytest
import torch

from mypt.errors import ConfigError
from mypt.inference.generation import sampling_of
from mypt.inference.sampling import Penalty, Sampler, Sampling

SHARES = (0.05, 0.5, 0.3, 0.15)  # of tokens 0, 1, 2, 3
LOGITS = torch.tensor([math.log(share) for share in SHARES])


def drawn(n: int = 3000, **choices: float) -> dict[int, float]:
    sampler = Sampler(Sampling(**choices))
    tokens = [sampler.choose(LOGITS) for _ in range(n)]
    return {token: tokens.count(token) / n for token in sorted(set(tokens))}


def test_temperature_0_takes_the_likeliest_and_draws_nothing():
    assert drawn(20) == {1: 1.0}


def test_temperature_1_draws_as_the_model_believes():
    assert drawn(temperature=1.0) == pytest.approx(dict(enumerate(SHARES)), abs=0.03)


def test_temperature_sharpens_and_flattens():
    weights = [share**2 for share in SHARES]  # temperature one half squares the odds
    expected = {i: weight / sum(weights) for i, weight in enumerate(weights)}
    assert drawn(temperature=0.5) == pytest.approx(expected, abs=0.03)
    assert drawn(temperature=1e-9) == {1: 1.0}
    assert drawn(temperature=1e9)[0] == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("choices", "left"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 2]),
        ({"top_k": 99}, [0, 1, 2, 3]),
        ({"top_p": 0.4}, [1]),
        ({"top_p": 5e-324}, [1]),  # is 0 in float32
        ({"top_p": 1e-320, "top_k": 2, "min_p": 1.0}, [1]),
        ({"top_p": 0.6}, [1, 2]),
        ({"top_p": 1.0}, [0, 1, 2, 3]),
        ({"min_p": 0.2}, [1, 2, 3]),  # 0.05 is a tenth of 0.5
        ({"min_p": 0.5}, [1, 2]),
        ({"min_p": 1.0}, [1]),
        ({"top_k": 3, "top_p": 0.83}, [1, 2]),  # 0.5 and 0.3 are 0.84 of what top_k leaves
    ],
)
def test_what_is_left_is_drawn_in_its_own_proportions(choices, left):
    found = drawn(temperature=1.0, **choices)
    whole = sum(SHARES[token] for token in left)
    assert found == pytest.approx({token: SHARES[token] / whole for token in left}, abs=0.03)


def test_huge_logits_under_a_tiny_temperature_are_no_nan():
    sampler = Sampler(Sampling(temperature=1e-9))
    assert sampler.choose((LOGITS + 3) * 1e30) == 1


def test_what_may_not_be_written_is_never_drawn():
    logits = LOGITS.clone()
    logits[1] = -math.inf
    sampler = Sampler(Sampling(temperature=5.0))
    assert 1 not in {sampler.choose(logits) for _ in range(300)}


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_p": 2.0}, "min_p"),
        ({"temprature": 1.0}, "did you mean 'temperature'"),
    ],
)
def test_a_senseless_choice_is_refused_in_one_line(choices, message):
    with pytest.raises(ConfigError, match=message) as caught:
        sampling_of(**choices)
    assert "\n" not in str(caught.value)


def test_a_penalty_makes_tokens_that_stood_there_less_likely_and_leaves_stops_alone():
    logits = torch.tensor([2.0, -2.0, 1.0, 3.0])
    penalty = Penalty([0, 0, 1], [2], Sampling(repetition_penalty=2.0))
    assert penalty.apply(logits).tolist() == [1.0, -4.0, 1.0, 3.0]
    penalty.add(2)
    penalty.add(3)
    assert penalty.apply(logits).tolist() == [1.0, -4.0, 1.0, 1.5]
