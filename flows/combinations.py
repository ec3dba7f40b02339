"""What a sweep is asked for: knobs with several values each, and the runs that follow from them."""

import json
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from flows.forms import put, read_value, written
from mypt.config import PipelineConfig
from mypt.data.policies import parse_policy, policy_words
from mypt.errors import ConfigError
from mypt.parsing import parse_config
from mypt.text import shorten

POLICY = "mask.policy"
"""No knob of a config but a word for all of ``mask``, as ``mypt mask --policy`` takes it; of a
stage it is ``stages.NAME.mask.policy``."""
_MOST_RUNS = 256
_SHOWN = 40
_EXAMPLE = "--over sft.learning_rate=1e-4,3e-4"


class Combination(NamedTuple):
    """One run of a sweep."""

    settings: dict[str, str]
    """Each knob's value, in words; the seed is none of them."""
    config: PipelineConfig


class _Value(NamedTuple):
    path: tuple[str, ...]
    value: Any
    words: str


def combine(config: PipelineConfig, over: Sequence[str], seeds: int) -> tuple[Combination, ...]:
    """Return every combination of the values of all knobs, each with every seed, in order.

    Args:
        config: What all of them have but for the knobs.
        over: A knob each, as :func:`_read` understands it.
        seeds: How many seeds the fine-tuning of each has, and what it learns from pairs: the
            config's, and those after it.

    Raises:
        ConfigError: In one line, if a knob or one of its values is none, or nothing is varied.
    """
    knobs: dict[str, tuple[_Value, ...]] = {}
    for text in over:
        name, values = _read(text)
        if name in knobs:
            raise ConfigError(f"--over {name} is given twice; give it once, with all its values")
        knobs[name] = values
    if seeds > 1 and (varied := knobs.keys() & {name for name, _ in _seeds(config)}):
        said = f"--over {min(varied)} and --seeds {seeds}"
        raise ConfigError(f"{said} exclude each other; leave one out")
    if gated := next((stage.knobs for stage in config.chain if stage.gate), None):
        raise ConfigError(f"{gated}.gate: runs that it ends cannot be compared; leave it out")
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: expected at least 1")
    n_runs = seeds
    for values in knobs.values():
        n_runs *= len(values)
    if not 1 < n_runs <= _MOST_RUNS:
        raise ConfigError(
            f"{n_runs} runs would be made; expected 2 to {_MOST_RUNS}: name the values of a knob,"
            f" such as {_EXAMPLE}, or --seeds 2"
        )
    return tuple(
        combination
        for chosen in product(*knobs.values())
        for combination in _seeded(config, dict(zip(knobs, chosen, strict=True)), seeds)
    )


def _seeds(config: PipelineConfig) -> list[tuple[str, int]]:
    """Return the knob and the value of each seed that a sweep moves.

    They are those of all that is learned behind what runs share: from the tuning on.
    """
    chain = config.chain
    moved = chain[chain.index(config.tuned) :]
    return [(f"{stage.knobs}.seed", stage.train.seed) for stage in moved]


def _seeded(
    config: PipelineConfig, chosen: dict[str, _Value], seeds: int
) -> tuple[Combination, ...]:
    values = json.loads(json.dumps(written(config)))
    for name, one in chosen.items():
        put(values, one.path, one.value, _where(name, one.words))
        parse_config(values, PipelineConfig, _where(name, one.words))  # names whose fault it is
    made = parse_config(values, PipelineConfig, "--over")
    settings = {name: one.words for name, one in chosen.items()}
    found = []
    for more in range(seeds):
        for name, seed in _seeds(made):
            put(values, name.split("."), seed + more, "--seeds")
        found.append(Combination(settings, parse_config(values, PipelineConfig, "--seeds")))
    return tuple(found) if seeds > 1 else (Combination(settings, made),)


def _read(text: str) -> tuple[str, tuple[_Value, ...]]:
    """Return a knob and its values.

    ``KNOB=VALUE,VALUE``; with a comma in a value, ``KNOB=VALUE|VALUE`` or ``KNOB=[VALUE, VALUE]``,
    a JSON list of them. Words of a policy are joined by + where commas divide policies.

    Raises:
        ConfigError: If the text is none of these, or a value stands twice.
    """
    name, equals, said = text.partition("=")
    name = name.strip()
    if not name or not equals:
        raise ConfigError(
            f"--over {shorten(text, _SHOWN)!r}: expected KNOB=VALUE,VALUE such as {_EXAMPLE}"
        )
    of_policy = name == POLICY or name.endswith(f".{POLICY}")
    if of_policy:
        _refuse_one_policy(name, said)
    found: list[_Value] = []
    for value in _divided(name, said):
        one = _policy(name, value) if of_policy else _plain(name, value)
        if any(one.value == other.value for other in found):
            raise ConfigError(f"{_where(name, one.words)} stands twice; give each value once")
        found.append(one)
    return name, tuple(found)


def _divided(name: str, said: str) -> list[Any]:
    """Return the values as they were typed; those of a JSON list as they are."""
    start = said.lstrip()[:1]
    if start in ("[", "{"):
        try:
            values = json.loads(said if start == "[" else f"[{said}]")
        except ValueError as error:
            raise ConfigError(
                f"--over {name}: no JSON list ({error}); expected [VALUE, VALUE]"
            ) from None
        return list(values)
    words = [word.strip() for word in said.split("|" if "|" in said else ",")]
    if "" in words:
        raise ConfigError(
            f"--over {name}={shorten(said, _SHOWN)}: an empty value; expected VALUE,VALUE, or"
            " VALUE|VALUE where a value has commas"
        )
    return words


def _refuse_one_policy(name: str, said: str) -> None:
    """Refuse words that are one policy, by which somebody may mean several.

    Raises:
        ConfigError: If they are.
    """
    if said.lstrip()[:1] in ("[", "{") or "|" in said or "," not in said:
        return
    try:
        parse_policy(said)
    except ConfigError:
        return  # so commas divide policies
    raise ConfigError(
        f"--over {name}={shorten(said, _SHOWN)} may be one policy or several; join the words of"
        " one by +, and divide policies by |, such as assistant|assistant+user=0.1"
    )


def _policy(name: str, value: Any) -> _Value:
    said = value if isinstance(value, str) else json.dumps(value)
    words = said if said.lstrip().startswith("{") else said.replace("+", ",")
    policy = parse_policy(words, f"--over {name}")
    return _Value(tuple(name.split("."))[:-1], policy.model_dump(mode="json"), policy_words(policy))


def _plain(name: str, value: Any) -> _Value:
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _Value(
        tuple(name.split(".")), read_value(value) if isinstance(value, str) else value, words
    )


def _where(name: str, words: str) -> str:
    return f"--over {name}={shorten(words, _SHOWN)}"
