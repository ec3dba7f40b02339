"""Every finding that a validation can make, provoked; and the figures beside them."""

import json
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mypt import files
from mypt.config import MaskPolicy, PrepareConfig, Source
from mypt.data.conversations import Conversation
from mypt.data.dataset import open_dataset, prepare, tokenize
from mypt.data.exchange.adoption import adopt
from mypt.data.manifest import METADATA, SPLITS, read_manifest, record_file, write_manifest
from mypt.data.packing.layout import plan_rows
from mypt.data.spans import ROLES
from mypt.data.tokenizer import load_tokenizer
from mypt.errors import ManifestError
from mypt.inspection.checks.blocks import blocks, read_back
from mypt.inspection.checks.findings import EXAMPLES
from mypt.inspection.terminal import render_report
from mypt.inspection.validation import (
    CODES,
    REPORT,
    ValidationReport,
    keep_report,
    kept_report,
    validate,
)
from tests.mypt.clean import everything
from tests.mypt.faults import (
    DATASET_FAULTS,
    MASK_FAULTS,
    PAIR_FAULTS,
    WEIGHT_FAULTS,
    of,
    on_masks,
    painted,
    seal,
    shards,
)


def chat(folder, *pairs, policy=None, **values):
    """Prepare a dataset of questions and answers, and return its folder."""
    talks = [
        [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
        for ask, answer in pairs
    ]
    return prepared(folder, talks, policy, **values)


def prepared(folder, talks, policy=None, **values):
    path = folder / "talks.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    given = {"tokenization": "byte", "val_fraction": 0.0} | values
    config = PrepareConfig(sources=(Source(path=str(path)),), **given)
    return Path(prepare(config, policy or MaskPolicy(), folder / "dataset").path)


def hand(folder, tokens, mask, **val):
    """Adopt one shard of token ids and mask bytes."""
    place = folder / "hand"
    for split, (ids, bits) in {"train": (tokens, mask), **val}.items():
        (place / split).mkdir(parents=True)
        np.array(ids, np.uint32).tofile(place / split / "shard_000.bin")
        np.array(bits, np.uint8).tofile(place / split / "shard_000_mask.bin")
    (place / "val").mkdir(exist_ok=True)
    adopt(place, "byte", "mypt")
    return place


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return everything(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def first(folder, part):
    return folder / getattr(read_manifest(folder).shards[0], part).name


def edited(change):
    """Return a provocation that edits the metadata of a copy."""

    def provoke(copy, _):
        manifest = read_manifest(copy)
        write_manifest(copy, change(manifest))
        return copy

    return provoke


def edited_shard(**values):
    def change(manifest):
        changed = manifest.shards[0].model_copy(update=values)
        return manifest.model_copy(update={"shards": (changed, *manifest.shards[1:])})

    return edited(change)


def rewritten(change):
    """Return a provocation that changes the arrays of the first shard and seals the copy."""

    def provoke(copy, _):
        view = next(shards(copy))
        change(view)
        view.tokens.tofile(copy / view.record.tokens.name)
        np.save(copy / view.record.spans.name, view.spans)
        np.save(copy / view.record.rows.name, view.rows)
        seal(copy)
        return copy

    return provoke


def fresh(make):
    """Return a provocation that makes a dataset of its own."""
    return lambda _, folder: make(folder)


def missing(copy, _):
    first(copy, "spans").unlink()
    return copy


def short(copy, _):
    with first(copy, "tokens").open("r+b") as file:
        file.truncate(100)
    return copy


def flipped(copy, _):
    path = first(copy, "tokens")
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    return copy


def other_layout(copy, _):
    np.save(first(copy, "spans"), np.zeros(3))
    record = record_file(copy, read_manifest(copy).shards[0].spans.name)
    return edited_shard(spans=record)(copy, _)


def renumbered(manifest):
    return manifest.model_copy(
        update={"shards": tuple(s for s in manifest.shards if (s.split, s.index) != ("train", 1))}
    )


def leaked(copy, _):
    train, *_, val = shards(copy)
    val.rows["digest"][0] = train.rows["digest"][2]
    np.save(copy / val.record.rows.name, val.rows)
    seal(copy)
    return copy


def folded_twins(folder):
    """Say everything twice, so that some twins fall on both sides of the split."""
    pairs = [(f"Question {n}?", "It Is So") for n in range(40)]
    pairs += [(f"question  {n}? ", "it is\nso") for n in range(40)]
    return chat(folder, *pairs, val_fraction=0.5)


def tokenized(folder):
    (folder / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    source = Source(path=str(folder / "a.jsonl"))
    config = PrepareConfig(sources=(source,), tokenization="byte", val_fraction=0.0)
    return Path(tokenize(config, folder / "dataset").path)


def dropped(folder):
    talks = [{"role": "user", "content": "only"}, {"role": "assistant", "content": " "}]
    good = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    return prepared(folder, [talks, good])


def changed(folder):
    path = folder / "a.jsonl"
    turns = [("a", "x"), ("a", "y"), ("b", "z")]
    path.write_text(json.dumps({"messages": [{"role": r, "content": t} for r, t in turns]}) + "\n")
    mapping = {"by_order": True}
    source = Source(path=str(path), format="mapping", mapping=mapping)
    config = PrepareConfig(sources=(source,), tokenization="byte", val_fraction=0.0)
    return Path(prepare(config, MaskPolicy(), folder / "dataset").path)


def untaught(folder):
    """Say of one row that nothing of it is learned."""
    ask, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    return prepared(folder, [[ask, answer | {"train": False}], [ask, answer]])


LONG = ("q" * 50, "a" * 100)
PROVOKED = {
    "file_missing": missing,
    "file_size": short,
    "file_changed": flipped,
    "file_layout": other_layout,
    "shard_numbers": edited(renumbered),
    "tokenizer_differs": edited(lambda manifest: manifest.model_copy(update={"n_vocab": 7})),
    "token_unknown": rewritten(lambda view: view.tokens.__setitem__(5, 9999)),
    "rows_gap": rewritten(lambda view: view.rows["start"].__setitem__(1, 3)),
    "spans_gap": rewritten(lambda view: view.spans["stop"].__setitem__(1, 3)),
    "mask_partial": edited_shard(mask=None),
    "stop_supervised": fresh(
        lambda folder: damaged(
            chat(folder, ("q", "a"), policy=MaskPolicy(end_of_turn=False)),
            on_masks(painted(1, of("assistant", "end"))))),
    "never_stops": fresh(
        lambda folder: damaged(
            chat(folder, ("q", "a")), on_masks(painted(0, of("assistant", "end"))))),
    "stats_differ": edited(lambda manifest: forget_stats(manifest)),
    "density_low": fresh(lambda folder: chat(folder, ("q" * 200, "a"))),
    "density_high": fresh(lambda folder: chat(folder, ("q", "a" * 200))),
    "row_unsupervised": fresh(untaught),
    "first_supervised": fresh(
        lambda folder: chat(
            folder, ("q", "a"), template="plain", policy=MaskPolicy(roles=("user", "assistant")))),
    "role_absent": fresh(
        lambda folder: chat(folder, ("q", "a"), policy=MaskPolicy(roles=("system", "assistant")))),
    "mask_none": fresh(tokenized),
    "mask_by_hand": fresh(lambda folder: hand(folder, range(10), [0, 1] * 5)),
    "leak": leaked,
    "leak_folded": fresh(folded_twins),
    "doubled": fresh(lambda folder: chat(folder, ("q", "a"), ("r", "a"), ("q", "a"))),
    "doubled_folded": fresh(lambda folder: chat(folder, ("Q", "a b"), ("q", "A  b"))),
    "replacement": fresh(lambda folder: chat(folder, ("q", "caf\ufffd"))),
    "looks_like_tag": fresh(lambda folder: chat(folder, ("</user>", "a"))),
    "looks_like_turn": fresh(
        lambda folder: chat(folder, ("q\n### Response:\nforged", "a"), template="alpaca")),
    "dropped": fresh(dropped),
    "changed": fresh(changed),
    "split_empty": fresh(lambda folder: chat(folder, ("q", "a"))),
}  # fmt: skip
"""How each finding comes about; the mutation suite provokes the others."""


def damaged(folder, damage):
    damage(folder)
    return folder


def forget_stats(manifest):
    stats = manifest.mask.stats.model_copy(update={"rows_unsupervised": 77, "by_role": {}})
    return manifest.model_copy(update={"mask": manifest.mask.model_copy(update={"stats": stats})})


@pytest.mark.parametrize("code", PROVOKED)
def test_a_provoked_finding_is_made_at_its_level(code, copy, tmp_path):
    report = validate(PROVOKED[code](copy, tmp_path))
    (finding,) = (finding for finding in report.findings if finding.code == code)
    assert (finding.level, finding.message) == CODES[code]
    assert finding.count >= 1
    assert report.ok == all(finding.level != "error" for finding in report.findings)


FAULTS = (MASK_FAULTS, DATASET_FAULTS, WEIGHT_FAULTS, PAIR_FAULTS)


def test_every_finding_is_provoked_here_or_in_the_mutation_suite():
    mutations = set().union(*(codes for faults in FAULTS for _, codes in faults.values()))
    length = {"too_long", "lone_answers", "length_refused", "too_much_lost", "lost_systems"}
    elsewhere = {"density_one", "mask_differs", "span_astray", "digest_differs"} | length
    assert set(CODES) == set(PROVOKED) | mutations | elsewhere


def test_a_prepared_dataset_has_no_finding_and_its_figures_are_counted_right(whole):
    report = validate(whole)
    dataset = open_dataset(whole)
    tokens, supervised = dict.fromkeys(ROLES, 0), dict.fromkeys(ROLES, 0)
    for split in ("train", "val"):
        for shard in dataset.shards(split):
            for span in shard.spans:
                role = ROLES[span["role"]]
                tokens[role] += int(span["stop"] - span["start"])
                supervised[role] += int(shard.mask[span["start"] : span["stop"]].sum())
    stats = report.stats
    assert report.findings == ()
    assert {role: density.tokens for role, density in stats.by_role.items()} == tokens
    assert {role: density.supervised for role, density in stats.by_role.items()} == supervised
    assert stats.total.supervised == sum(supervised.values())
    assert stats.rows == {"train": 66, "val": 14}
    assert stats.rendered == 80


def test_a_finding_counts_all_and_keeps_the_first_places(tmp_path):
    path = chat(tmp_path, *((f"<user> {n}", "a") for n in range(25)))
    (finding,) = (f for f in validate(path).findings if f.code == "looks_like_tag")
    assert finding.count == 25
    assert len(finding.examples) == EXAMPLES
    assert str(finding.examples[3]) == "train row 3 (talks.jsonl:4): user: '<user>'"


def test_an_error_names_row_line_and_reason(copy):
    view = next(shards(copy))
    span = view.spans[of("assistant", "header")(view)][2]
    row, turn = int(span["conversation"]), int(span["message"])
    view.mask[span["start"]] = 1
    view.mask.tofile(copy / view.record.mask.name)
    seal(copy)
    (finding,) = (f for f in validate(copy).findings if f.code == "header_supervised")
    line = view.rows["line"][row]
    said = f"train row {row} (rows.jsonl:{line}): turn {turn}, assistant header '<Assistant>'"
    assert [str(place) for place in finding.examples] == [said]


def test_where_files_are_damaged_nothing_in_them_is_trusted(copy):
    first(copy, "tokens").write_bytes(b"")
    report = validate(copy)
    assert not report.ok
    assert report.stats.rows == {}


def test_a_folder_without_metadata_is_no_dataset(tmp_path):
    with pytest.raises(ManifestError, match=METADATA):
        validate(tmp_path)


def test_a_report_survives_json(whole):
    report = validate(whole, block_size=64)
    again = json.loads(files.canonical_json(report.model_dump(mode="json")))
    assert ValidationReport.model_validate(again) == report


def test_one_role_in_all_is_an_error_unless_it_is_expected(tmp_path):
    path = hand(tmp_path, range(50), [1] * 50)
    assert "density_one" in validate(path).codes()
    assert validate(path, expect_single_role=True).ok


def test_plain_text_may_be_supervised_whole(tmp_path):
    (tmp_path / "a.txt").write_text("nothing but text\n\nand more")
    source = Source(path=str(tmp_path / "a.txt"), format="text")
    config = PrepareConfig(sources=(source,), tokenization="byte", val_fraction=0.0)
    prepare(config, MaskPolicy(), tmp_path / "dataset")
    report = validate(tmp_path / "dataset")
    assert report.ok
    assert report.stats.total.density == 1


def test_headers_are_found_supervised_in_shards_made_by_hand(tmp_path):
    tokenizer = load_tokenizer("byte")
    header = tokenizer.special_id("<Assistant>")
    tokens = [*tokenizer.encode("hi").tolist(), header, *tokenizer.encode("yo").tolist()]
    good = hand(tmp_path, tokens, [0, 0, 0, 1, 1])
    assert validate(good).ok
    (tmp_path / "bad").mkdir()
    bad = hand(tmp_path / "bad", tokens, [0, 0, 1, 1, 1])
    assert validate(bad).codes() >= {"header_supervised"}


def test_the_preview_of_a_block_size_is_the_plan_of_training(whole):
    report = validate(whole, block_size=48, length_policy="keep_last_turns", max_lost=1.0)
    dataset = open_dataset(whole)
    plans = [plan_rows(dataset, split, 48, "keep_last_turns") for split in ("train", "val")]
    total = report.stats.length.total
    assert total.supervised == sum(plan.total.supervised for plan in plans)
    assert total.tokens == report.stats.total.tokens
    assert total.supervised_in == report.stats.total.supervised
    assert report.stats.length.packed_rows == sum(plan.n_rows for plan in plans)


def test_the_account_is_printed_by_source_and_in_all(whole):
    report = validate(whole, block_size=48, length_policy="keep_last_turns", max_lost=1.0)
    console = Console(width=200, file=StringIO())
    console.print(render_report(report))
    printed = " ".join(console.file.getvalue().split())
    accounts = report.stats.length.accounts
    assert len(accounts) > 1
    for account in (*accounts, report.stats.length.total):
        figures = f"{account.rows:,} {account.tokens:,} {account.supervised_in:,}"
        assert f"{account.source}, in {figures}" in printed
        for lost in account.dropped:
            assert f"dropped: {lost.reason} {lost.rows:,} {lost.tokens:,}" in printed


def test_plain_text_without_masks_is_no_finding(tmp_path):
    (tmp_path / "a.txt").write_text("once\n\nupon\n\na time\n")
    source = Source(path=str(tmp_path / "a.txt"))
    made = tokenize(
        PrepareConfig(sources=(source,), tokenization="byte", val_fraction=0.0), tmp_path / "d"
    )
    assert "mask_none" not in validate(Path(made.path)).codes()
    assert "mask_none" in validate(tokenized(tmp_path)).codes()


def test_rows_longer_than_the_block_are_counted(tmp_path):
    path = chat(tmp_path, ("q", "a"), LONG, LONG)
    (finding,) = (f for f in validate(path, block_size=64).findings if f.code == "too_long")
    assert finding.count == 2
    assert finding.examples[0].detail == "154 tokens"
    assert "too_long" not in validate(path, block_size=153).codes()


def test_answers_that_lose_their_question_are_counted(tmp_path):
    path = chat(tmp_path, ("q" * 40, "a" * 40), ("q", "a"))
    (finding,) = (f for f in validate(path, block_size=48).findings if f.code == "lone_answers")
    assert (finding.level, finding.count) == ("warning", 1)
    assert finding.examples[0].detail == "50.0% of the answers"
    assert "lone_answers" not in validate(path, block_size=153).codes()


def test_pieces_that_lose_their_system_message_are_counted_unless_it_is_kept(tmp_path):
    said = [{"role": "system", "content": "Be brief."}]
    for number in range(4):
        said += [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a"}]
    path = prepared(tmp_path, [said])
    (finding,) = (f for f in validate(path, block_size=32).findings if f.code == "lost_systems")
    assert (finding.level, finding.count >= 1) == ("notice", True)
    assert "lost_systems" not in validate(path, block_size=32, length_policy="keep_system").codes()


@pytest.mark.parametrize(("max_lost", "level"), [(0.49, "warning"), (0.5, "notice")])
def test_so_many_answers_without_a_question_as_the_training_allows_are_a_notice(
    tmp_path, max_lost, level
):
    path = chat(tmp_path, ("q" * 40, "a" * 40), ("q", "a"))
    report = validate(path, block_size=48, max_lost=max_lost)
    assert [f.level for f in report.findings if f.code == "lone_answers"] == [level]


@pytest.mark.parametrize(("others", "level"), [(20, "warning"), (2000, "notice")])
def test_near_twins_across_the_split_are_a_notice_where_they_are_few(tmp_path, others, level):
    pairs = [(f"Question {n}?", "It is so.") for n in range(others)]
    twins = [(ask.lower(), answer) for ask, answer in pairs[:6]]
    path = chat(tmp_path, *pairs, *twins, val_fraction=0.5)
    (finding,) = (f for f in validate(path).findings if f.code == "leak_folded")
    assert (finding.level, 0 < finding.count <= 6) == (level, True)


def test_a_length_policy_that_would_stop_training_is_reported(tmp_path):
    path = chat(tmp_path, ("q", "a"), LONG)
    assert "too_much_lost" in validate(path, block_size=64, length_policy="drop").codes()
    report = validate(path, block_size=64, length_policy="error")
    (finding,) = (f for f in report.findings if f.code == "length_refused")
    assert "talks.jsonl:2: 154 tokens" in finding.examples[0].detail


@pytest.mark.parametrize("template", ["mypt", "plain", "chatml"])
def test_parts_that_decide_their_own_mask_are_read_back_as_they_were(tmp_path, template):
    parts = [{"text": "Wrong. ", "train": False}, {"text": "Right."}]
    talk = [
        {"role": "user", "content": [{"text": "a"}, {"text": "b", "train": True}]},
        {"role": "assistant", "content": parts},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": parts, "train": True},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "d"}, *parts]},
    ]
    report = validate(prepared(tmp_path, [talk] * 3, template=template))
    found = {finding.code for finding in report.findings}
    assert not found & {"digest_differs", "rendering_differs", "answer_unsupervised"}
    assert report.ok


@pytest.mark.parametrize("template", ["mypt", "plain", "chatml"])
def test_plain_turns_are_read_back_together_as_one_by_one(tmp_path, template, monkeypatch):
    plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]
    thought = {"role": "assistant", "content": [{"type": "thinking", "thinking": "d"}]}
    said = [{"role": "assistant", "content": [{"text": "e ", "train": False}, {"text": "f"}]}]
    told = [{"role": "user", "content": "h"}, {"role": "assistant", "content": "g", "train": True}]
    talks = [plain, [*plain, *plain], [*plain, thought], plain, [*plain, *said], told, plain * 3]
    dataset = open_dataset(prepared(tmp_path, talks * 2, template=template))
    together = [read_back(block) for split in SPLITS for block in blocks(dataset, split)]
    monkeypatch.setattr("mypt.inspection.checks.blocks._plain_turns", lambda *_: {})
    assert together == [read_back(block) for split in SPLITS for block in blocks(dataset, split)]
    rows = [row for found in together for row in found]
    assert sum(isinstance(row, Conversation) for row in rows) == len(rows) == len(talks) * 2


def test_a_report_is_kept_while_neither_dataset_nor_version_changes(tmp_path, monkeypatch):
    folder = chat(tmp_path, ("q", "a"), ("r", "b"))
    report = validate(folder, block_size=64)
    assert kept_report(folder) is None
    keep_report(folder, report)
    assert kept_report(folder) == report
    with monkeypatch.context() as patch:
        patch.setattr("mypt.inspection.validation.__version__", "another")
        assert kept_report(folder) is None
    for path in (folder / "train" / "shard_000.bin", folder / REPORT):
        before = path.read_bytes()
        path.unlink()
        path.write_bytes(before[:-3] + bytes([before[-3] ^ 1]) + before[-2:])
        assert kept_report(folder) is None, path
        path.write_bytes(before)
    assert kept_report(folder) == report


def test_a_folder_that_may_not_be_written_keeps_no_report(tmp_path, monkeypatch):
    folder = chat(tmp_path, ("q", "a"), ("r", "b"))
    monkeypatch.setattr("os.access", lambda *_: False)
    keep_report(folder, validate(folder))
    assert not (folder / REPORT).exists()
