"""The questions of examples/, those that a model was taught and others, and asking a model them."""

import json
from pathlib import Path

from mypt.data.dataset import open_dataset
from mypt.inference.chat import answer_prompts, prompt_of
from mypt.training.checkpoints.checkpoint import load_model
from tests.pages import ROOT

EXAMPLES = ROOT / "examples"
Pair = tuple[str, str]
"""A question and its answer."""


def conversations() -> list[list[dict]]:
    """Return every conversation of ``examples/chats``, as lists of messages."""
    blocks = (
        b for file in sorted((EXAMPLES / "chats").iterdir()) for b in file.read_text().split("\n\n")
    )
    return [[json.loads(line) for line in block.splitlines()] for block in blocks]


def paraphrases() -> list[Pair]:
    """Return the questions in other words that no model is taught."""
    rows = map(json.loads, (EXAMPLES / "paraphrases.jsonl").read_text().splitlines())
    return [(row["question"], row["answer"]) for row in rows]


def taught(dataset: Path) -> list[Pair]:
    """Return the questions of one turn that stand in a dataset's training rows."""
    opened = open_dataset(dataset)
    text = "".join(opened.tokenizer.decode(s.tokens.tolist()) for s in opened.shards("train"))
    pairs = [[m["content"] for m in messages] for messages in conversations() if len(messages) == 2]
    return [
        (question, answer)
        for question, answer in pairs
        if f"<User>{question}</User><Assistant>{answer}</Assistant>" in text
    ]


def share_right(model_folder: Path, pairs: list[Pair]) -> float:
    """Return how many of the questions a model answers word for word, and then stops."""
    model, tokenizer = load_model(model_folder)[:2]
    prompts = [prompt_of(tokenizer, question, "chat") for question, _ in pairs]
    answers = answer_prompts(model.eval(), tokenizer, prompts, max_tokens=32)
    right = (a.stopped and a.text == said for a, (_, said) in zip(answers, pairs, strict=True))
    return sum(right) / len(pairs)
