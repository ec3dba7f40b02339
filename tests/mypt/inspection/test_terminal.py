"""A dataset on the terminal: colours, brackets, reasons, and nothing that steers it."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from mypt.config import MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import open_dataset, prepare, tokenize
from mypt.data.manifest import SPLITS, read_manifest
from mypt.data.masking import last_turns, rules
from mypt.data.spans import BY_POLICY
from mypt.errors import DataError
from mypt.inspection.diff import diff
from mypt.inspection.rowview import count_rows, iter_rows, read_row
from mypt.inspection.terminal import (
    render_diff,
    render_manifest,
    render_report,
    render_rows,
    search_rows,
    shown_tokens,
)
from mypt.inspection.validation import validate
from tests.mypt.clean import by_hand, everything
from tests.mypt.faults import POLICY

TALKS = [
    [("user", "What is 2+2?"), ("assistant", "4 [bold]for sure[/bold]")],
    [("user", "\x1b[2Jgone\u202e"), ("assistant", "no")],
    [("user", "where is PARIS"), ("assistant", "in France")],
]


def made(folder, how=prepare, **values):
    path = folder / "talks.jsonl"
    talks = [[{"role": r, "content": c} for r, c in talk] for talk in TALKS]
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    config = PrepareConfig(
        sources=(Source(path=str(path)),), tokenization="byte", val_fraction=0.0, **values
    )
    given = (MaskPolicy(),) if how is prepare else ()
    return Path(how(config, *given, folder / "dataset").path)


def printed(*blocks, colours=False):
    file = io.StringIO()
    console = Console(
        file=file, width=200, force_terminal=colours, color_system="standard" if colours else None
    )
    for block in blocks:
        console.print(block)
    return file.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return everything(tmp_path_factory.mktemp("whole"))


def test_supervised_tokens_stand_in_brackets_where_there_is_no_colour(tmp_path):
    said = printed(*render_rows(made(tmp_path), row=0))
    assert said.splitlines() == [
        "train row 0  talks.jsonl  talks.jsonl:1  39 tokens, 24 supervised (62%)",
        "<User>What is 2+2?</User>",
        "<Assistant>\u27e64 [bold]for sure[/bold]</Assistant>\u27e7",
        "",
    ]


def test_supervised_tokens_are_coloured_on_a_terminal(tmp_path):
    said = printed(*render_rows(made(tmp_path), row=0), colours=True)
    bold_green, end = "\x1b[1;32m", "\x1b[0m"
    assert f"{bold_green}4 [bold]for sure[/bold]</Assistant>{end}" in said
    assert said.count(bold_green) == 1


def test_text_from_the_data_cannot_steer_the_terminal(tmp_path):
    path = made(tmp_path)
    said = printed(*render_rows(path, row=1), *render_rows(path, why=True))
    assert "\\x1b[2Jgone\\u202e" in said
    assert "\x1b" not in said
    assert "\u202e" not in said


def test_search_finds_rows_by_what_is_said_whatever_its_case(tmp_path):
    dataset = open_dataset(made(tmp_path))
    assert [view.index for view in search_rows(dataset, "train", "paris")] == [2]
    assert [view.index for view in search_rows(dataset, "train", "assistant")] == []
    assert [view.index for view in search_rows(dataset, "train")] == [0, 1, 2]


def test_a_search_that_finds_nothing_says_so(tmp_path):
    with pytest.raises(DataError, match=r"no row of train says 'Rome'; .* --split"):
        list(render_rows(made(tmp_path), search="Rome"))


def test_a_row_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="train has no row 3; it has 3 rows"):
        list(render_rows(made(tmp_path), row=3))


def test_rows_are_numbered_over_all_shards(whole):
    dataset = open_dataset(whole)
    for split in SPLITS:
        views = list(iter_rows(dataset, split))
        assert [view.index for view in views] == list(range(count_rows(dataset, split)))
        last = read_row(dataset, split, len(views) - 1)
        assert (last.where, last.tokens.tolist()) == (views[-1].where, views[-1].tokens.tolist())
        assert all(view.spans["start"][0] == 0 for view in views)
        assert all(view.spans["stop"][-1] == len(view.tokens) for view in views)


def parse(rule):
    """Read a printed rule back: its conditions and its outcome."""
    conditions, _, rest = rule.partition(" -> ")
    fields = (
        {} if conditions == "otherwise" else dict(c.split("=") for c in conditions.split(" & "))
    )
    return {field: values.split("|") for field, values in fields.items()}, rest[0]


def test_evaluating_the_printed_rules_again_gives_the_mask(whole):
    dataset = open_dataset(whole)
    printed_rules = [str(rule) for rule in rules(POLICY)]
    seen = set()
    for view in iter_rows(dataset, "train"):
        tokens = shown_tokens(view, dataset.tokenizer, POLICY)
        last = last_turns(view.spans, POLICY)
        for token in tokens:
            span = next(i for i, s in enumerate(view.spans) if token.position < s["stop"])
            train = int(view.spans[span]["train"])
            values = {
                "role": token.role,
                "kind": token.kind,
                "train": "unset" if train == BY_POLICY else str(train),
                "last_turn": "yes" if last[span] else "no",
            }
            fitting = next(
                rule
                for rule in printed_rules
                if all(values[field] in allowed for field, allowed in parse(rule)[0].items())
            )
            assert str(token.rule) == fitting
            assert (
                parse(fitting)[1]
                == str(int(token.supervised))
                == f"{view.weights[token.position]:g}"
            )
            seen.add(fitting)
    assert len(seen) >= 7


def test_reasons_are_given_token_by_token(tmp_path):
    said = printed(*render_rows(made(tmp_path), row=2, why=True))
    rule = "the policy takes the role as context"
    (line,) = (line for line in said.splitlines() if line.split()[:1] == ["1"])
    assert line.split()[:6] == ["1", "119", "w", "user", "content", "0"]
    assert line.endswith(rule)


def test_rows_without_masks_or_spans_are_shown_too(tmp_path):
    assert "\u27e6" not in printed(*render_rows(made(tmp_path, tokenize), rows=2, why=True))
    (tmp_path / "hand").mkdir()
    said = printed(*render_rows(by_hand(tmp_path / "hand"), rows=2, why=True))
    assert "made by hand" in said
    assert "train row 1" in said


def test_reports_print_every_finding_with_its_count(tmp_path):
    path = made(tmp_path)
    said = printed(render_report(validate(path, block_size=16)))
    assert "notice          2  too_long: rows longer than the block" in said
    assert "train row 0 (talks.jsonl:1): 39 tokens" in said
    assert "chat is expected to be supervised from 10% to 90%" in said
    assert said.splitlines()[-1].startswith("ok: 0 errors, ")


def test_a_report_of_plain_text_says_nothing_of_chat(tmp_path):
    (tmp_path / "text.txt").write_text("One.\n\n" * 20)
    config = PrepareConfig(
        sources=(Source(path=str(tmp_path / "text.txt")),), tokenization="byte", val_fraction=0.0
    )
    said = printed(render_report(validate(Path(tokenize(config, tmp_path / "dataset").path))))
    assert "in all" in said
    assert "chat" not in said


def test_a_manifest_and_a_difference_are_printed(tmp_path, whole):
    path = made(tmp_path)
    assert "talks.jsonl: messages, 3 rows read" in printed(
        render_manifest(path, read_manifest(path))
    )
    said = printed(render_diff(diff(path, whole)))
    assert "added" in said
    assert "points" in said
