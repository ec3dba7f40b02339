"""A model that answers with the words of the last user, and a server of it in this process."""

import threading
import time
from contextlib import contextmanager

import torch
import uvicorn

from mypt.config import GPTConfig
from mypt.data.tokenizer import load_tokenizer
from mypt.inference.server.answering import Queue, Served
from mypt.inference.server.serving import configured, create_app, listen
from mypt.model.cache import RowCaches
from mypt.model.gpt import GPT
from mypt.references import CheckpointRef

CONTEXT = 256
CHECKPOINT = CheckpointRef(path="step_001234", digest="d" * 64, step=1234)


class Echo(GPT):
    """Writes what the user said last, then its stop token; waits for ``gate`` at each token."""

    def __init__(self, tokenizer, endless=False):
        super().__init__(
            GPTConfig(block_size=CONTEXT, vocab_size=272, n_layer=1, n_head=1, n_embd=4)
        )
        self.tokenizer, self.endless = tokenizer, endless
        self.gate = threading.Event()
        self.gate.set()
        self.steps = 0

    def new_cache(self, batch_size, _):
        return Left([iter(())] * batch_size)

    def step(self, ids, cache, *_, **__):
        if ids.shape[1] > 1:
            cache.rows = [self._answer(row.tolist()) for row in ids]
        self.gate.wait(60)
        self.steps += 1
        logits = torch.zeros(len(ids), 272)
        for row, left in zip(logits, cache.rows, strict=True):
            row[next(left, self.tokenizer.stop_id)] = 99.0
        return logits

    def _answer(self, read):
        user, end = (self.tokenizer.special_id(tag) for tag in ("<User>", "</User>"))
        begin = len(read) - 1 - read[::-1].index(user)
        said = read[begin + 1 : len(read) - 1 - read[::-1].index(end)]
        return iter(said * 999 if self.endless else [*said, self.tokenizer.stop_id])


class Left(RowCaches):
    """What is left to say in each row."""

    def __init__(self, rows):
        self.rows, self.max_length = rows, CONTEXT


@contextmanager
def serving(
    model, tokenizer, *, waiting=64, api_key=None, at_once=1, told=None, others=None, **named
):
    """Yield the address of a server that ends with the block; ``others`` are models by name."""
    queue = Queue(waiting, at_once)
    models = {"echo": model} | (others or {})
    served = [
        Served(one, tokenizer, name, CHECKPOINT, queue, lambda: 1, told)
        for name, one in models.items()
    ]
    with listen("127.0.0.1", 0, None) as listening:
        config = configured(create_app(served, api_key, **named), 1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            for one in models.values():
                one.gate.set()
            queue.close()
            queue.join()
            server.should_exit = True
            thread.join()


def byte_tokenizer():
    return load_tokenizer("byte")
