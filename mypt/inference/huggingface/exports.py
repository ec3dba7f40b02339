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
from mypt.data.conversations import Form
from mypt.data.rendering.base_template import BaseTemplate
from mypt.data.template import Template
from mypt.data.tokenizer import Tokenizer
from mypt.data.vocabularies.base_files import TOKENIZER
from mypt.data.vocabularies.engine import SPACE, flat
from mypt.data.vocabularies.huggingface import SCHEMES
from mypt.data.vocabularies.vocabulary import CHARACTER, Vocabulary
from mypt.errors import ConfigError
from mypt.inference.huggingface.chat_template import CUT, GLUE, chat_template
from mypt.inference.huggingface.imports import COMMON, unnumbered
from mypt.inference.huggingface.layouts import family_of, read_layout, write_layout
from mypt.inference.huggingface.weights import Weights, to_hf
from mypt.model.foreign import write_module
from mypt.references import BaseRecord

_POSSESSIVE: Final = re.compile(r"(?<!\\)([+*?]|\{\d+(?:,\d*)?\})\+")
_QWEN2: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer splits a text, as its published files say."""
WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"
_CODE: Final = frozenset({"auto_map"})
"""Keys of a base that name code, which is not exported."""
_BYTE_LEVEL: Final = {
    "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False,
}  # fmt: skip
_CHARACTERS: Final = (
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
)


def tokenizer_json(
    tokenizer: Tokenizer, form: Form = "chat", base: BaseRecord | None = None
) -> dict[str, Any]:
    """Return ``tokenizer.json``.

    Args:
        tokenizer: A model's own.
        form: What the model reads: our templates write no space that nobody said, a base does.
        base: What the model came from, whose tokens keep their flags.
    """
    vocabulary, specials = tokenizer.vocabulary, tokenizer.special_tokens
    held = {t: i for t, i in specials.items() if i < len(vocabulary.tokens)}
    run = json.loads(vocabulary.engine) if vocabulary.engine else _byte_level(vocabulary, held)
    words = run["model"]["vocab"] | held
    empty = set(range(len(vocabulary.tokens))) - set(words.values())
    words |= {_filler(number): number for number in empty}
    marked = isinstance(tokenizer.template, Template)  # a base's own writes no noncharacter
    glue = [{"type": "Replace", "pattern": {"String": GLUE}, "content": ""}] if marked else []
    cut = [_split({"String": CUT}, "Removed")] if marked else []
    normal = [{"type": "NFC"}] if vocabulary.normal_form == "NFC" else []
    space = "" if marked and form == "chat" else vocabulary.prefix
    if space == "always":
        normal.append({"type": "Prepend", "prepend": SPACE})
    cuts = [
        stage | {"prepend_scheme": SCHEMES[space]}
        if stage["type"] == "Metaspace" and space in SCHEMES
        else stage
        for stage in flat(run["pre_tokenizer"], "pretokenizers")
    ]
    flags = json.loads(base.flags or "{}") if base else {}
    added = [
        {"id": number, "content": token} | flags.get(token, flags.get(unnumbered(token), COMMON))
        for token, number in _added(vocabulary, specials).items()
    ]
    if marked:  # else a token is seen once more where the glue that hid it is gone
        added = [token | {"normalized": False} for token in added]
    return run | {
        "added_tokens": sorted([*run["added_tokens"], *added], key=lambda token: token["id"]),
        "normalizer": _sequence(
            "normalizers", [*glue, *normal, *flat(run["normalizer"], "normalizers")]
        ),
        "pre_tokenizer": _sequence("pretokenizers", [*cut, *cuts]),
        "post_processor": _begun(vocabulary, specials),
        "decoder": _decoder(vocabulary, bool(space)),
        "model": run["model"] | {"vocab": dict(sorted(words.items(), key=_by_id))},
    }


def _decoder(vocabulary: Vocabulary, spaced: bool) -> dict[str, Any]:
    if vocabulary.normal_form != "spaces":
        return _BYTE_LEVEL
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if spaced else []
    return {"type": "Sequence", "decoders": [*_CHARACTERS, *strip]}


def _byte_level(vocabulary: Vocabulary, held: dict[str, int]) -> dict[str, Any]:
    """Return what tiktoken runs as ``tokenizers`` runs it, without special tokens."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                _split({"Regex": for_oniguruma(vocabulary.pattern)}, "Isolated"),
                _BYTE_LEVEL,
            ],
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
            "vocab": {_spelled(t): i for i, t in enumerate(vocabulary.tokens) if t},
            "merges": _merges(vocabulary),
        },
    }


def _sequence(key: str, stages: list[dict[str, Any]]) -> dict[str, Any] | None:
    if len(stages) == 1:
        return stages[0]
    return {"type": "Sequence", key: stages} if stages else None


def _begun(vocabulary: Vocabulary, specials: dict[str, int]) -> dict[str, Any] | None:
    """Return what puts the token before a text that begins every one."""
    if not vocabulary.begin:
        return None
    token = {"SpecialToken": {"id": vocabulary.begin, "type_id": 0}}
    text, other = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    number = {
        "id": vocabulary.begin,
        "ids": [specials[vocabulary.begin]],
        "tokens": [vocabulary.begin],
    }
    return {
        "type": "TemplateProcessing",
        "single": [token, text],
        "pair": [token, text, {"SpecialToken": {"id": vocabulary.begin, "type_id": 1}}, other],
        "special_tokens": {vocabulary.begin: number},
    }


