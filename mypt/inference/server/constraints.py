"""Answers that surely have a form: JSON of a schema, or the call of a tool, by ``llguidance``.

At each token of an answer its grammar says which may follow. Needs the extra ``structured``.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from mypt.data.preparation.rendered import controls_of
from mypt.data.tokenizer import Tokenizer
from mypt.errors import ConfigError
from mypt.inference.server.tools import CallForm, Tool
from mypt.model.gpt import GPT

if TYPE_CHECKING:
    import llguidance

_MOST_CHARACTERS: Final = 1 << 16
_MOST_SHOWN: Final = 200
_STYLE: Final = {"whitespace_flexible": False, "whitespace_pattern": r"(\n {0,24}| )?"}
"""White space as models learn it, between two signs at most a line's end and an indent."""
_ANYTHING: Final = r"/(.|\n)*/"


class Grammar:
    """What may follow in one answer."""

    def __init__(self, matcher: "llguidance.LLMatcher", model: GPT) -> None:
        self._matcher, self._size = matcher, model.config.vocab_size
        self._device = model.lm_head.weight.device
        self.error = ""
        """Why it cannot go on; empty while it can."""

    def copy(self) -> "Grammar":
        """Return the same for another answer."""
        other = object.__new__(Grammar)
        other.__dict__ |= self.__dict__ | {"_matcher": self._matcher.deep_copy()}
        return other

    def mask(self) -> Tensor:
        """Return (V,) bool: what may follow; everything, where the answer fails anyway."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little", count=self._size).astype(np.bool_)
        if self._matcher.is_error() or not allowed.any():
            self.error = self._why() or "nothing may follow"
            allowed[:] = True
        return torch.from_numpy(allowed).to(self._device)

    def add(self, token: int) -> None:
        """Note what was written."""
        if not self.error and not self._matcher.consume_token(token):
            self.error = self._why()

    def _why(self) -> str:
        found: str = self._matcher.get_error()
        return found.partition("\n")[0][:_MOST_SHOWN]  # below it stands the schema


def json_grammar(model: GPT, tokenizer: Tokenizer, schema: Mapping[str, Any]) -> Grammar:
    """Return the grammar of JSON that a schema describes.

    Raises:
        ConfigError: If schemas are too large together, or one says what cannot be held, or
            ``llguidance`` is not installed.
    """
    return _grammar(model, tokenizer, f"start: {_json([schema])[0]}")


def call_grammar(
    model: GPT, tokenizer: Tokenizer, form: CallForm, tools: Sequence[Tool], *, must: bool
) -> Grammar:
    """Return the grammar of one call of a tool.

    Args:
        model: What answers.
        tokenizer: Its own.
        form: How its template writes calls.
        tools: Those that may be called.
        must: Whether it has to call; else a text may stand before the call, or alone.

    Raises:
        ConfigError: As :func:`json_grammar`, or if only a token of the template tells a call from
            a text, and it has none.
    """
    calls = []
    given = _json([tool.function.parameters or {"type": "object"} for tool in tools])
    for tool, arguments in zip(tools, given, strict=True):
        before = _pieces(tokenizer, f"{form.before}{tool.function.name}{form.between}")
        calls.append(f"{before} {arguments} {_pieces(tokenizer, form.after)}")
    if must:
        return _grammar(model, tokenizer, f"start: {' | '.join(calls)}")
    if not calls[0].startswith("<["):
        raise ConfigError(
            "the template begins a call with no token of its own, so that strict or single calls"
            " need tool_choice required or a named one"
        )
    return _grammar(
        model, tokenizer, f"start: TEXT | TEXT call\nTEXT: {_ANYTHING}\ncall: {' | '.join(calls)}"
    )


def _json(schemas: Sequence[Mapping[str, Any]]) -> list[str]:
    spelled = [json.dumps(schema) for schema in schemas]
    if (length := sum(map(len, spelled))) > _MOST_CHARACTERS:
        raise ConfigError(
            f"schemas of {length:,} characters together; expected up to {_MOST_CHARACTERS:,}"
        )
    return [f"%json {json.dumps({**schema, 'x-guidance': _STYLE})}" for schema in schemas]


def _pieces(tokenizer: Tokenizer, text: str) -> str:
    """Return what a template writes as a grammar has it, its tokens by their ids."""
    pieces, at = list[str](), 0
    for match in controls_of(tokenizer).finditer(text):
        pieces += [json.dumps(text[at : match.start()])] if match.start() > at else []
        pieces.append(f"<[{tokenizer.special_tokens[match.group()]}]>")
        at = match.end()
    pieces += [json.dumps(text[at:])] if text[at:] else []
    return " ".join(pieces)


def _grammar(model: GPT, tokenizer: Tokenizer, lark: str) -> Grammar:
    tokens = _tokens(tokenizer, model.config.vocab_size)
    import llguidance

    grammar = llguidance.LLMatcher.grammar_from_lark(lark)
    matcher = llguidance.LLMatcher(tokens, grammar, log_level=0)
    if matcher.is_error():
        raise ConfigError(
            f"the schema cannot be held: {' '.join(matcher.get_error().split())[:_MOST_SHOWN]}"
        )
    return Grammar(matcher, model)


@lru_cache(maxsize=16)
def _tokens(tokenizer: Tokenizer, n_ids: int) -> "llguidance.LLTokenizer":
    """Return a vocabulary as ``llguidance`` has it."""
    try:
        import llguidance
    except ImportError:
        raise ConfigError("llguidance is not installed; pip install 'mypt[structured]'") from None
    ends = [*tokenizer.stop_ids, tokenizer.end_of_text]
    return llguidance.LLTokenizer(_Vocabulary(tokenizer, ends), n_ids, ends)


class _Vocabulary:
    """What ``llguidance`` asks a tokenizer for."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, ends: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = ends[0]
        self.tokens = tokenizer.token_bytes
        self.special_token_ids = list(tokenizer.special_tokens.values())

    def __call__(self, text: bytes | str) -> list[int]:
        said = text if isinstance(text, str) else text.decode(errors="ignore")
        return list(self._tokenizer.encode_part(said).tolist())
