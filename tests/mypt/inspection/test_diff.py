"""What changed between two datasets is counted row by row and shown with its place."""

import numpy as np
import pytest
from rich.console import Console

from mypt.config import MaskPolicy
from mypt.data.dataset import mask, open_dataset, prepare, tokenize
from mypt.inspection.diff import diff
from mypt.inspection.rowview import iter_rows
from mypt.inspection.terminal import render_diff
from tests.mypt.data.corpora import chats, config, say, write_chats


def made(folder, conversations, policy=None, **values):
    """Prepare a dataset from a file that is called chat.jsonl in every folder."""
    folder.mkdir()
    path = write_chats(folder / "chat.jsonl", conversations)
    return prepare(config(path, **values), policy or MaskPolicy(), folder / "d").path


def counts(found):
    return (found.same, found.added, found.removed, found.changed, found.moved)


def test_a_dataset_does_not_differ_from_itself(tmp_path):
    a, b = (made(tmp_path / name, chats(20)) for name in "ab")
    found = diff(a, b)
    assert counts(found) == (20, 0, 0, 0, 0)
    assert (found.a, found.settings, found.examples) == (found.b, (), ())


def test_rows_at_the_end_are_added_one_way_and_removed_the_other(tmp_path):
    a, b = made(tmp_path / "a", chats(20)), made(tmp_path / "b", chats(20) + chats(3, seed=1))
    assert counts(diff(a, b)) == (20, 3, 0, 0, 0)
    assert counts(diff(b, a)) == (20, 0, 3, 0, 0)
    (first, *_) = sorted(example.where for example in diff(a, b).examples)
    assert first == "chat.jsonl:21"


def test_a_row_that_says_something_else_in_the_same_place_is_changed(tmp_path):
    edited = chats(20)
    edited[4] = [say("user", "edited"), say("assistant", "yes")]
    found = diff(made(tmp_path / "a", chats(20)), made(tmp_path / "b", edited))
    assert counts(found) == (19, 0, 0, 1, 0)
    (example,) = found.examples
    assert example.where == "chat.jsonl:5"
    assert example.detail.startswith("changed")


def test_a_row_that_stands_twice_is_counted_twice(tmp_path):
    found = diff(made(tmp_path / "a", chats(20)), made(tmp_path / "b", chats(20) + chats(2)))
    assert counts(found) == (20, 2, 0, 0, 0)


def test_a_larger_share_for_validation_moves_rows_and_changes_none(tmp_path):
    a = made(tmp_path / "a", chats(60), val_fraction=0.1)
    b = made(tmp_path / "b", chats(60), val_fraction=0.5)
    found = diff(a, b)
    assert found.same + found.moved == 60
    assert found.moved > 5
    assert (found.added, found.removed, found.changed) == (0, 0, 0)


def test_another_policy_moves_density_by_role_and_by_source(tmp_path):
    a = made(tmp_path / "a", chats(20))
    b = mask(a, MaskPolicy(roles=("user",)), tmp_path / "m").path
    found = diff(a, b)
    assert found.same == found.masked_anew == 20
    assert len(found.examples) == 10
    assert found.examples[0].detail == "masked anew, source chat.jsonl"
    (setting,) = found.settings
    assert setting == "mask policy: assistant -> user"
    before, after = found.density["role assistant"]
    assert before.density > 0.8
    assert after.supervised == 0
    before, after = found.density["source chat.jsonl"]
    assert (before.tokens, before.density) != (after.tokens, after.density)


def test_only_rows_whose_mask_changed_are_counted_as_masked_anew(tmp_path):
    talks = chats(20)
    talks[6] += [say("user", "more"), say("assistant", "yes")]
    a = made(tmp_path / "a", talks)
    b = mask(a, MaskPolicy(last_turn_only=True), tmp_path / "m").path
    found = diff(a, b)
    naive = sum(
        not np.array_equal(one.weights, other.weights)
        for split in ("train", "val")
        for one, other in zip(*(iter_rows(open_dataset(x), split) for x in (a, b)), strict=True)
    )
    assert 0 < found.masked_anew == naive < 20
    assert diff(a, made(tmp_path / "c", chats(20))).masked_anew is None
    weighed = [
        mask(a, MaskPolicy(weights={"assistant": weight}), tmp_path / f"w{weight}").path
        for weight in (2, 3)
    ]
    assert diff(*weighed).masked_anew == 20  # the same bytes mean another weight


def test_what_is_not_shown_is_counted_and_a_source_that_is_missing_has_no_share(tmp_path):
    a = made(tmp_path / "a", chats(20))
    (tmp_path / "b").mkdir()
    other = write_chats(tmp_path / "b" / "other.jsonl", chats(15, seed=1))
    b = prepare(config(other), MaskPolicy(), tmp_path / "b" / "d").path
    console = Console(width=100, record=True)
    console.print(render_diff(diff(a, b)))
    said = console.export_text()
    assert "and 15 more" in said  # 20 removed, 15 added, 10 of each shown
    (line,) = [line for line in said.splitlines() if line.startswith("source other.jsonl")]
    assert line.split()[2] == "\u2013"
    assert "points" not in line


def test_another_tokenizer_and_template_are_named(tmp_path):
    a = made(tmp_path / "a", chats(20))
    b = made(tmp_path / "b", chats(20), tokenization="char", template="chatml")
    found = diff(a, b)
    assert found.same == 20
    assert [line.partition(":")[0] for line in found.settings] == [
        "tokenizer", "tokenizer state", "template",
    ]  # fmt: skip


def test_a_dataset_without_masks_can_be_compared(tmp_path):
    path = write_chats(tmp_path / "chat.jsonl", chats(20))
    tokens = tokenize(config(path), tmp_path / "t").path
    found = diff(tokens, mask(tokens, MaskPolicy(), tmp_path / "m").path)
    assert found.settings == ("mask policy: no mask -> assistant",)
    assert found.density["in all"][0].tokens == 0
    assert found.density["in all"][1].density > 0


def test_the_result_is_frozen(tmp_path):
    a = made(tmp_path / "a", chats(5))
    with pytest.raises(ValueError, match="frozen"):
        diff(a, a).same = 1
