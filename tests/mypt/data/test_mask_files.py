"""What masks select is counted by split, role and source."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mypt.config import MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import open_dataset, prepare
from mypt.data.mask_files import mask_stats, supervised_in
from mypt.data.policies import parse_policy
from mypt.data.spans import KIND, ROW_DTYPE
from mypt.errors import MaskError
from tests.mypt.data.handmade import dataset, make_view, shard


def test_the_counts_are_those_of_a_hand_written_corpus():
    hand = dataset(
        shard([[("user", 5), ("assistant", 4)], [("user", 3)]]),
        shard([[("text", 6)], [("system", 3), ("assistant", 3)]], split="val", source=1),
    )
    stats = mask_stats(hand.views, hand.manifest.sources)

    def counts(group):
        return {name: (d.tokens, d.supervised) for name, d in group.items()}

    assert (stats.total.tokens, stats.total.supervised) == (24, 11)
    assert counts(stats.by_split) == {"train": (12, 3), "val": (12, 8)}
    assert counts(stats.by_source) == {"source 0": (12, 3), "source 1": (12, 8)}
    assert counts(stats.by_role) == {
        "user": (8, 0), "assistant": (7, 5), "text": (6, 6), "system": (3, 0),
    }  # fmt: skip
    assert (stats.rows, stats.rows_unsupervised) == (4, 1)


def test_masks_made_by_hand_have_no_roles_and_no_rows():
    view = make_view([1, 2, 3], np.array([0, 1, 1], np.uint8), None, None)
    stats = mask_stats([view], dataset(view).manifest.sources)
    assert (stats.total.density, stats.by_role, stats.rows) == (pytest.approx(2 / 3), {}, 0)


def test_a_shard_without_a_mask_is_refused_and_not_counted_as_unsupervised():
    view = shard([[("user", 3)]], masked=False)
    with pytest.raises(MaskError, match=r"train/shard_000\.bin has no mask"):
        mask_stats([view], dataset(view).manifest.sources)


@given(st.lists(st.lists(st.integers(0, 1), max_size=4)))
def test_supervised_tokens_of_parts_equal_a_plain_sum_also_for_empty_parts(parts):
    rows = np.zeros(len(parts), ROW_DTYPE)
    stops = np.cumsum([len(part) for part in parts], dtype=np.int64)
    rows["stop"], rows["start"][1:] = stops, stops[:-1]
    mask = np.array([bit for part in parts for bit in part], dtype=np.uint8)
    assert supervised_in(mask, rows).tolist() == [sum(part) for part in parts]


THOUGHTS = ("<think></think>ok {}", "<think>\n\n</think>\n\nfine {}", "<think>a</think>yes {}")


@pytest.fixture
def thinking(tmp_path):
    """Rows of which two in three hold reasoning that says nothing."""
    rows = [
        {"messages": [
            {"role": "user", "content": f"say {i}"},
            {"role": "assistant", "content": THOUGHTS[i % 3].format(i)},
        ]}
        for i in range(30)
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))

    def made(name, policy, **how):
        given = {"tokenization": "byte", "val_fraction": 0.2, "template": "chatml"}
        config = PrepareConfig(sources=(Source(path=str(path)),), **given)
        return open_dataset(prepare(config, policy, tmp_path / name, **how).path)

    return made


def reasoning_learned(dataset):
    """What each stretch of reasoning says beside its tags, and whether it is learned."""
    found = set()
    for split in ("train", "val"):
        for view in dataset.shards(split):
            for span in view.spans[view.spans["kind"] == KIND["reasoning"]]:
                place = slice(int(span["start"]), int(span["stop"]))
                text = dataset.tokenizer.decode(view.tokens[place])
                said = text.replace("<think>", "").replace("</think>", "").strip()
                found.add((said, *set(view.mask[place].tolist())))
    return found


def test_reasoning_that_says_nothing_is_left_out_unless_the_policy_keeps_it(thinking):
    new = thinking("new", MaskPolicy())
    assert reasoning_learned(new) == {("", 0), ("a", 1)}
    assert new.manifest.mask.policy.reasoning_above > 0
    kept = thinking("kept", parse_policy("assistant,empty_reasoning"))
    assert reasoning_learned(kept) == {("", 1), ("a", 1)}


def test_a_dataset_of_before_is_made_again_as_it_was(thinking):
    before = thinking("before", MaskPolicy(), as_asked=True)
    assert before.manifest.mask.policy == MaskPolicy()
    assert reasoning_learned(before) == {("", 1), ("a", 1)}
    written = before.manifest.mask.policy.model_dump()
    assert not {"skip_empty_reasoning", "reasoning_above", "weights"} & written.keys()


def test_a_source_that_is_not_there_cannot_be_weighed(thinking):
    with pytest.raises(MaskError, match=r"no source is called 'web'; found rows\.jsonl"):
        thinking("none", MaskPolicy(weights={"source:web": 2.0}))


def test_the_table_of_weights_stands_in_the_manifest_and_0_and_1_need_none(thinking):
    plain = thinking("plain", MaskPolicy()).manifest
    assert "weights" not in plain.mask.model_dump()
    assert "row_weights" not in plain.model_dump()
    weighed = thinking("weighed", parse_policy("assistant,stop=2,user=0.1"))
    assert weighed.manifest.mask.weights == (0.0, 0.1, 0.2, 1.0, 2.0)
    assert weighed.weights.tolist() == np.float32([0, 0.1, 0.2, 1, 2]).tolist()
    assert weighed.manifest.mask.stats.total.supervised > plain.mask.stats.total.supervised
