"""Clean datasets of different formats, templates, tokenizers and policies, all of them small."""

import json
import random
from pathlib import Path

import numpy as np

from mypt.config import FieldMapping, MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import prepare
from mypt.data.exchange.adoption import adopt
from mypt.data.tokenizer import load_tokenizer

WORDS = ("tea", "rain", "über", "Paris", "no", "🙂", "2+2", "日本", "of", "the\nsea", "don't")


def words(rng, most=8):
    return " ".join(rng.choices(WORDS, k=rng.randint(2, most)))


def turns(rng, number, exchanges=3):
    """Return a plain conversation that stands nowhere else."""
    found = []
    for _ in range(rng.randint(1, exchanges)):
        found.append({"role": "user", "content": f"{number}: {words(rng)}"})
        found.append({"role": "assistant", "content": words(rng, 20)})
    return found


def agent(rng, number):
    """Return a conversation with a system prompt, reasoning, a tool call and its result."""
    call = {"function": {"name": "look", "arguments": json.dumps({"at": words(rng)})}}
    return [
        {"role": "system", "content": f"Be brief, {number}."},
        {"role": "user", "content": words(rng)},
        {"role": "assistant", "reasoning_content": words(rng), "content": "", "tool_calls": [call]},
        {"role": "tool", "content": words(rng)},
        {"role": "assistant", "reasoning_content": words(rng), "content": words(rng)},
    ]


def marked(rng, number):
    """Return a conversation whose turns say themselves whether they are learned."""
    found = turns(rng, number) + turns(rng, number)
    found[1]["train"] = False
    found[-2]["weight"] = 1
    return found


def weighed(rng, number):
    """Return a conversation whose turns say how much they weigh."""
    found = turns(rng, number) + turns(rng, number)
    found[0]["weight"] = 0.25
    found[1]["weight"] = rng.choice([0.5, 2, 3.5])
    found[-1]["train"] = False
    return found


def mixed(rng, number):
    return (turns, agent, marked)[number % 3](rng, number)


def write(folder, make, count=48, seed=0, name="rows.jsonl", wrap="messages"):
    rng = random.Random(seed)
    rows = [make(rng, number) for number in range(count)]
    rows = [{wrap: row} if wrap else row for row in rows]
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def made(folder, policy=None, sources=None, **values):
    """Prepare what lies in ``folder / "rows.jsonl"``, or ``sources``, and return the dataset."""
    sources = sources or (Source(path=str(folder / "rows.jsonl")),)
    given = {"tokenization": "byte", "val_fraction": 0.2, "shard_tokens": 1500} | values
    config = PrepareConfig(sources=tuple(sources), **given)
    return Path(prepare(config, policy or MaskPolicy(), folder / "dataset").path)


def messages(folder):
    write(folder, turns)
    return made(folder)


def chat_lines(folder):
    rng = random.Random(1)
    blocks = ["\n".join(map(json.dumps, turns(rng, number))) for number in range(40)]
    path = folder / "chat.jsonl"
    path.write_text("\n\n".join(blocks) + "\n")
    return made(folder, sources=[Source(path=str(path), format="chat")])


def agents(folder):
    write(folder, agent)
    return made(folder, MaskPolicy(reasoning=False), template="chatml")


def last_turns(folder):
    write(folder, turns)
    return made(folder, MaskPolicy(last_turn_only=True), template="llama3")


def marks(folder):
    write(folder, marked)
    return made(folder, MaskPolicy(end_of_turn=False))


def preferences(folder):
    """Preference pairs, some after a conversation of several turns."""

    def pair(rng, number):
        asked = (turns(rng, number) if number % 2 else []) + [
            {"role": "user", "content": f"{number}. {words(rng)}"}
        ]
        better, worse = (f"{word} {words(rng)}" for word in ("yes", "no"))
        return {"prompt": asked, "chosen": better, "rejected": worse}

    write(folder, pair, wrap=None)
    return made(folder, sources=[Source(path=str(folder / "rows.jsonl"), pairs=True)])


