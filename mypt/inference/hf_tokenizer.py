"""Our tokenizer as ``tokenizer.json``: the ids that ``tokenizers`` gives are ours."""

import re
from typing import Any, Final

from mypt.data.tokenizer import Tokenizer
from mypt.data.vocabularies.vocabulary import CHARACTER, Vocabulary
from mypt.inference.hf_template import CUT, GLUE


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return ``tokenizer.json``."""
    vocabulary, specials = tokenizer.vocabulary, tokenizer.special_tokens
    held = {t: i for t, i in specials.items() if i < len(vocabulary.tokens)}
    words = {_spelled(t): i for i, t in enumerate(vocabulary.tokens) if t} | held
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number, "content": token, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": True,
            }
            for token, number in sorted(_added(vocabulary, specials).items(), key=_by_id)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": GLUE}, "content": ""},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                _split({"String": CUT}, "Removed"),
                _split({"Regex": _for_oniguruma(vocabulary.pattern)}, "Isolated"),
                {
                    "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
                    "use_regex": False,
                },
            ],
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
            "use_regex": False,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # tiktoken takes a piece that is a token as it is, whether merges lead to it or not;
            # a special token among the ordinary ones must not be taken so.
            "ignore_merges": not held,
            "vocab": dict(sorted(words.items(), key=_by_id)),
            "merges": _merges(vocabulary),
        },
    }  # fmt: skip


def tokenizer_config(tokenizer: Tokenizer, block_size: int) -> dict[str, Any]:
    """Return ``tokenizer_config.json``."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "eos_token": tokenizer.template.stop,
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }


def _added(vocabulary: Vocabulary, specials: dict[str, int]) -> dict[str, int]:
    """Return the special tokens, and a name that no text holds for each id that has no token.

    ``tokenizers`` counts on from the last id and does not read the ones that it is given.
    """
    used = set(specials.values())
    following = range(len(vocabulary.tokens), max(used, default=0) + 1)
    return specials | {f"{CUT}unused {i}{CUT}": i for i in following if i not in used}


def _merges(vocabulary: Vocabulary) -> list[list[str]]:
    """Return every pair of tokens that makes a third, in the order of the third's id."""
    ranks = {token: rank for rank, token in enumerate(vocabulary.tokens) if token}
    merges = []
    for token in ranks:
        pairs = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [[_spelled(left), _spelled(right)] for left, right in known]
    return merges


_POSSESSIVE: Final = re.compile(r"(?<!\\)([+*?]|\{\d+(?:,\d*)?\})\+")


def _for_oniguruma(pattern: str) -> str:
    r"""Return a pattern of tiktoken's as Oniguruma, which ``tokenizers`` uses, understands it.

    There ``{1,3}+`` repeats once more and ``$`` matches before a line feed. Possessive signs only
    save work in the patterns that tokenizers have, whose pieces are followed by what cannot
    begin them; ids are compared in the tests.
    """
    return _POSSESSIVE.sub(r"\1", pattern).replace("$", r"\z")


def _spelled(token: bytes) -> str:
    return "".join(CHARACTER[byte] for byte in token)


def _split(pattern: dict[str, str], behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


def _by_id(item: tuple[str, int]) -> int:
    return item[1]