def tokenizer_config(
    tokenizer: Tokenizer, longest: int, form: Form = "chat", base: BaseRecord | None = None
) -> dict[str, Any]:
    """Return ``tokenizer_config.json``; a base keeps its own tokens and words.

    Args:
        tokenizer: A model's own.
        longest: Tokens that the model holds.
        form: What ends its writing: a turn, or a text.
        base: What the model came from, if it did.
    """
    end = tokenizer.vocabulary.end
    kept = json.loads(base.tokenizer or "{}") if base else {}
    ends = {"eos_token": tokenizer.template.stop} if form == "chat" else {}
    return {
        "eos_token": end, "pad_token": end, "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    } | {key: value for key, value in kept.items() if value is not None} | ends | {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest,
    }  # fmt: skip


def _added(vocabulary: Vocabulary, specials: dict[str, int]) -> dict[str, int]:
    """Return the special tokens, and a name that no text holds for each id that has no token.

    ``tokenizers`` counts on from the last id and does not read the ones that it is given.
    """
    used = set(specials.values())
    following = range(len(vocabulary.tokens), max(used, default=0) + 1)
    return specials | {_filler(i): i for i in following if i not in used}


def _filler(number: int) -> str:
    return f"{CUT}unused {number}{CUT}"


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


def for_oniguruma(pattern: str) -> str:
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
    form: Form = "chat",
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
        form: What it has learned to end: a turn, or, as a base model, a text.
        policy: Whose tokens the template's ``{% generation %}`` blocks mark.
        base: What the model came from, if it did: its family, its keys, its tokens and its type of
            numbers are kept. Else the family is the first that has a place for it, in float32.
        card: ``README.md``.

    Raises:
        ConfigError: If transformers has no class for the model, or reads its tokenizer otherwise.
        FileExistsError: If ``folder`` exists.
    """
    name, theirs = _config(config, base)  # before anything is written
    generation = json.loads(base.generation or "{}") if base else {"do_sample": False}
    dtype = getattr(torch, base.dtype if base else "float32")
    own = tokenizer.template
    jinja = own.source if isinstance(own, BaseTemplate) else chat_template(tokenizer, own, policy)
    written = {
        CONFIG: _with_ends(theirs, tokenizer, form),
        "generation_config.json": _with_ends(generation, tokenizer, form),
        "tokenizer_config.json": tokenizer_config(tokenizer, config.longest, form, base),
    }
    spelled = tokenizer_json(tokenizer, form, base)
    if theirs.get("model_type") == "qwen2":
        _check_qwen2(spelled)
    with files.new_folder(folder) as new:
        if config.base == "transformers":
            write_module(config, weights, dtype, new)  # and a config, which ours replaces
        else:
            tensors = to_hf(name, config, weights, dtype)
            save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
        for file, values in written.items():
            files.write_json(new / file, values)
        files.write_bytes(new / TOKENIZER, files.canonical_json(spelled))
        files.write_bytes(new / "chat_template.jinja", jinja.encode())
        files.write_bytes(new / "README.md", card.encode())


def _check_qwen2(spelled: dict[str, Any]) -> None:
    """Refuse a ``tokenizer.json`` that transformers would not read as it stands."""
    cuts = flat(spelled["pre_tokenizer"], "pretokenizers")
    patterns = [cut["pattern"] for cut in cuts if "pattern" in cut]
    if patterns != [{"Regex": _QWEN2}] or spelled["normalizer"] != {"type": "NFC"}:
        raise ConfigError(
            "transformers splits the texts of every Qwen2 model as Qwen2's tokenizer does, whatever"
            " its folder says, and this model's ids would be others; expected a base of Qwen2 in"
            " its own template, a model without qkv_bias, or --to gguf"
        )


def _with_ends(values: dict[str, Any], tokenizer: Tokenizer, form: Form) -> dict[str, Any]:
    """Return a config with the tokens at which writing ends, its own among them, and a padding."""
    said = values.get("eos_token_id")
    own = set(said if isinstance(said, list) else [said]) - {None}
    ends = {tokenizer.end_of_text, *(tokenizer.stop_ids if form == "chat" else ())}
    pad = values.get("pad_token_id")
    return {"bos_token_id": None} | values | {
        "eos_token_id": said if own >= ends else sorted(own | ends),
        "pad_token_id": tokenizer.end_of_text if pad is None else pad,
    }  # fmt: skip


def _config(model: GPTConfig, base: BaseRecord | None) -> tuple[str, dict[str, Any]]:
    """Return the family and its ``config.json``; of a base its own, but for what has changed.

    GPT-2's says its context twice: llama.cpp's converter reads the second, older name alone.
    """
    if model.base == "transformers":
        theirs = json.loads(model.base_config)
        kind, dtype = _type_key(theirs), base.dtype if base else "float32"
        return "", {k: value for k, value in theirs.items() if k not in _CODE} | {kind: dtype}
    if base is None:
        name = family_of(model)
        rates = ("resid_pdrop", "embd_pdrop", "attn_pdrop") if name == "gpt2" else ()
        theirs = write_layout(name, model) | {"dtype": "float32"}
        theirs |= dict.fromkeys((*rates, "attention_dropout"), model.dropout)
        return name, theirs | ({"n_ctx": theirs["n_positions"]} if name == "gpt2" else {})
    own = json.loads(base.config)
    name, before = read_layout(own, Path(CONFIG))
    old, new = write_layout(name, before), write_layout(name, model)
    changed = {key: value for key, value in new.items() if value != old[key]}
    left = _CODE | ({"rope_scaling"} if "rope_parameters" in changed else set())
    kept = {key: value for key, value in own.items() if key not in left}
    return name, kept | changed | {_type_key(own): base.dtype}


def _type_key(config: dict[str, Any]) -> str:
    return "torch_dtype" if "torch_dtype" in config else "dtype"
