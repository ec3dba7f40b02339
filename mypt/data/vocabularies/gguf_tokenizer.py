"""A GGUF's tokenizer in the words of ``tokenizer.json``, which is proved like any other.

A GGUF has tokens, their types and merges or scores. How text is cut it only names; the table says
what the name means.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from mypt.data.vocabularies.engine import SPACE
from mypt.data.vocabularies.gguf_header import GGUFHeader
from mypt.errors import DataError
from mypt.text import shorten

ORDINARY, UNKNOWN, CONTROL, ADDED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens; any other is an ordinary one."""
ROLES: Final = {
    "bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "seperator": "sep",
    "mask": "mask", "cls": "cls",
}  # fmt: skip
"""What a GGUF calls the tokens that play a role, as it spells it, and ``transformers`` does."""
_MOST_CHARACTERS: Final = 1 << 23
"""In all tokens whose merges are made of scores; those of 262,144 have a fifth of it."""


class _Cuts(NamedTuple):
    """How a family cuts text, and what else its name says."""

    stages: tuple[dict[str, Any], ...]
    normalizer: dict[str, Any] | None = None
    whole: bool = False
    """Whether a piece that is a token is taken whole."""
    begins: bool = False
    """Whether a text begins with the BOS token where the file does not say."""


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip


def _bytes(*, cut: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": cut,
    }  # fmt: skip


