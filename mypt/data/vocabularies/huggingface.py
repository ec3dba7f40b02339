"""``tokenizer.json`` as a vocabulary of ours, where its ids are shown to be equal."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import regex

from mypt import files
from mypt.data.template import END_OF_TEXT
from mypt.data.vocabularies.base_files import (
    TokenizerFile,
    read_tokenizer,
    read_tokenizer_config,
)
from mypt.data.vocabularies.encoder import encode_ordinary, encoding_of
from mypt.data.vocabularies.engine import SPACE, TokenizersEngine, flat, without_controls
from mypt.data.vocabularies.published import PUBLISHED
from mypt.data.vocabularies.vocabulary import BYTE, NormalForm, Prefix, Vocabulary, check_bytes
from mypt.errors import DataError

ENDS: Final = (
    END_OF_TEXT, "<|end_of_text|>", "<eos>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "</s>",
)  # fmt: skip
"""Tokens that end a document in the families there are; a chat model's ``eos_token`` often ends
a turn instead."""
_ODD: Final = (
    "  \n \t\n  ",
    "a\r\n\r\n b  \n",
    " 12345 +  6789",
    "I'LL don't",
    "\x00\x1f",
    " x" * 50,
    "\ufeff \u00a0\u2003x\u3000\u0301\u200d",
)
_SENSELESS: Final = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, MemoryError,
    regex.error,
)  # fmt: skip
"""What a file of another kind meets."""
_MOST_IDS: Final = 1 << 24
_MOST_REPEATS: Final = 1000
_PIECES: Final = regex.compile(
    r"\\.|\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\]|\((?:\?[^:)]*?[:=!>])?|\)[?*+{]?|.", regex.DOTALL
)
"""An escape, a class, a group's beginning or its end with what repeats it, or a character."""
_PROBE: Final = 40
"""Tokens whose texts make one probe."""
_CUTS: Final = ("Split", "Digits", "Punctuation", "ByteLevel", "Metaspace")
"""Pre-tokenizers that lose no text."""
SCHEMES: Final[dict[Prefix, str]] = {"segment": "always", "first": "first", "": "never"}
"""Metaspace's words for ours."""
Kind = Literal["bytes", "fallback"]
"""Tokens are bytes spelled as characters, or characters with a token for each byte beside them."""


def hf_vocabulary(base: Path) -> Vocabulary:
    """Read the BPE of a base's ``tokenizer.json``, special tokens included, or of its GGUF.

    tiktoken encodes where it is proved to give the same ids: its merges come in the order of
    their tokens, each token is what its own text becomes, and texts made of them all are cut
    alike. Else ``tokenizers`` does. With either, every text comes back from its ids, and no text
    has the id of a control token, which is any added token but runs of white space.

    Raises:
        ConfigError: If reading it needs a package that is not installed.
        DataError: If it is missing, of another kind, or does not give every text back.
    """
    held = read_tokenizer(base)
    try:
        return _read(held, read_tokenizer_config(base))
    except ImportError:
        raise DataError(
            f"{held.path}: reading it needs the package tokenizers; get it with 'pip install"
            " tokenizers'"
        ) from None
    except _SENSELESS as error:
        raise DataError(
            f"{held.path}: no BPE of tokenizers that loses no text ({error!r:.160})"
        ) from None


