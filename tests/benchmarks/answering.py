"""Answers to many at once: the server's queue, one request after the other and all together."""

import threading
from collections.abc import Iterator
from typing import Any

import torch
from harness import Line, interleave, judge, ratio

from mypt.config import GPTConfig
from mypt.data.tokenizer import load_tokenizer
from mypt.inference.reply import Reply
from mypt.inference.server.answering import Job, Queue
from mypt.inference.server.choices import Piece
from mypt.model.gpt import GPT

WAITING, TOKENS = 32, 64
SIZES = {
    "3 layers of 128, V 272": GPTConfig(
        block_size=128, vocab_size=272, n_layer=3, n_head=4, n_embd=128
    ),
    "4 layers of 256, V 50,304": GPTConfig(
        block_size=256, vocab_size=50_304, n_layer=4, n_head=4, n_embd=256
    ),
}


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the lines of this area."""
    tokenizer = load_tokenizer("byte")
    for name, config in SIZES.items():
        torch.manual_seed(0)
        model = GPT(config.model_copy(update={"dropout": 0.0})).eval()
        works = {str(n): _Asked(model, tokenizer, n) for n in (1, WAITING)}
        same = works["1"]() == works[str(WAITING)]()
        seconds = interleave(works, 2 if quick else 5)
        for work in works.values():
            work.queue.close()
            work.queue.join()
        found, n = ratio(seconds, str(WAITING), "1"), WAITING * TOKENS
        yield Line(
            work=f"serve, {WAITING} requests for {TOKENS} tokens at once, {name}, float32",
            against="one after the other",
            reach=">= 4",
            measured=str(found),
            met=judge(found.median, 4.0),
            note=f"{'identical' if same else 'DIFFERENT'} answers;"
            f" {n / min(seconds[str(WAITING)]):,.0f} and {n / min(seconds['1']):,.0f} tokens a"
            " processor second",
        )


class _Asked:
    """All requests, put into a queue and waited for."""

    def __init__(self, model: GPT, tokenizer: Any, at_once: int) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.queue = Queue(WAITING, at_once)

    def __call__(self) -> list[str]:
        left, done = [WAITING], threading.Event()

        def emit(said: Piece | BaseException | None) -> None:
            if isinstance(said, Piece):
                return
            assert said is None, said
            left[0] -= 1
            if not left[0]:
                done.set()

        replies = []
        for n in range(WAITING):
            prompt = self.tokenizer.encode(f"request {n}: say something").tolist()
            replies.append(Reply(self.model, self.tokenizer, prompt, max_tokens=TOKENS))
        self.queue.add([Job(reply, emit) for reply in replies])
        done.wait()
        return [reply.text for reply in replies]