def gpt4(digits: str) -> dict[str, Any]:
    """Return the stage that cuts as GPT-4 does, with an expression of its own for digits."""
    return _split(
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_GPT2: Final = _Cuts((_bytes(cut=True),))
_DIGITS: Final = _Cuts(({"type": "Digits", "individual_digits": True}, _bytes(cut=True)))
_LLAMA3: Final = _Cuts(
    (gpt4(r"\p{N}{1,3}"), _bytes(cut=False)), whole=True, begins=True
)  # fmt: skip
_QWEN: Final = _Cuts((gpt4(r"\p{N}"), _bytes(cut=False)), normalizer={"type": "NFC"})
CUTS: Final = {
    "default": _GPT2, "gpt-2": _GPT2, "smollm": _DIGITS, "llama-bpe": _LLAMA3, "llama3": _LLAMA3,
    "qwen2": _QWEN,
}  # fmt: skip
"""By ``tokenizer.ggml.pre``."""


def tokenizer_of(header: GGUFHeader) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what ``tokenizer.json`` and ``tokenizer_config.json`` would say.

    Raises:
        DataError: If it is of a kind that is not read here.
    """
    values = header.values
    kind = values.get("tokenizer.ggml.model")
    words, types = values.get("tokenizer.ggml.tokens"), values.get("tokenizer.ggml.token_type")
    types = types.tolist() if isinstance(types, np.ndarray) else None
    if kind not in ("gpt2", "llama") or not isinstance(words, list) or types is None:
        raise DataError(
            f"{header.path}: tokenizer.ggml.model is {shorten(repr(kind), 40)}; expected gpt2 or"
            " llama, with tokens and their types; prepare with another --tokenization"
        )
    if len(types) != len(words) or len(set(words)) < len(words):
        raise DataError(
            f"{header.path}: {len(words)} tokens, {len(set(words))} of them distinct, with"
            f" {len(types)} types; expected each once and with a type"
        )
    make = _bytes_model if kind == "gpt2" else _space_model
    config = {
        f"{theirs}_token": words[number]
        for ours, theirs in ROLES.items()
        if 0 <= (number := values.get(f"tokenizer.ggml.{ours}_token_id", -1)) < len(words)
    }
    begins = kind == "llama" or _cuts(header).begins
    config["add_bos_token"] = bool(values.get("tokenizer.ggml.add_bos_token", begins))
    if "tokenizer.chat_template" in values:
        config["chat_template"] = values["tokenizer.chat_template"]
    return make(header, words, types) | {"added_tokens": _added(words, types)}, config


def _added(words: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": number, "content": word, "special": kind != ADDED} | flags
        for number, (word, kind) in enumerate(zip(words, types, strict=True))
        if kind in (UNKNOWN, CONTROL, ADDED) and word.strip(" ")
    ]


def _cuts(header: GGUFHeader) -> _Cuts:
    name = header.values.get("tokenizer.ggml.pre", "default")
    if name not in CUTS:
        raise DataError(
            f"{header.path}: tokenizer.ggml.pre is {shorten(repr(name), 40)}; expected one of"
            f" {', '.join(CUTS)}; prepare with hf:FOLDER, the folder that it was made from"
        )
    return CUTS[name]


def _bytes_model(header: GGUFHeader, words: list[str], types: Sequence[int]) -> dict[str, Any]:
    """Return the parts of a BPE whose tokens are bytes, spelled as characters."""
    cuts = _cuts(header)
    merges = header.values.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise DataError(f"{header.path}: no tokenizer.ggml.merges; expected pairs of tokens")
    held = zip(words, types, strict=True)
    vocab = {word: n for n, (word, kind) in enumerate(held) if kind != UNUSED}
    if len(merges) == 1 and types[vocab.get(str(merges[0]).split(" ")[0], 0)] == CONTROL:
        merges = []  # what stands there where there are none, since no list may be empty
    return {
        "normalizer": cuts.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(cuts.stages)},
        "model": {
            "type": "BPE", "ignore_merges": cuts.whole, "byte_fallback": False, "vocab": vocab,
            "merges": merges,
        },
    }  # fmt: skip


def _space_model(header: GGUFHeader, words: list[str], types: Sequence[int]) -> dict[str, Any]:
    """Return the parts of a BPE of SentencePiece's, whose merges its scores say."""
    values = header.values
    scores, rewrites = values.get("tokenizer.ggml.scores"), "tokenizer.ggml.precompiled_charsmap"
    if not isinstance(scores, np.ndarray) or len(scores) != len(words) or rewrites in values:
        raise DataError(
            f"{header.path}: expected tokenizer.ggml.scores, one for each of {len(words)} tokens,"
            f" and no {rewrites}, which would lose text"
        )
    if sum(map(len, words)) > _MOST_CHARACTERS:
        raise DataError(f"{header.path}: more than {_MOST_CHARACTERS:,} characters in all tokens")
    # A run of spaces that was added is found by merges too.
    spelled = [word if word.strip(" ") else word.replace(" ", SPACE) for word in words]
    held = list(enumerate(zip(spelled, types, strict=True)))
    vocab = {word: number for number, (word, kind) in held if kind != UNUSED}
    merging = {
        word: number
        for number, (word, kind) in held
        if kind not in (UNKNOWN, CONTROL, UNUSED, BYTE)
    }
    best = np.where(np.array(types) == ADDED, np.inf, scores)  # found before any merge
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepends = values.get("tokenizer.ggml.add_space_prefix", True)
    first = [{"type": "Prepend", "prepend": SPACE}] if prepends else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*first, spaces]},
        "pre_tokenizer": None,
        "model": {
            "type": "BPE", "ignore_merges": False, "byte_fallback": True, "vocab": vocab,
            "merges": list(merges_of(merging, best.tolist())),
        },
    }  # fmt: skip


def merges_of(merging: dict[str, int], scores: list[float]) -> Iterator[list[str]]:
    """Yield the pairs of tokens that make another: the best score first, then long pieces."""
    pairs = []
    for word, number in merging.items():
        ways = (
            (word[:at], word[at:])
            for at in range(1, len(word))
            if word[:at] in merging and word[at:] in merging
        )
        for left, right in sorted(ways, key=lambda way: (merging[way[0]], merging[way[1]])):
            pairs.append((-scores[number], -len(left), -len(right), left, right))
    pairs.sort(key=lambda pair: pair[:3])
    for *_, left, right in pairs:
        yield [left, right]
