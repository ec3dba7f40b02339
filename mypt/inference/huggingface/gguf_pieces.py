"""``tokenizer.json`` in a GGUF's words; :mod:`mypt.data.vocabularies.gguf_tokenizer` reads them."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from mypt.data.vocabularies.engine import SPACE, flat
from mypt.data.vocabularies.gguf_tokenizer import (
    ADDED,
    BYTE,
    CONTROL,
    CUTS,
    ORDINARY,
    ROLES,
    UNKNOWN,
    UNUSED,
    gpt4,
    merges_of,
)
from mypt.data.vocabularies.published import PUBLISHED
from mypt.errors import ConfigError
from mypt.inference.huggingface.chat_template import CUT
from mypt.inference.huggingface.exports import for_oniguruma
from mypt.text import shorten

_GPT2_CUT: Final = for_oniguruma(PUBLISHED["gpt2"].pattern)
_SPELLINGS: Final = {
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]|\s+(?!\S)|\s+": gpt4(r"\p{N}{1,3}")["pattern"]["Regex"],
}
"""Expressions that cut as another does: rustbpe's, whose line feeds are taken all the same."""
_EVERYWHERE: Final = ([r"[\s\S]"], [r"[\s\S]{1,256}"])


def pieces_of(run: dict[str, Any], settings: dict[str, Any], size: int) -> dict[str, Any]:
    """Return the keys of ``tokenizer.ggml``, without that beginning.

    Args:
        run: What ``tokenizer.json`` says.
        settings: What ``tokenizer_config.json`` says.
        size: Rows of the model's embedding; those that no token has get one that no text holds.

    Raises:
        ConfigError: If llama.cpp has no name for how this tokenizer cuts text, or would merge
            otherwise; its ids would be others.
    """
    model = run["model"]
    added = {one["id"]: one for one in run["added_tokens"]}
    held = {number: word for word, number in model["vocab"].items()}
    held |= {number: one["content"] for number, one in added.items()}
    words, types = list[str](), list[int]()
    for number in range(size):
        word = held.get(number, "")
        unused = not word or CUT in word
        words.append(f"[unused {number}]" if unused else word)
        types.append(UNUSED if unused else _type(word, added.get(number), model))
    played = {ours: settings.get(f"{theirs}_token") for ours, theirs in ROLES.items()}
    if run["post_processor"]:
        played["bos"] = run["post_processor"]["single"][0]["SpecialToken"]["id"]
    roles = {f"{role}_token_id": words.index(t) for role, t in played.items() if t in words}
    found = {"tokens": words, "token_type": types, "add_bos_token": bool(run["post_processor"])}
    make = _scored if model["byte_fallback"] else _merged
    return found | roles | make(run, words, types)


def _type(word: str, added: dict[str, Any] | None, model: dict[str, Any]) -> int:
    if added is not None:
        return UNKNOWN if word == model["unk_token"] else CONTROL if added["special"] else ADDED
    fallback = model["byte_fallback"] and len(word) == 6 and word.startswith("<0x")
    return BYTE if fallback else ORDINARY


def _merged(run: dict[str, Any], words: list[str], types: list[int]) -> dict[str, Any]:
    """Return merges, and by which name llama.cpp cuts as this tokenizer does."""
    merges = [one if isinstance(one, str) else " ".join(one) for one in run["model"]["merges"]]
    normal = [s for s in flat(run["normalizer"], "normalizers") if s["type"] != "Replace"]
    cut = _cut_of(flat(run["pre_tokenizer"], "pretokenizers"))
    names = [
        name
        for name, cuts in CUTS.items()
        if cut == _cut_of(cuts.stages) and normal == ([cuts.normalizer] if cuts.normalizer else [])
    ]
    texts = [word for word, kind in zip(words, types, strict=True) if kind == ORDINARY]
    if cut in _EVERYWHERE and not normal and max(map(len, texts)) < 3:
        names = ["gpt-2"]  # any cut is fine where all merges are of the bytes of a character
    if not names:
        raise ConfigError(
            f"llama.cpp has no name for how this tokenizer cuts text, {shorten(str(cut), 80)};"
            " export --to hf instead"
        )
    if not merges:  # an empty list is not written; no text holds a control token twice
        control = words[types.index(CONTROL)]
        merges = [f"{control} {control}"]
    return {"model": "gpt2", "pre": names[-1], "merges": merges}


def _cut_of(stages: Sequence[dict[str, Any]]) -> list[str]:
    """Return the expressions that cut text, each spelled in one way."""
    cuts = list[str]()
    for stage in stages:
        if stage["type"] == "ByteLevel":
            cuts += [_GPT2_CUT] * bool(stage.get("use_regex", True))
        elif stage["type"] != "Split":
            cuts.append(str(sorted(stage.items())))
        elif stage["behavior"] != "Removed":
            said = for_oniguruma(str(stage["pattern"].get("Regex")))
            cuts.append(_SPELLINGS.get(said, said))
    return cuts


def _scored(run: dict[str, Any], words: list[str], types: list[int]) -> dict[str, Any]:
    """Return scores that lead to the same merges in the same order."""
    merges = [
        tuple(one.split(" ")) if isinstance(one, str) else tuple(one)
        for one in run["model"]["merges"]
    ]
    made = [left + right for left, right in merges]
    ranks = {word: rank for rank, word in reversed(list(enumerate(made)))}
    scores = [-float(ranks.get(word, len(made))) for word in words]
    best = {w: np.inf if k == ADDED else s for w, s, k in zip(words, scores, types, strict=True)}
    merging = {
        word: number
        for number, (word, kind) in enumerate(zip(words, types, strict=True))
        if kind not in (UNKNOWN, CONTROL, UNUSED, BYTE)
    }
    again = merges_of(merging, [best[word] for word in words])
    cuts = [s for s in flat(run["pre_tokenizer"], "pretokenizers") if s["type"] == "Metaspace"]
    schemes = {str(stage["prepend_scheme"]) for stage in cuts}
    if {"type": "Prepend", "prepend": SPACE} in flat(run["normalizer"], "normalizers"):
        schemes.add("always")
    if "first" in schemes or [tuple(pair) for pair in again] != merges:
        raise ConfigError(
            "llama.cpp has no place for how this tokenizer merges, or for a space before the first"
            " word alone; export --to hf instead"
        )
    return {"model": "llama", "scores": scores, "add_space_prefix": "always" in schemes}
