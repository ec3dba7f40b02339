"""Some rows of a dataset as Markdown: what Prefect shows has no colours, but bold."""

import re
from itertools import groupby, islice

from mypt.data.dataset import Dataset
from mypt.inspection.rowview import RowView, iter_rows
from mypt.inspection.terminal import ShownToken, shown_tokens
from mypt.text import visible

_ROWS = 3
_TOKENS = 400
_SPECIAL = re.compile(r"([\\\\`*_{}\[\]<>#|~!])")


def excerpt(dataset: Dataset) -> str:
    """Return the first rows of a dataset, a message a line, supervised tokens bold."""
    masked = dataset.manifest.mask is not None
    lines = ["**Bold** is what the model learns to write; the rest it only reads." if masked else
             "Without masks: every token is learned."]  # fmt: skip
    for view in islice(iter_rows(dataset, "train"), _ROWS):
        tokens = shown_tokens(view, dataset.tokenizer, None)[:_TOKENS]
        more = " …" if len(view.tokens) > _TOKENS else ""
        lines += [_title(view), *_messages(tokens), more]
    return "\n\n".join(line for line in lines if line)


def _title(view: RowView) -> str:
    return f"*{view.split} row {view.index}, {_plain(visible(f'{view.source} {view.where}'))}*"


def _messages(tokens: list[ShownToken]) -> list[str]:
    return [
        "".join(
            _marked("".join(token.text for token in part), bool(supervised))
            for supervised, part in groupby(message, lambda token: token.supervised)
        )
        for _, message in groupby(tokens, lambda token: token.message)
    ]


def _marked(text: str, supervised: bool) -> str:
    """Return text as Markdown; blanks stand outside of the bold part, or it would not be one."""
    said = _plain(text.replace("\n", "↵ "))
    inner = said.strip()
    if not supervised or not inner:
        return said
    before, _, after = said.partition(inner)
    return f"{before}**{inner}**{after}"


def _plain(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)