def _read(held: TokenizerFile, config: dict[str, Any]) -> Vocabulary:
    path, name, values = held
    kind, normal_form, prefix = _kind(values, path)
    added = {a["content"]: a["id"] for a in values["added_tokens"]}
    text = {a["content"] for a in values["added_tokens"] if _is_text(a)}
    controls = {t: i for t, i in added.items() if t not in text and not _is_filler(t)}
    known = values["model"]["vocab"].items()
    words = {t: i for t, i in known if t not in added and not _is_filler(t)}
    words |= {t: added[t] for t in text}
    tokens = _tokens(words, kind, path, text)
    _check_specials(controls, tokens, path)
    source = without_controls(values, added.keys() - text)
    engine = TokenizersEngine(files.canonical_json(source).decode())
    begin, end = _document(values, config, path, controls)
    pattern = None if text or kind == "fallback" else _pattern(values["pre_tokenizer"])
    vocabulary = Vocabulary(
        name, pattern or "", tokens, controls, normal_form, begin=begin, end=end, prefix=prefix
    )
    whole = bool(pattern) and not vocabulary.lacking
    alike = whole and _merges_alike(values["model"], words, source)
    if alike and _cuts_alike(vocabulary, engine, path):
        return vocabulary
    run = replace(vocabulary, pattern="", engine=files.canonical_json(source).decode())
    _check_round_trip(run, engine, path)
    return run


def _is_text(added: dict[str, Any]) -> bool:
    """Return whether an added token stands for white space that anybody may write."""
    plain = not (added.get("special") or added.get("lstrip") or added.get("rstrip"))
    return plain and bool(added["content"]) and not added["content"].strip(f" \n\t\r{SPACE}")


def _is_filler(token: str) -> bool:
    return token.startswith(
        "\ufdd1unused "
    )  # of our own export (mypt.inference.huggingface.exports)


