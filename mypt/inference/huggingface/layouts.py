"""``config.json`` of ``transformers`` as an architecture of ours, and back; nothing is run."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from mypt.config import Architecture, RopeScaling
from mypt.errors import CheckpointError, ConfigError
from mypt.inference.huggingface.families import FAMILIES, HARMLESS, REQUIRED, Family
from mypt.parsing import parse_config
from mypt.text import shorten

_ROPE_KEYS: Final = frozenset({
    "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "rotary_pct",
    "rotary_emb_base", "rope_local_base_freq", "original_max_position_embeddings",
})  # fmt: skip
_WINDOW_KEYS: Final = frozenset({
    "sliding_window", "layer_types", "sliding_window_pattern", "_sliding_window_pattern",
})  # fmt: skip
_NOPE_KEYS: Final = frozenset({"no_rope_layers", "no_rope_layer_interval"})
_SCALINGS: Final = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    }),
    "longrope": frozenset({
        "factor", "short_factor", "long_factor", "attention_factor",
        "original_max_position_embeddings",
    }),
    "yarn": frozenset({
        "factor", "beta_fast", "beta_slow", "attention_factor", "truncate",
        "original_max_position_embeddings",
    }),
}  # fmt: skip
"""Kinds of stretched positions, with the keys that each has."""


def read_layout(config: dict[str, Any], where: Path) -> tuple[str, Architecture]:
    """Return the family and the architecture that a ``config.json`` says.

    Args:
        config: The file's object.
        where: The file, for errors.

    Raises:
        CheckpointError: If it asks for arithmetic that the model has not, or does not say all.
        ConfigError: If a size is none.
    """
    refuse_quantised(config, where)
    name = config.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise CheckpointError(
            f"{where}: model_type {shorten(repr(name), 60)}; expected one of {', '.join(FAMILIES)}"
        )
    try:
        _refuse_unknown(config, family, where)
        values = _values(config, family, where)
    except (TypeError, AttributeError, ValueError, ArithmeticError, KeyError) as error:
        raise CheckpointError(
            f"{where}: {error!r:.80}; expected what transformers writes"
        ) from None
    return str(name), parse_config(values, Architecture, str(where))


def write_layout(name: str, model: Architecture) -> dict[str, Any]:
    """Return ``config.json`` of a family, without ids of tokens and type of numbers.

    What of the model the family has no place for is not in it: :func:`family_of` tells.
    """
    family = FAMILIES[name]
    values: dict[str, Any] = {"architectures": [family.architecture], "model_type": name}
    for theirs, key in family.keys.items():
        values[theirs] = _written(key.ours, model)
    values |= {key: allowed[-1] for key, allowed in family.only.items()}
    if "attention_bias" in family.keys:
        values["mlp_bias"] = model.bias
    if family.rope is not None:
        values |= _write_rope(family, model)
    if family.window != "none":
        values |= _write_window(family, model)
    if family.nope:
        rope = [int(model.is_turned(block)) for block in range(model.n_layer)]
        values |= {"no_rope_layers": rope, "no_rope_layer_interval": model.nope_every or 1 << 20}
    if "embedding_scale" in family.fixed:
        scale = model.attention_scale
        values["query_pre_attn_scalar"] = model.head_width if scale is None else round(scale**-2)
    return values


def family_of(model: Architecture, among: Iterable[str] = FAMILIES) -> str:
    """Return which of some families a model belongs to: its config, read back, is the same model.

    Raises:
        ConfigError: If none has a place for all its parts; the message names the options.
    """
    wanted = _plain(model)
    best: tuple[str, dict[str, Any]] | None = None
    for name in among:
        family = FAMILIES[name]
        if (family.rope is None) == (model.pos_encoding == "rope"):
            continue
        try:
            found = _plain(read_layout(write_layout(name, model), Path("config.json"))[1])
        except (CheckpointError, ConfigError):
            continue
        if family.always_bias:
            found |= {key: wanted[key] for key in ("bias", "qkv_bias")}
        odd = {key: value for key, value in found.items() if value != wanted[key]}
        if not odd:
            return name
        if best is None or len(odd) < len(best[1]):
            best = name, odd
    name, odd = best or ("llama", {"pos_encoding": "rope"})
    said = [f"{key} {wanted[key]!r} (expected {value!r})" for key, value in odd.items()]
    raise ConfigError(
        f"{FAMILIES[name].architecture} has no place for {', '.join(said)}; such a model cannot be"
        " exported so"
    )


def _plain(model: Architecture) -> dict[str, Any]:
    """Return the values that arithmetic depends on, each said in one way."""
    values = dict(model) | {
        "block_size": model.longest, "longest_context": None, "mlp_width": model.inner_width,
        "n_kv_head": model.key_heads, "norm_eps": model.eps, "head_dim": model.head_width,
        "qk_norm_eps": model.qk_norm_eps or 1e-6,
        "attention_scale": model.attention_scale or model.head_width**-0.5,
        "rope_width": model.turned_width, "qkv_bias": model.qkv_bias or model.bias,
        "nope_every": model.nope_every if model.nope_every <= model.n_layer else 0,
        "full_every": model.full_every if model.full_every <= model.n_layer else 0,
    }  # fmt: skip
    if model.pos_encoding == "learned":
        values |= dict.fromkeys(("rope_base", "rope_scaling", "rope_width", "nope_every"))
    if model.window is None:
        values |= dict.fromkeys(("full_every", "window_rope_base"))
    return values


def refuse_quantised(config: dict[str, Any], where: Path) -> None:
    """Refuse a config whose weights are packed and scaled, by a CheckpointError."""
    if "quantization_config" in config:
        held = config["quantization_config"]
        method = held.get("quant_method") if isinstance(held, dict) else held
        raise CheckpointError(
            f"{where}: quantization_config {shorten(repr(method), 40)}: its weights are packed and"
            " scaled; expected float32, bfloat16 or float16, take the model's plain weights"
        )


def _refuse_unknown(config: dict[str, Any], family: Family, where: Path) -> None:
    """Refuse each key that asks for other arithmetic, or whose meaning is not known."""
    for key, allowed in family.only.items():
        if key in config and config[key] not in allowed:
            raise CheckpointError(
                f"{where}: {key} is {shorten(repr(config[key]), 60)}; expected {allowed[-1]!r}, the"
                " model has no other here"
            )
    known = HARMLESS | family.keys.keys() | family.only.keys()
    windows = family.window != "none" or "use_sliding_window" in family.only
    known |= _WINDOW_KEYS if windows else set()
    known |= _ROPE_KEYS if family.rope is not None else set()
    known |= _NOPE_KEYS if family.nope else set()
    known |= {"mlp_bias"} if "attention_bias" in family.keys else set()
    known |= {"query_pre_attn_scalar"} if "embedding_scale" in family.fixed else set()
    off = (None, False)
    odd = [k for k, v in config.items() if k not in known and not any(v is value for value in off)]
    if odd:
        raise CheckpointError(
            f"{where}: {shorten(odd[0], 60)} is {shorten(repr(config[odd[0]]), 60)}, a key that"
            f" {family.architecture} has not here; remove it if it changes no arithmetic"
        )


def _values(config: dict[str, Any], family: Family, where: Path) -> dict[str, Any]:
    """Return our fields."""
    values: dict[str, Any] = {}
    for theirs, key in family.keys.items():
        value = config.get(theirs, key.default)
        if value is REQUIRED:
            raise CheckpointError(f"{where}: {theirs} is missing; add it")
        values[key.ours] = value
    parse_config(values, Architecture, str(where))  # before lists as long as it has blocks
    computed = {"norm_eps": values["norm_eps"], "sqrt(n_embd)": math.sqrt(values["n_embd"])}
    values |= {ours: computed.get(value, value) for ours, value in family.fixed.items()}
    if "attention_bias" in family.keys and config.get("mlp_bias", False) != values["bias"]:
        raise CheckpointError(
            f"{where}: mlp_bias is {config.get('mlp_bias')!r}; expected {values['bias']!r} as"
            " attention_bias, the model has no other here"
        )
    if family.rope is not None:
        values |= _read_rope(config, family, values, where)
    values |= _read_window(config, family, values, where)
    if family.nope:
        values["nope_every"] = _read_nope(config, values["n_layer"], where)
    if "embedding_scale" in family.fixed:
        asked = config.get("query_pre_attn_scalar", 256)
        values["attention_scale"] = None if asked == values["head_dim"] else asked**-0.5
    return values


def _written(ours: str, model: Architecture) -> Any:
    """Return the value of a field of ours where a family has a key for it."""
    said = {
        "block_size": model.longest, "mlp_width": model.inner_width, "norm_eps": model.eps,
        "n_kv_head": model.key_heads, "head_dim": model.head_width,
        "attention_scale": model.attention_scale or model.head_width**-0.5,
    }  # fmt: skip
    return said[ours] if ours in said else getattr(model, ours)


def _read_rope(
    config: dict[str, Any], family: Family, values: dict[str, Any], where: Path
) -> dict[str, Any]:
    """Return our fields of rotary positions; newer files have them in an object of their own."""
    old = {key: config.get(key, default) for key, default in (family.rope or {}).items()}
    base, *others = old.values()
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    near: dict[str, Any] = {}
    if family.window == "pattern":
        if said.keys() & {"full_attention", "sliding_attention"}:
            said, near = said.get("full_attention", {}), said.get("sliding_attention", {})
        if near.get("rope_type", "default") != "default":
            raise CheckpointError(
                f"{where}: rope_type of sliding_attention is {near['rope_type']!r}; expected"
                " default"
            )
    head = values.get("head_dim") or values["n_embd"] // values["n_head"]
    share = 1.0
    if {"partial_rotary_factor", "rotary_pct"} & old.keys():
        share = said.get("partial_rotary_factor", others[0])
    elif said.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise CheckpointError(
            f"{where}: partial_rotary_factor; {family.architecture} turns whole heads"
        )
    turned = int(head * share)
    found = {
        "rope_base": float(said.get("rope_theta", base)),
        "rope_width": None if turned == head else turned,
    }
    if family.window == "pattern":
        found["window_rope_base"] = float(near.get("rope_theta", others[0]))
    return found | _read_scaling(config, said, values | found, where)


def _read_scaling(
    config: dict[str, Any], said: dict[str, Any], values: dict[str, Any], where: Path
) -> dict[str, Any]:
    kind = said.get("rope_type", said.get("type", "default"))
    if kind not in _SCALINGS:
        raise CheckpointError(
            f"{where}: rope_type is {shorten(repr(kind), 40)}; expected one of"
            f" {', '.join(_SCALINGS)}"
        )
    basic = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    if kind == "default":
        basic |= {"original_max_position_embeddings"}  # which transformers reads of no such file
    if odd := sorted(said.keys() - basic - _SCALINGS[kind]):
        raise CheckpointError(f"{where}: {shorten(odd[0], 40)} among positions of kind {kind}")
    if kind == "default":
        return {}
    longest = values["block_size"]
    asked = config.get("original_max_position_embeddings", longest)
    original = said.get("original_max_position_embeddings", asked)
    if kind == "yarn":
        head = values.get("head_dim") or values["n_embd"] // values["n_head"]
        width, base = values["rope_width"] or head, values["rope_base"]
        return {"rope_scaling": _read_yarn(said, base, width, original)}
    if kind == "longrope":
        factor = said.get("factor") or longest / original
        gain = said.get("attention_factor")
        if gain is None:
            gain = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        factors = [float(factor) for factor in said["short_factor"]]
        scaling = {"kind": "factors", "factors": factors, "gain": float(gain)}
        return {"rope_scaling": scaling, "block_size": min(longest, original)}
    scaling = {"kind": kind, "factor": float(said["factor"])}
    if kind == "llama3":
        scaling |= {
            "low_freq_factor": float(said["low_freq_factor"]),
            "high_freq_factor": float(said["high_freq_factor"]),
            "original_context": original,
        }
    return {"rope_scaling": scaling}


def _read_yarn(said: dict[str, Any], base: float, width: int, original: int) -> dict[str, Any]:
    """Return YaRN's divisors: of slow pairs ``factor``, of quick ones 1, mixed between them."""
    factor = float(said["factor"])
    turns = (said.get("beta_fast") or 32, said.get("beta_slow") or 1)
    first, last = (
        width * math.log(original / (n * 2 * math.pi)) / (2 * math.log(base)) for n in turns
    )
    if said.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last += 0.001 if first == last else 0
    slow = [min(1.0, max(0.0, (pair - first) / (last - first))) for pair in range(width // 2)]
    gain = said.get("attention_factor") or (0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
    factors = [1 / (share / factor + 1 - share) for share in slow]
    return {"kind": "factors", "factors": factors, "gain": float(gain)}


def _write_rope(family: Family, model: Architecture) -> dict[str, Any]:
    old = dict.fromkeys(family.rope or {}, 0.0)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rope_base}
    scaling = model.rope_scaling
    if scaling is not None:
        rope |= _write_scaling(scaling, model)
    names = iter(old)
    values: dict[str, Any] = {next(names): model.rope_base}
    if {"partial_rotary_factor", "rotary_pct"} & old.keys():
        rope["partial_rotary_factor"] = model.turned_width / model.head_width
        values[next(names)] = rope["partial_rotary_factor"]
    if family.window == "pattern":
        near = model.window_rope_base or model.rope_base
        values[next(names)] = near
        sliding = {"rope_type": "default", "rope_theta": near}
        return values | {"rope_parameters": {"full_attention": rope, "sliding_attention": sliding}}
    if scaling is not None and scaling.kind == "factors":
        values["original_max_position_embeddings"] = model.longest
    return values | {"rope_parameters": rope}


def _write_scaling(scaling: RopeScaling, model: Architecture) -> dict[str, Any]:
    if scaling.kind == "factors":
        factors = list(scaling.factors)
        return {
            "rope_type": "longrope", "short_factor": factors, "long_factor": factors,
            "attention_factor": scaling.gain, "original_max_position_embeddings": model.longest,
        }  # fmt: skip
    values = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        values |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return values


def _read_window(
    config: dict[str, Any], family: Family, values: dict[str, Any], where: Path
) -> dict[str, Any]:
    """Return our fields of windows; ``layer_types`` must be what they say."""
    n = values["n_layer"]
    window = config.get("sliding_window", 4096 if family.window != "none" else None)
    types = config.get("layer_types")
    every = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", 6))
    if family.window == "none" or window is None:
        expected = [True] * n
    elif family.window == "all":
        expected = [False] * n
    elif types is None:
        expected = [(block + 1) % every == 0 for block in range(n)]
    else:
        expected = [kind == "full_attention" for kind in types]
    full = _every(expected)
    names = ["full_attention" if whole else "sliding_attention" for whole in expected]
    if full is None or types not in (None, names):
        raise CheckpointError(
            f"{where}: layer_types is {shorten(repr(types), 60)}; expected full_attention"
            f" {'in every block' if family.window == 'none' else 'in every n-th block'}"
        )
    if all(expected):
        return {"window_rope_base": None} if family.window == "pattern" else {}
    return {"window": window, "full_every": full}


def _write_window(family: Family, model: Architecture) -> dict[str, Any]:
    narrow = [model.is_windowed(block) for block in range(model.n_layer)]
    if family.window == "all":
        return {"sliding_window": model.window}
    return {
        "sliding_window": model.window or model.longest,
        "layer_types": ["sliding_attention" if one else "full_attention" for one in narrow],
    }


def _read_nope(config: dict[str, Any], n_layer: int, where: Path) -> int:
    """Return every how many blocks one has no rotary positions."""
    held = config.get("no_rope_layers")
    interval = config.get("no_rope_layer_interval", 4)
    rope = held or [(block + 1) % interval != 0 for block in range(n_layer)]
    every = _every([not turned for turned in rope]) if len(rope) == n_layer else None
    if every is None:
        raise CheckpointError(
            f"{where}: no_rope_layers is {shorten(repr(held), 60)}; expected {n_layer}, 0 in"
            " every n-th"
        )
    return every


def _every(marked: list[bool]) -> int | None:
    """Return n where every n-th is marked and no other, 0 where none is; None of no such n."""
    every = marked.index(True) + 1 if any(marked) else 0
    fits = all(one == (every > 0 and (at + 1) % every == 0) for at, one in enumerate(marked))
    return every if fits else None
