"""What a lineage holds: everything that made the weights, and who made them."""

from pathlib import Path

from mypt.config import MaskPolicy, Preset
from mypt.data.dataset import open_dataset
from mypt.data.packing.layout import plan_rows
from mypt.training import circumstances as provenance
from mypt.training.lineage import RunContext, read_lineage
from mypt.training.loop import train

OTHER_CODE = "f" * 64


def lineage_of(end):
    return read_lineage(Path(end["end"].checkpoint.path))


def stop_after(step):
    done = []
    return lambda: len(done) == step or done.append(None)


def test_what_the_dataset_was_asked_to_be_is_kept(plan, finish):
    found = lineage_of(finish(plan(max_iters=1)))
    assert found.dataset.making.policies == (MaskPolicy(),)
    assert found.dataset.making.config.tokenization == "byte"


def test_what_the_block_size_drops_and_cuts_is_kept(plan, finish):
    made = plan(max_iters=1, batching="packed", block_size=15, length_policy="drop", max_lost=1.0)
    run = finish(made)
    found = lineage_of(run)
    expected = plan_rows(open_dataset(made.dataset.path), "train", 15, "drop")
    assert found.epoch.accounts == expected.accounts
    assert found.epoch.tokens == expected.n_places
    (account,) = found.epoch.accounts
    assert account.dropped
    assert account.dropped[0].reason == "longer than the block"


def test_shards_too_short_for_a_window_are_counted(plan, finish, make_chat, tmp_path):
    small = make_chat(tmp_path, shard_tokens=400)
    found = lineage_of(finish(plan(dataset=small, max_iters=1, block_size=300)))
    lengths = [len(shard.tokens) for shard in open_dataset(small).shards("train")]
    assert found.epoch.skipped == sum(n for n in lengths if n <= 300) > 0
    assert found.epoch.tokens + found.epoch.skipped == sum(lengths)


def test_a_checkpoint_holds_the_whole_lineage_of_its_parents(plan, finish):
    base = lineage_of(finish(plan("base", max_iters=1)))
    middle = lineage_of(finish(plan("middle", init_from="base", max_iters=1)))
    last = lineage_of(finish(plan("last", init_from="middle", max_iters=1)))
    assert last.parent.lineage == middle
    assert last.parent.lineage.parent.lineage == base
    assert last.parent.lineage.parent.digest == base.digest


def test_who_made_the_steps_before_is_kept_when_somebody_else_goes_on(plan, finish, monkeypatch):
    first = RunContext(mlflow_run_id="one")
    list(train(plan(max_iters=6), context=first, should_stop=stop_after(2)))
    code = provenance.record_code(Preset())
    other = code.model_copy(update={"digest": OTHER_CODE})
    monkeypatch.setattr("mypt.training.circumstances.record_code", lambda _: other)
    list(train(plan(max_iters=6), context=first, should_stop=stop_after(2)))
    second = RunContext(mlflow_run_id="two")
    found = lineage_of(finish(plan(max_iters=6), context=second))
    assert [stretch.until for stretch in found.earlier] == [2, 4]
    assert [stretch.code.digest for stretch in found.earlier] == [code.digest, OTHER_CODE]
    assert [stretch.context for stretch in found.earlier] == [first, first]
    assert (found.code.digest, found.context) == (OTHER_CODE, second)


def test_an_interruption_alone_leaves_no_trace(plan, finish):
    list(train(plan(max_iters=6), should_stop=stop_after(2)))
    assert lineage_of(finish(plan(max_iters=6))).earlier == ()
