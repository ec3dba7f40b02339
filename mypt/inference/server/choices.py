"""What a request may choose from: its answers, whole or in pieces, in the protocol's form."""

import codecs
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from mypt.data.tokenizer import Tokenizer
from mypt.errors import ConfigError, DataError
from mypt.inference.chat import fitting_prompt
from mypt.inference.generation import text_prompt
from mypt.inference.likelihood import Likelihood
from mypt.inference.reply import Ending, Reply
from mypt.inference.server.constraints import Grammar, call_grammar, json_grammar
from mypt.inference.server.protocol import Asked, ChatRequest, CompletionRequest, Refused
from mypt.inference.server.tools import CallForm, CallReader, NamedTool, call_form
from mypt.model.gpt import GPT

_SHOWN = 20
"""Digits of a wrong number that are told."""


class Fragment(NamedTuple):
    """A stretch of an answer that is certain now."""

    text: str
    told: Sequence[Likelihood] = ()
    """Tokens of it, or of what is not certain yet, where a request asks for them."""


class ChatChoice:
    """One answer to a conversation."""

    def __init__(
        self, index: int, reply: Reply, tokenizer: Tokenizer, form: CallForm | None
    ) -> None:
        self.index, self.reply, self._tokenizer = index, reply, tokenizer
        self._form = form
        self._reader = None if form is None else CallReader(form)
        self._begun = False

    def whole(self) -> dict[str, Any]:
        """Return the answer, once it is whole."""
        text, calls = self._form.read(self.reply.text) if self._form else (self.reply.text, [])
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text if text.strip() else None, "tool_calls": calls}
        return self._said("message", message, self.reply.told, self._finish(calls))

    def pieces(self, piece: Fragment | None) -> list[dict[str, Any]]:
        """Return what a stream says of a piece; None is the end of the answer."""
        if piece is not None:
            text = piece.text if self._reader is None else self._reader.add(piece.text)
            return self._delta({"content": text}, piece.told) if text or piece.told else []
        rest, calls = ("", []) if self._reader is None else self._reader.end()
        said = self._delta({"content": rest}) if rest.strip() or not (self._begun or calls) else []
        for number, call in enumerate(calls):
            said += self._delta({"tool_calls": [{"index": number} | call]})
        return [*said, self._said("delta", {}, (), self._finish(calls))]

    def _delta(self, said: dict[str, Any], told: Sequence[Likelihood] = ()) -> list[dict[str, Any]]:
        role = {} if self._begun else {"role": "assistant"}
        self._begun = True
        return [self._said("delta", role | said, told, None)]

    def _finish(self, calls: Sequence[dict[str, Any]]) -> str:
        return "tool_calls" if calls else finish(self.reply.ending)

    def _said(
        self, key: str, said: dict[str, Any], told: Sequence[Likelihood], ending: str | None
    ) -> dict[str, Any]:
        asked = self.reply.row.top is not None and (key == "message" or told)
        content = [self._token(one.token, one.logprob, one.top) for one in told]
        logprobs = {"content": content, "refusal": None} if asked else None
        return {"index": self.index, key: said, "logprobs": logprobs, "finish_reason": ending}

    def _token(
        self, token: int, logprob: float | None, top: Iterable[tuple[int, float]] | None
    ) -> dict[str, Any]:
        read = self._tokenizer.decode_bytes([token])
        said = {"token": read.decode(errors="replace"), "logprob": logprob, "bytes": [*read]}
        if top is not None:
            said["top_logprobs"] = [self._token(*pair, None) for pair in top]
        return said