def weights(folder):
    """Weights of everything that can have one: roles, kinds, sources, rows, messages."""
    write(folder, lambda rng, n: (weighed, agent, turns)[n % 3](rng, n), count=60)
    write(
        folder,
        lambda rng, n: {"text": f"{n}. {words(rng, 40)}", "weight": 1 + n % 3 / 2},
        count=20,
        name="text.jsonl",
        wrap=None,
    )
    sources = [Source(path=str(folder / name)) for name in ("rows.jsonl", "text.jsonl")]
    given = {"stop": 2.0, "user": 0.1, "source:text.jsonl": 0.5, "tool_calls": 1.5}
    policy = MaskPolicy(roles=("user", "assistant"), weights=given)
    return made(folder, policy, sources=sources, shard_tokens=3000)


def last_rounds(folder):
    write(folder, mixed)
    return made(folder, MaskPolicy(last_round_only=True))


def alpaca(folder):
    def row(rng, number):
        return {"instruction": f"{number} {words(rng)}", "input": "", "output": words(rng, 30)}

    write(folder, row, wrap=None)
    return made(folder)


def pairs(folder):
    def row(rng, number):
        return {"prompt": f"{number} {words(rng)}", "completion": words(rng, 30)}

    write(folder, row, wrap=None)
    return made(folder, template="plain", tokenization="bpe:300")


def sharegpt(folder):
    def row(rng, number):
        names = {"user": "human", "assistant": "gpt"}
        return [{"from": names[t["role"]], "value": t["content"]} for t in turns(rng, number)]

    write(folder, row, wrap="conversations")
    return made(folder, MaskPolicy(roles=("system", "assistant")), tokenization="char")


def tagged(folder):
    rng = random.Random(2)
    blocks = [
        "\n".join(
            f"<{t['role'].title()}>{t['content']}</{t['role'].title()}>" for t in turns(rng, n)
        )
        for n in range(40)
    ]
    path = folder / "tagged.txt"
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return made(folder, sources=[Source(path=str(path), format="tagged")])


def mapped(folder):
    def row(rng, number):
        return {"talk": [{"who": t["role"], "says": t["content"]} for t in turns(rng, number)]}

    write(folder, row, wrap=None)
    mapping = FieldMapping(turns="talk", role="who", text="says")
    source = Source(path=str(folder / "rows.jsonl"), format="mapping", mapping=mapping)
    return made(folder, sources=[source], template="alpaca")


def text(folder):
    def row(rng, number):
        return f"{number}. {words(rng, 40)}"

    write(folder, row, wrap="text")
    return made(folder)


def replay(folder):
    write(folder, turns)
    write(folder, lambda rng, n: f"{n}. {words(rng, 40)}", name="text.jsonl", wrap="text")
    sources = [
        Source(path=str(folder / "rows.jsonl")),
        Source(path=str(folder / "text.jsonl"), weight=2.0),
        Source(exercises="chat", count=30),
    ]
    return made(folder, sources=sources)


def by_hand(folder):
    """Write shards as the guide's pseudocode does, and adopt them."""
    tokenizer, rng = load_tokenizer("byte"), random.Random(3)
    place = folder / "dataset"
    for split in ("train", "val"):
        (place / split).mkdir(parents=True)
        tokens, mask = [], []
        for number in range(20):
            for turn in turns(rng, f"{split} {number}"):
                ids = tokenizer.encode(turn["content"]).tolist()
                tokens += ids
                mask += [int(turn["role"] == "assistant")] * len(ids)
        np.array(tokens, dtype=np.uint32).tofile(place / split / "shard_000.bin")
        np.array(mask, dtype=np.uint8).tofile(place / split / "shard_000_mask.bin")
    adopt(place, "byte")
    return place


def everything(folder):
    """Make the dataset that the faults damage: every role and kind, text too, many shards."""
    from tests.mypt.faults import POLICY

    write(folder, mixed, count=60)
    write(folder, lambda rng, n: f"{n}. {words(rng, 40)}", count=20, name="text.jsonl", wrap="text")
    sources = [Source(path=str(folder / name)) for name in ("rows.jsonl", "text.jsonl")]
    return made(folder, POLICY, sources=sources, shard_tokens=3000)


CLEAN = (
    messages, chat_lines, agents, last_turns, marks, alpaca, pairs, sharegpt, tagged, mapped, text,
    replay, by_hand, everything, weights, last_rounds, preferences,
)  # fmt: skip