def _kind(values: dict[str, Any], path: Path) -> tuple[Kind, NormalForm, Prefix]:
    """Return of which of the two kinds it is, and what it does to text beforehand."""
    model = values["model"]
    odd = [
        k for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(k)
    ]
    if model.get("type", "BPE") != "BPE" or odd:
        raise DataError(f"{path}: model {model.get('type')} {' '.join(odd)}; expected plain BPE")
    stages = [s for s in flat(values.get("normalizer"), "normalizers") if s.get("content") != ""]
    cuts = flat(values.get("pre_tokenizer"), "pretokenizers")
    cuts = [s for s in cuts if s.get("behavior") != "Removed"]  # of our own export
    named = [s["type"] for s in stages]
    prefix, stages = _prefix(values, stages, cuts, path)
    spaces = stages == [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    lost = [
        s["type"]
        for s in cuts
        if s["type"] not in _CUTS or (s.get("add_prefix_space") and s["type"] != "Metaspace")
    ]
    if lost:
        raise DataError(f"{path}: pre-tokenizer {lost[0]}; expected {', '.join(_CUTS)}")
    for cut in cuts:
        if isinstance(cut.get("pattern"), dict) and "Regex" in cut["pattern"]:
            _modest(cut["pattern"]["Regex"], path)
    if any(s["type"] == "ByteLevel" for s in cuts) and named in ([], ["NFC"]):
        return "bytes", "NFC" if named else "", ""
    spaces = spaces or (not stages and any(s["type"] == "Metaspace" for s in cuts))
    if model.get("byte_fallback") and spaces:
        return "fallback", "spaces", prefix
    raise DataError(
        f"{path}: normalizers {', '.join(named) or 'none'} with pre-tokenizers"
        f" {', '.join(s['type'] for s in cuts) or 'none'}; expected ByteLevel with NFC or nothing"
        " before it, or spaces replaced and byte fallback, since every text must come back"
    )


def _prefix(
    values: dict[str, Any],
    stages: list[dict[str, Any]],
    cuts: list[dict[str, Any]],
    path: Path,
) -> tuple[Prefix, list[dict[str, Any]]]:
    """Return where a space is written that nobody said, and the normalizers but for that."""
    rest = [s for s in stages if s != {"type": "Prepend", "prepend": SPACE}]
    meta = [s for s in cuts if s["type"] == "Metaspace"]
    if any(s["replacement"] != SPACE for s in meta) or (meta and (len(cuts) > 1 or stages)):
        raise DataError(
            f"{path}: Metaspace with other stages, or without U+2581; expected it alone"
        )
    prefix: Prefix = "always" if len(rest) < len(stages) else ""
    for one in meta:
        older = "always" if one.get("add_prefix_space", True) else "never"
        asked = one.get("prepend_scheme", older)
        prefix = {theirs: ours for ours, theirs in SCHEMES.items()}[asked]
    odd = [a["content"] for a in values["added_tokens"] if a.get("normalized") or _is_text(a)]
    if prefix and odd:
        raise DataError(
            f"{path}: added token {odd[0]!r:.60} beside a first space that nobody said; expected"
            " none of white space, and all with normalized false"
        )
    return prefix, rest


def _tokens(words: dict[str, int], kind: Kind, path: Path, text: set[str]) -> tuple[bytes, ...]:
    """Return the bytes of each id, none where it is no ordinary token's."""
    numbers = words.values()
    if not all(type(n) is int and 0 <= n < _MOST_IDS for n in numbers):
        raise DataError(f"{path}: ids of tokens must be whole numbers below {_MOST_IDS}")
    if len(set(numbers)) < len(words):
        raise DataError(f"{path}: two tokens have one id; each must have its own")
    tokens = [b""] * (max(numbers, default=-1) + 1)
    for word, number in words.items():
        if kind == "bytes" and word not in text:
            tokens[number] = bytes(BYTE[character] for character in word)
        elif len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
            tokens[number] = bytes([int(word[3:5], 16)])
        else:
            tokens[number] = word.replace(SPACE, " ").encode()
    try:
        check_bytes(tokens)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    return tuple(tokens)


def _check_specials(controls: dict[str, Any], tokens: tuple[bytes, ...], path: Path) -> None:
    """Refuse a control token whose id a text could have too."""
    numbers = list(controls.values())
    odd = [t for t, i in controls.items() if not t or type(i) is not int or not 0 <= i < _MOST_IDS]
    odd += [t for t, i in controls.items() if t not in odd and i < len(tokens) and tokens[i]]
    if odd or len(set(numbers)) < len(numbers):
        raise DataError(
            f"{path}: special tokens {odd or list(controls)}: expected ids of their own, below"
            f" {_MOST_IDS}"
        )


def _document(
    values: dict[str, Any], config: dict[str, Any], path: Path, controls: dict[str, int]
) -> tuple[str, str]:
    """Return what begins and ends a document in the base's own training."""
    asked, bos, eos = config.get("add_bos_token"), named(config, "bos"), named(config, "eos")
    single: list[dict[str, Any]] = []
    for stage in flat(values.get("post_processor"), "processors"):
        single += stage.get("single", [])
    before = itertools.takewhile(lambda piece: "Sequence" not in piece, single)
    written = [piece["SpecialToken"]["id"] for piece in before]
    begin = (bos if asked else "") if asked is not None else "".join(written[:1])
    end = next((token for token in (*ENDS, eos) if token in controls), END_OF_TEXT)
    if begin and begin not in controls:
        raise DataError(f"{path}: a text begins with {begin!r}; expected one of its added tokens")
    return begin, end


def named(config: dict[str, Any], role: str) -> str:
    """Return the special token that plays a role, such as ``bos``; empty where none does."""
    token = config.get(f"{role}_token")
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else ""


def _pattern(stage: dict[str, Any] | None) -> str | None:
    """Return the regular expression that cuts text, if one expression does."""
    stages = [s for s in flat(stage, "pretokenizers") if s.get("behavior") != "Removed"]
    *splits, last = stages
    if last["type"] != "ByteLevel" or any(s["type"] != "Split" for s in splits):
        return None
    if len(splits) + bool(last.get("use_regex", True)) != 1:
        return None
    if not splits:
        return PUBLISHED["gpt2"].pattern
    (split,) = splits
    plain = split["behavior"] == "Isolated" and not split.get("invert")
    found: str | None = split["pattern"].get("Regex") if plain else None
    return found


def _modest(pattern: str, path: Path) -> str:
    """Return a regular expression that can neither eat all memory nor try without end."""
    counts = (int(n) for n in regex.findall(r"(\d+)\}", pattern))
    if math.prod(max(1, count) for count in counts) > _MOST_REPEATS:
        raise DataError(f"{path}: its pattern repeats more than {_MOST_REPEATS} times; refused")
    choices = [False]  # of the groups that are open, whether one holds more than plain characters
    for token in _PIECES.findall(pattern):
        if token.startswith("("):
            choices.append(False)
        elif token.startswith(")") and len(choices) > 1:
            inside = choices.pop()
            if inside and token[1:2] in ("*", "+", "{"):
                raise DataError(
                    f"{path}: its pattern repeats a choice, so that a text may take without end;"
                    " refused"
                )
            choices[-1] |= inside or len(token) > 1
        else:
            choices[-1] |= token in ("|", "?", "*", "+", "{")
    return pattern


def _merges_alike(model: dict[str, Any], words: dict[str, int], source: dict[str, Any]) -> bool:
    """Prove that tiktoken, whose priority is the id, merges in the order of the file's list.

    What a stretch becomes depends on nothing around it as long as no merge crosses its ends. So
    only that pair ever makes a token which makes it of its own text; where the list names that
    pair, in the order of the ids, both do the same. A token that its own text does not become
    must have every pair of tokens that it could be made of listed, and be taken whole by both.
    """
    pairs = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    made = [words[left + right] for left, right in pairs]
    if any(one > other for one, other in itertools.pairwise(made)):
        return False
    listed = set(pairs)
    bare = source | {"model": source["model"] | {"ignore_merges": False}}
    merged = TokenizersEngine(files.canonical_json(bare).decode()).merged
    odd = [word for word, number in words.items() if merged(word) != [number]]
    return not odd or (
        bool(model.get("ignore_merges"))
        and all(
            (word[:at], word[at:]) in listed
            for word in odd
            for at in range(1, len(word))
            if word[:at] in words and word[at:] in words
        )
    )


def _cuts_alike(vocabulary: Vocabulary, engine: TokenizersEngine, path: Path) -> bool:
    try:
        naive = regex.compile(vocabulary.pattern.replace(r"\z", r"\Z"))
        encoding = encoding_of(vocabulary, vocabulary.special_tokens)
    except ValueError as error:
        raise DataError(f"{path}: tiktoken does not know its pattern ({error})") from None
    for text in ("", *_ODD):  # tiktoken ends badly on a match of nothing
        if not all(pieces := naive.findall(text)) or "".join(pieces) != text:
            return False
    probes = [vocabulary.normalised(text) for text in _probes(vocabulary)]
    ids, lengths = engine.encode([text.encode() for text in probes])
    stops = lengths.cumsum()
    return all(
        encode_ordinary(encoding, text).tolist() == ids[stop - length : stop].tolist()
        for text, length, stop in zip(probes, lengths, stops, strict=True)
    )


def _check_round_trip(vocabulary: Vocabulary, engine: TokenizersEngine, path: Path) -> None:
    probes = [vocabulary.normalised(text) for text in _probes(vocabulary)]
    ids, _ = engine.encode([text.encode() for text in probes])
    back = b"".join([vocabulary.tokens[number] for number in ids.tolist()])
    if back != "".join(probes).encode():
        raise DataError(f"{path}: its ids do not give every text back; refused")


def _probes(vocabulary: Vocabulary) -> Iterator[str]:
    lacking = dict.fromkeys(vocabulary.lacking)
    yield from (text.translate(lacking) for text in _ODD)
    texts = [token.decode(errors="ignore") for token in vocabulary.tokens]
    for start in range(0, len(texts), _PROBE):
        yield "".join(texts[start : start + _PROBE])
    for start in range(_PROBE):
        yield "".join(texts[start :: max(1, len(texts) // _PROBE)])