class TextChoice:
    """One way in which a text goes on."""

    def __init__(self, index: int, reply: Reply, tokenizer: Tokenizer, echo: str | None) -> None:
        self.index, self.reply, self._tokenizer = index, reply, tokenizer
        self._echo = echo
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def whole(self) -> dict[str, Any]:
        """Return the answer, once it is whole."""
        reply = self.reply
        said = Fragment((self._echo or "") + reply.text, [*reply.echoed, *reply.told])
        return self._said(said, finish(reply.ending))

    def pieces(self, piece: Fragment | None) -> list[dict[str, Any]]:
        """Return what a stream says of a piece; None is the end of the answer."""
        said = Fragment("") if piece is None else piece
        if self._echo is not None:
            said = Fragment(self._echo + said.text, [*self.reply.echoed, *said.told])
            self._echo = None
        return [self._said(said, finish(self.reply.ending) if piece is None else None)]

    def _said(self, piece: Fragment, ending: str | None) -> dict[str, Any]:
        logprobs = None if self.reply.row.top is None else self._logprobs(piece.told)
        said = {"index": self.index, "text": piece.text, "logprobs": logprobs}
        return said | {"finish_reason": ending}

    def _logprobs(self, told: Sequence[Likelihood]) -> dict[str, Any]:
        offsets = []
        for one in told:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(self._tokenizer.decode_bytes([one.token])))
        return {
            "tokens": [self._spelled(one.token) for one in told],
            "token_logprobs": [one.logprob for one in told],
            "top_logprobs": [self._top(one) for one in told],
            "text_offset": offsets,
        }

    def _top(self, one: Likelihood) -> dict[str, float] | None:
        if one.logprob is None:
            return None
        ranked = {**dict(one.top), one.token: one.logprob}
        return {self._spelled(token): logprob for token, logprob in ranked.items()}

    def _spelled(self, token: int) -> str:
        """Return a token as a key among others: bytes that are no text are spelled."""
        read = self._tokenizer.decode_bytes([token])
        try:
            return read.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in read)


Choice = ChatChoice | TextChoice


Compile = Callable[[], Grammar]
"""Makes what answers have to be; takes a while."""


def choices_of(
    model: GPT, tokenizer: Tokenizer, asked: Asked
) -> tuple[list[Choice], int, Compile | None]:
    """Return the answers to a request, not yet written, and how many turns they leave out.

    Those to one prompt are drawn with seeds that count on from the request's. At last comes what
    makes the grammar that each of them has to hold to; None: they may say anything.

    Raises:
        Refused: If the model cannot read what is asked.
    """
    _check_bias(model, asked)
    if isinstance(asked, ChatRequest):
        form = _form(tokenizer, asked)
        try:
            ids, left_out = fitting_prompt(model, tokenizer, asked.conversation(), asked.longest)
        except DataError as error:
            raise Refused(400, str(error), param="messages") from None
        replies = _replies(model, tokenizer, asked, ids, "messages")
        said: list[Choice] = [ChatChoice(n, one, tokenizer, form) for n, one in enumerate(replies)]
        return said, left_out, _compile(model, tokenizer, asked, form)
    assert isinstance(asked, CompletionRequest), "there are two forms"
    choices: list[Choice] = []
    for prompt in asked.prompt:
        ids, text = _read_prompt(tokenizer, prompt)
        begins = len(tokenizer.begin_of_text) if prompt else len(ids)
        echo = None if not asked.echo else begins if isinstance(prompt, str) else 0
        for reply in _replies(model, tokenizer, asked, ids, "prompt", echo):
            repeated = text if asked.echo else None
            choices.append(TextChoice(len(choices), reply, tokenizer, repeated))
    return choices, 0, None


def _read_prompt(tokenizer: Tokenizer, prompt: str | list[int]) -> tuple[list[int], str]:
    """Return a text's ids and the text."""
    try:
        if isinstance(prompt, str):
            return text_prompt(tokenizer, prompt), prompt
        if wrong := next((one for one in prompt if not 0 <= one < tokenizer.n_vocab), None):
            raise DataError(
                f"{str(wrong)[:_SHOWN]} is no id; expected 0 to {tokenizer.n_vocab - 1}"
            )
        return prompt, tokenizer.decode_part(prompt)
    except DataError as error:
        raise Refused(400, f"prompt: {error}", param="prompt") from None


def _replies(
    model: GPT,
    tokenizer: Tokenizer,
    asked: Asked,
    prompt: Sequence[int],
    param: str,
    echo: int | None = None,
) -> list[Reply]:
    sampling = asked.sampling
    try:
        return [
            Reply(
                model,
                tokenizer,
                prompt,
                max_tokens=asked.longest,
                stop=asked.stops,
                sampling=sampling.model_copy(update={"seed": (sampling.seed + n) % 2**63}),
                top=asked.top,
                echo=echo,
            )
            for n in range(asked.n or 1)
        ]
    except ConfigError as error:
        code = "context_length_exceeded" if prompt else None
        raise Refused(400, str(error), param=param, code=code) from None


