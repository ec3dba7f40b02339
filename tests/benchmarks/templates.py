"""The table of published chat templates in docs/data.md: which rows are proved, and why not.

    python -m tests.benchmarks.templates PLACE ...

A place is a base's folder (``tokenizer.json`` and ``tokenizer_config.json``), or a file of Jinja,
which gets a small tokenizer that knows the tokens it names. Of each, 600 conversations are written,
half of them nasty, and the ids of every row that is accepted and spells no token are compared with
those of ``apply_chat_template``. What a template refuses is said below the table.
"""

import datetime
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import transformers
from transformers.utils import chat_template_utils

from mypt.data.conversations import Conversation
from mypt.data.preparation.rendered import Rendered, controls_of, encode_rendered
from mypt.data.rendering.base_template import BaseTemplate
from mypt.data.rendering.sandbox import TODAY
from mypt.data.tokenizer import Tokenizer, load_tokenizer
from mypt.errors import MyptError
from tests.mypt.data.rendering.test_written import NASTY, PLAIN, conversations
from tests.mypt.data.vocabularies.test_huggingface import split, trained

ROWS = 300
MIXED = PLAIN + NASTY
_LAW = ("no prefix", "melt with its header")
_TOKENS = re.compile(r"<\|[\w-]+\|>|</?[a-z_]+>|\[/?[A-Z_]+\]|<\uff5c[^\s<>]+\uff5c>")


class Found(NamedTuple):
    """What became of the rows of one template."""

    name: str
    plain: int
    """Plain rows proved."""
    nasty: int
    law: str
    """Whether what inference feeds begins what training reads, in plain rows."""
    apart: str
    """Where it does not: turns proved if each is a row of its own."""
    reasons: Counter[str]
    """Of refusals."""
    compared: int
    """Rows whose ids are those of ``apply_chat_template``."""


class _Clock(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> "_Clock":  # noqa: ARG003
        return cls.fromtimestamp(TODAY.timestamp())


def folder_of(place: Path, work: Path) -> Path:
    """Return a base's folder; round a file of Jinja one is made."""
    if place.is_dir():
        return place
    source = place.read_text(encoding="utf-8")
    named = sorted({"<bos>", "</s>", *_TOKENS.findall(source)})
    folder = work / place.stem
    folder.mkdir()
    trained(split(), specials=named).save(str(folder / "tokenizer.json"))
    config = '{"bos_token": "<bos>", "eos_token": "</s>"}'
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    return folder


def measure(folder: Path) -> Found:
    """Write the conversations in a base's own template.

    Raises:
        MyptError: If the base cannot be used at all.
    """
    ours = load_tokenizer(f"hf:{folder}", "base")
    groups = [list(conversations(words, ROWS, seed)) for seed, words in enumerate((PLAIN, MIXED))]
    found = [encode_rendered(rows, ours, many=True) for rows in groups]
    reasons = Counter(reason for one in found for _, reason in one.refused)
    broken = sum(any(law in reason for law in _LAW) for _, reason in found[0].refused)
    return Found(
        folder.name,
        *(len(one.rows) for one in found),
        f"broken in {broken} plain rows" if broken else "kept",
        _apart(groups[0], ours) if broken else "",
        reasons,
        sum(_compare(one, ours, folder) for one in found),
    )


def _apart(rows: list[Conversation], ours: Tokenizer) -> str:
    template = BaseTemplate(**ours.template.model_dump() | {"each_turn": True})
    proved = len(encode_rendered(rows, Tokenizer(ours.vocabulary, template), many=True).rows)
    turns = sum(turn.role == "assistant" for row in rows for turn in row.messages)
    return f"{proved} of {turns}"


def _compare(found: Rendered, ours: Tokenizer, folder: Path) -> int:
    """Return how many rows were compared with transformers' ids.

    Raises:
        AssertionError: If a row has others.
    """
    variables = ours.template.variables | {"chat_template": ours.template.source}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), **variables
    )
    controls, start, compared = controls_of(ours), 0, 0
    stops = [int(span["stop"]) for span in found.spans]
    rows = [int(span["conversation"]) for span in found.spans]
    ends = dict(zip(rows, stops, strict=True))  # the last one of each stays
    for number, row in enumerate(found.rows):
        ids = found.tokens[start : ends[number]].tolist()
        start = ends[number]
        assert isinstance(row, Conversation)
        if any(controls.search(turn.text) for turn in row.messages):
            continue
        said = [{"role": turn.role, "content": turn.text} for turn in row.messages]
        assert fast.apply_chat_template(said, return_dict=True)["input_ids"] == ids, said
        compared += 1
    return compared


def table(places: list[Path]) -> Iterator[str]:
    """Yield the table's lines, and below it what was refused."""
    chat_template_utils.datetime = _Clock
    yield from (
        "| template | plain | nasty | prefix law | turns apart | ids compared |",
        "|---|---|---|---|---|---|",
    )
    below: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        for place in places:
            try:
                found = measure(folder_of(place, Path(work)))
            except MyptError as error:
                yield f"| {place.stem} | - | - | refused | | - |"
                below.append(f"{place.stem}: {error}")
                continue
            cells = (found.name, found.plain, found.nasty, found.law, found.apart, found.compared)
            yield f"| {' | '.join(map(str, cells))} |"
            below += [f"{found.name}: {n} of {reason}" for reason, n in found.reasons.most_common()]
    yield from ("", *below)


if __name__ == "__main__":
    for line in table([Path(word) for word in sys.argv[1:]]):
        print(line, flush=True)  # noqa: T201 - what the program is for
