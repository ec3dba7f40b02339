"""A folder that plain ``transformers`` loads, written without it.

Our tokenizer goes there as ``tokenizer.json``: the ids that ``tokenizers`` gives are ours.
"""

import json
import re
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from mypt import files
from mypt.config import GPTConfig, MaskPolicy
from mypt.data.tokenizer import Tokenizer
from mypt.data.vocabularies.vocabulary import CHARACTER, Vocabulary
from mypt.inference.huggingface.chat_template import CUT, GLUE, chat_template
from mypt.inference.huggingface.layouts import family_of, read_layout, write_layout
from mypt.inference.huggingface.weights import Weights, to_hf
from mypt.references import BaseRecord

_POSSESSIVE: Final = re.compile(r"(?<!\\)([+*?]|\{\d+(?:,\d*)?\})\+")
WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"
TOKENIZER: Final = "tokenizer.json"


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


def export_hf(
    folder: Path,
    config: GPTConfig,
    weights: Weights,
    tokenizer: Tokenizer,
    *,
    policy: MaskPolicy = MaskPolicy(),
    base: BaseRecord | None = None,
    card: str,
) -> None:
    """Write weights, config, tokenizer, chat template and card of a model.

    Args:
        folder: A new folder.
        config: The model's.
        weights: Its parameters by name; a tied one once.
        tokenizer: The model's own.
        policy: Whose tokens the template's ``{% generation %}`` blocks mark.
        base: What the model came from, if it did: its family, its keys and its type of numbers are
            kept. Else the family is the first that has a place for it, in float32.
        card: ``README.md``.

    Raises:
        ConfigError: If transformers has no class for the model.
        FileExistsError: If ``folder`` exists.
    """
    name, theirs = _config(config, base)  # before anything is written
    ends = sorted({tokenizer.stop_id, tokenizer.end_of_text})
    ids = {"bos_token_id": None, "eos_token_id": ends, "pad_token_id": tokenizer.end_of_text}
    generation = ids | {"do_sample": False}
    if base is not None:
        own = theirs.get("eos_token_id")
        ends = sorted({*ends, *(own if isinstance(own, list) else [own])} - {None})
        ids = {"eos_token_id": ends, "pad_token_id": tokenizer.end_of_text}
        generation = json.loads(base.generation or "{}") | ids
    dtype = getattr(torch, base.dtype if base else "float32")
    with files.new_folder(folder) as new:
        tensors = to_hf(name, config, weights, dtype)
        save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
        files.write_json(new / CONFIG, theirs | ids)
        files.write_json(new / "generation_config.json", generation)
        files.write_bytes(new / TOKENIZER, files.canonical_json(tokenizer_json(tokenizer)))
        block_size = config.block_size
        files.write_json(new / "tokenizer_config.json", tokenizer_config(tokenizer, block_size))
        template = chat_template(tokenizer.template, policy)
        files.write_bytes(new / "chat_template.jinja", template.encode())
        files.write_bytes(new / "README.md", card.encode())


def _config(model: GPTConfig, base: BaseRecord | None) -> tuple[str, dict[str, Any]]:
    """Return the family and its ``config.json``; of a base its own, but for what has changed."""
    if base is None:
        name = family_of(model)
        rates = ("resid_pdrop", "embd_pdrop", "attn_pdrop") if name == "gpt2" else ()
        dropout = dict.fromkeys((*rates, "attention_dropout"), model.dropout)
        return name, write_layout(name, model) | {"dtype": "float32"} | dropout
    own = json.loads(base.config)
    name, before = read_layout(own, Path(CONFIG))
    old, new = write_layout(name, before), write_layout(name, model)
    kind = "torch_dtype" if "torch_dtype" in own else "dtype"
    changed = {key: value for key, value in new.items() if value != old[key]}
    left = {"auto_map"} | ({"rope_scaling"} if "rope_parameters" in changed else set())
    kept = {key: value for key, value in own.items() if key not in left}  # code is not exported
    return name, kept | changed | {kind: base.dtype}