def _form(tokenizer: Tokenizer, asked: ChatRequest) -> CallForm | None:
    """Return how the model calls the tools that it is shown, if any."""
    if not asked.callable:
        return None
    try:
        return call_form(tokenizer.template)
    except ConfigError as error:
        raise Refused(400, f"tools: {error}", param="tools") from None


def _compile(
    model: GPT, tokenizer: Tokenizer, asked: ChatRequest, form: CallForm | None
) -> Compile | None:
    """Return what makes the grammar of an answer; None: it may be any text."""
    wanted = asked.response_format
    schema = None if wanted is None else wanted.schema_of_answer
    choice, tools = asked.tool_choice, asked.callable
    named = [choice.function.name] if isinstance(choice, NamedTool) else []
    must = bool(named) or choice == "required"
    strict = asked.parallel_tool_calls is False or any(tool.function.strict for tool in tools)
    param = "response_format" if schema is not None else "tools"
    if schema is not None and form is not None:
        found = f"{param}: an answer in JSON calls no tools; leave tools out beside it"
        raise Refused(400, found, param=param)
    if schema is None and (form is None or not (must or strict)):
        return None

    def compiled() -> Grammar:
        try:
            if schema is not None:
                return json_grammar(model, tokenizer, schema)
            assert form is not None, "seen above"
            called = [tool for tool in tools if not named or tool.function.name in named]
            return call_grammar(model, tokenizer, form, called, must=must)
        except ConfigError as error:
            raise Refused(400, f"{param}: {error}", param=param) from None

    return compiled


def _check_bias(model: GPT, asked: Asked) -> None:
    most = model.config.vocab_size
    if wrong := next((id for id in asked.logit_bias or {} if not 0 <= id < most), None):
        found = f"logit_bias: {str(wrong)[:_SHOWN]} is no id of a token; expected 0 to {most - 1}"
        raise Refused(400, found, param="logit_bias")


def hold(choices: Sequence[Choice], grammar: Grammar) -> None:
    """Let each answer, of which nothing is written yet, hold to a grammar."""
    for choice in choices:
        choice.reply.row.allowed = grammar.copy()


def head_of(asked: Asked, digest: str, created: int, left_out: int) -> dict[str, Any]:
    """Return what tells one answer from another; the turns left out are not of the protocol.

    Args:
        asked: What is answered.
        digest: Of the checkpoint.
        created: Seconds since 1970.
        left_out: The oldest turns that the model did not read, for want of room.
    """
    kind = "chatcmpl" if isinstance(asked, ChatRequest) else "cmpl"
    return {
        "id": f"{kind}-{secrets.token_hex(12)}",
        "created": created,
        "system_fingerprint": digest[:12],
        "turns_left_out": left_out,
    }


def completion(asked: Asked, choices: Sequence[Choice], head: dict[str, Any]) -> dict[str, Any]:
    """Return the whole answer."""
    form = "chat.completion" if isinstance(asked, ChatRequest) else "text_completion"
    said = [choice.whole() for choice in choices]
    about = {"object": form, "model": asked.model}
    return head | about | {"choices": said, "usage": usage(asked, choices)}


def chunk(asked: Asked, head: dict[str, Any], said: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one event of a streamed answer, which says something of some choices."""
    form = "chat.completion.chunk" if isinstance(asked, ChatRequest) else "text_completion"
    return head | {"object": form, "model": asked.model, "choices": list(said)}


def usage(asked: Asked, choices: Sequence[Choice]) -> dict[str, int]:
    """Return the tokens that were read, each prompt counted once, and written."""
    n_prompt = sum(choice.reply.n_prompt for choice in choices[:: asked.n or 1])
    n_written = sum(choice.reply.n_tokens for choice in choices)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_written,
        "total_tokens": n_prompt + n_written,
    }


def finish(ending: Ending) -> str:
    """Return the protocol's word; a full context is ``length`` there."""
    return "stop" if ending == "stop" else "length"
