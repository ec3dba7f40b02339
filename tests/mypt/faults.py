"""Known mask bugs as switchable faults: each is a function that damages a dataset's folder.

What a fault leaves behind is sealed again, digests and statistics included, as a faulty
program would seal it: a digest that does not match would give every one of them away.
"""

import numpy as np

from mypt.config import MaskPolicy
from mypt.data.manifest import read_manifest, record_file, write_manifest
from mypt.data.mask_files import mask_stats
from mypt.data.masking import mask_from_spans
from mypt.data.shards import view_shard
from mypt.data.spans import KIND, ROLE

POLICY = MaskPolicy(reasoning=False)
"""The policy of the dataset that is damaged: reasoning is context, tool calls are learned."""


def seal(folder, **changes):
    """Write metadata that fits whatever lies in the folder."""
    manifest = read_manifest(folder).model_copy(update=changes)
    shards = []
    for shard in manifest.shards:
        names = ("tokens", "spans", "rows", "mask")
        records = {name: record_file(folder, getattr(shard, name).name) for name in names}
        shards.append(shard.model_copy(update=records))
    manifest = manifest.model_copy(update={"shards": tuple(shards)})
    if all(shard.mask.size == shard.n_tokens for shard in shards):
        views = [view_shard(folder, shard) for shard in shards]
        stats = mask_stats(views, manifest.sources)
        mask = manifest.mask.model_copy(update={"stats": stats})
        manifest = manifest.model_copy(update={"mask": mask})
    write_manifest(folder, manifest)


def shards(folder):
    """Yield a writable copy of each shard's arrays."""
    for shard in read_manifest(folder).shards:
        view = view_shard(folder, shard)
        parts = {
            name: np.array(getattr(view, name)) for name in ("tokens", "mask", "spans", "rows")
        }
        yield view._replace(**parts)


def on_masks(change):
    """Return a fault that gives every shard the mask ``change(view)``."""

    def damage(folder):
        for view in list(shards(folder)):
            change(view).astype(np.uint8).tofile(folder / view.record.mask.name)
        seal(folder)

    return damage


def on_spans(change):
    """Return a fault in the spans, with masks that the honest rule makes from them."""

    def damage(folder):
        policy = read_manifest(folder).mask.policy
        for view in list(shards(folder)):
            spans = change(view)
            np.save(folder / view.record.spans.name, spans)
            mask_from_spans(spans, len(view.tokens), policy).tofile(folder / view.record.mask.name)
        seal(folder)

    return damage


def painted(value, chosen):
    """Return a change that gives the tokens of the chosen spans one mask value."""

    def change(view):
        for span in view.spans[chosen(view)]:
            view.mask[span["start"] : span["stop"]] = value
        return view.mask

    return change


def of(role=None, kind=None):
    def chosen(view):
        found = np.ones(len(view.spans), bool)
        if role is not None:
            found &= view.spans["role"] == ROLE[role]
        if kind is not None:
            found &= view.spans["kind"] == KIND[kind]
        return found

    return chosen


def edge(index):
    """Return a change that misses one token of every answer."""

    def change(view):
        for span in view.spans[of("assistant", "content")(view)]:
            view.mask[span["start"] : span["stop"]][index] = 0
        return view.mask

    return change


def only_turn(pick):
    """Return a change that supervises one assistant turn of a row and forgets the others."""

    def change(view):
        for row in range(len(view.rows)):
            spans = view.spans[(view.spans["conversation"] == row) & of("assistant")(view)]
            for span in spans[spans["message"] != pick(spans["message"])] if len(spans) else ():
                view.mask[span["start"] : span["stop"]] = 0
        return view.mask

    return change


def ignored_train(view):
    """Treat rows as if they had not asked for anything themselves."""
    spans = view.spans.copy()
    spans["train"] = -1
    return mask_from_spans(spans, len(view.tokens), POLICY)


def without_stop_token(view):
    """Take the stop token for padding, wherever it stands."""
    ends = view.spans[of("assistant", "end")(view)]
    stops = view.tokens[ends["stop"].astype(np.int64) - 1]
    return view.mask * ~np.isin(view.tokens, stops)


def moved(by):
    """Return a change that moves every edge between two spans of one row."""

    def change(view):
        spans = view.spans.copy()
        inner = spans["conversation"][1:] == spans["conversation"][:-1]
        edges = spans["stop"][:-1].astype(np.int64) + by * inner
        spans["stop"][:-1] = edges
        spans["start"][1:] = edges
        return spans

    return change


def renamed(field, old, new):
    """Return a change that calls one role or kind another."""

    def change(view):
        spans = view.spans.copy()
        spans[field][spans[field] == old] = new
        return spans

    return change


def swapped_roles(view):
    spans = view.spans.copy()
    user, assistant = (spans["role"] == ROLE[name] for name in ("user", "assistant"))
    spans["role"][user], spans["role"][assistant] = ROLE["assistant"], ROLE["user"]
    return spans


def other_shard(folder):
    """Give every shard the mask of the one before it, cut or repeated to its length."""
    views = list(shards(folder))
    for view, other in zip(views, views[-1:] + views[:-1], strict=True):
        np.resize(other.mask, len(view.tokens)).tofile(folder / view.record.mask.name)
    seal(folder)


def saved_as(dtype):
    """Return a fault that saves masks as numbers of another width."""

    def damage(folder):
        for view in list(shards(folder)):
            view.mask.astype(dtype).tofile(folder / view.record.mask.name)
        seal(folder)

    return damage


def lost_shard(folder):
    """Forget the last training shard, in the metadata and on the disk."""
    manifest = read_manifest(folder)
    last = manifest.split("train")[-1]
    for part in (last.tokens, last.spans, last.rows, last.mask):
        (folder / part.name).unlink()
    seal(folder, shards=tuple(shard for shard in manifest.shards if shard != last))


def unlisted_shard(folder):
    """Forget the last training shard in the metadata, and in the count of rows too."""
    manifest = read_manifest(folder)
    last = manifest.split("train")[-1]
    sources = list(manifest.sources)
    read = sources[last.source].rows_read - last.n_rows
    sources[last.source] = sources[last.source].model_copy(update={"rows_read": read})
    kept = tuple(shard for shard in manifest.shards if shard != last)
    seal(folder, shards=kept, sources=tuple(sources))


def other_policy(folder):
    """Record a policy that did not make the masks."""
    record = read_manifest(folder).mask
    policy = MaskPolicy(roles=("user", "assistant"))
    seal(folder, mask=record.model_copy(update={"policy": policy}))


def moved_rows(folder):
    """Let every row begin one token late."""
    for view in list(shards(folder)):
        view.rows["start"][1:] += 1
        view.rows["stop"][:-1] += 1
        np.save(folder / view.record.rows.name, view.rows)
    seal(folder)


def forged_role(folder):
    """Let a user's text become a special token, as an encoder with special parsing on would."""
    view = next(shards(folder))
    span = view.spans[of("user", "content")(view)][0]
    header = view.spans[of("assistant", "header")(view)][0]
    view.tokens[span["start"]] = view.tokens[header["start"]]
    view.tokens.tofile(folder / view.record.tokens.name)
    seal(folder)


MASK_FAULTS = {
    "shifted right by one": (on_masks(lambda view: np.roll(view.mask, 1)), {"span_split"}),
    "shifted left by one": (on_masks(lambda view: np.roll(view.mask, -1)), {"header_supervised"}),
    "inverted": (on_masks(lambda view: 1 - view.mask), {"role_supervised", "answer_unsupervised"}),
    "all ones": (on_masks(lambda view: np.ones_like(view.mask)), {"density_one"}),
    "all zeros": (on_masks(lambda view: np.zeros_like(view.mask)), {"density_zero"}),
    "stops unsupervised": (
        on_masks(painted(0, of("assistant", "end"))), {"stop_unsupervised"}),
    "stops unsupervised where pad is the stop token": (
        on_masks(without_stop_token), {"stop_unsupervised"}),
    "headers supervised": (
        on_masks(painted(1, of("assistant", "header"))), {"header_supervised"}),
    "users supervised": (on_masks(painted(1, of("user", "content"))), {"role_supervised"}),
    "system prompts supervised": (
        on_masks(painted(1, of("system", "content"))), {"role_supervised"}),
    "tool results supervised": (on_masks(painted(1, of("tool"))), {"tool_supervised"}),
    "reasoning supervised": (
        on_masks(painted(1, of(kind="reasoning"))), {"reasoning_supervised"}),
    "tool calls unsupervised": (
        on_masks(painted(0, of(kind="tool_call"))), {"answer_unsupervised"}),
    "first token of answers missed": (on_masks(edge(0)), {"span_split"}),
    "last token of answers missed": (on_masks(edge(-1)), {"span_split"}),
    "only the last turn": (on_masks(only_turn(np.max)), {"answer_unsupervised"}),
    "only the first turn": (on_masks(only_turn(np.min)), {"answer_unsupervised"}),
    "rows' own train ignored": (on_masks(ignored_train), {"turn_supervised"}),
    "plain text unsupervised": (on_masks(painted(0, of("text"))), {"answer_unsupervised"}),
    "mask of another shard": (other_shard, {"span_split"}),
}  # fmt: skip
"""Faults of masks alone: what they do, and the findings that must be among those made."""


def other_table(change):
    """Return a fault in the table of weights, which bytes of masks point into."""

    def damage(folder):
        record = read_manifest(folder).mask
        seal(folder, mask=record.model_copy(update={"weights": change(record.weights)}))

    return damage


def by_tokens_alone(view):
    """Give each learned token the weight 1, as a byte that is 0 or 1 would."""
    return np.minimum(view.mask, 1)


def stop_of_another(view):
    """Give the ends of turns what their content weighs."""
    for span in view.spans[of(kind="end")(view)]:
        if span["start"] and view.mask[span["start"]]:
            view.mask[span["start"] : span["stop"]] = view.mask[span["start"] - 1]
    return view.mask


WEIGHT_FAULTS = {
    "weights rounded to 0 and 1": (on_masks(by_tokens_alone), {"weight_differs"}),
    "ends weigh what their content does": (on_masks(stop_of_another), {"weight_differs"}),
    "weights shifted by one token": (
        on_masks(lambda view: np.roll(view.mask, 1)), {"span_split", "weight_differs"}),
    "table of weights lost": (other_table(lambda _: (0.0, 1.0)), {"mask_value"}),
    "table of weights in another order": (
        other_table(lambda table: (0.0, *table[:0:-1])), {"weight_differs"}),
    "weights of rows forgotten": (
        lambda folder: seal(folder, row_weights=()), {"span_astray"}),
    "weights of rows swapped": (
        lambda folder: seal(folder, row_weights=read_manifest(folder).row_weights[::-1]),
        {"weight_differs"}),
}  # fmt: skip
"""Faults of a dataset whose tokens weigh more or less than 1."""


def reordered(view, order):
    """Return a shard whose rows stand in another order, each with all that is its own."""
    parts = {"tokens": [], "mask": [], "spans": [], "rows": []}
    at = 0
    for new, old in enumerate(order):
        start, stop = (int(view.rows[name][old]) for name in ("start", "stop"))
        own = view.spans[view.spans["conversation"] == old]
        row = view.rows[old : old + 1].copy()
        for table in (own, row):
            for edge in ("start", "stop"):
                table[edge] = table[edge].astype(np.int64) + (at - start)
        own["conversation"] = new
        for name, part in zip(parts, (view.tokens[start:stop], view.mask[start:stop], own, row),
                              strict=True):  # fmt: skip
            parts[name].append(part)
        at += stop - start
    return view._replace(**{name: np.concatenate(found) for name, found in parts.items()})


def on_shards(change):
    """Return a fault that gives every shard what ``change(view)`` returns."""

    def damage(folder):
        for view in list(shards(folder)):
            new = change(view)
            for name in ("tokens", "mask"):
                getattr(new, name).tofile(folder / getattr(view.record, name).name)
            for name in ("spans", "rows"):
                np.save(folder / getattr(view.record, name).name, getattr(new, name))
        seal(folder)

    return damage


def swapped_sides(view):
    """Write the rejected side where the chosen one belongs."""
    return reordered(view, np.arange(len(view.rows)) ^ 1)


def other_partners(view):
    """Put each chosen side beside the rejected one of another pair."""
    order = np.arange(len(view.rows))
    order[1::2] = np.roll(order[1::2], 1)
    return reordered(view, order)


def other_prompt(view):
    """Ask the rejected side of the first pair something else."""
    place = int(
        view.spans["start"][of("user", "content")(view) & (view.spans["conversation"] == 1)][0]
    )
    view.tokens[place] += 1
    return view


def prompts_learned(view):
    """Forget that earlier answers are context: all that the assistant says is learned."""
    return painted(1, of("assistant", "content"))(view)


PAIR_FAULTS = {
    "sides swapped": (on_shards(swapped_sides), {"digest_differs"}),
    "sides of different pairs side by side": (on_shards(other_partners), {"pair_apart"}),
    "another prompt on one side": (on_shards(other_prompt), {"prompt_differs"}),
    "answers of the prompt supervised": (on_masks(prompts_learned), {"turn_supervised"}),
}
"""Faults of a dataset of preference pairs."""

DATASET_FAULTS = {
    "mask saved as uint32": (saved_as(np.uint32), {"file_size"}),
    "mask saved as uint16": (saved_as(np.uint16), {"file_size"}),
    "mask of 255 for 1": (on_masks(lambda view: view.mask * 255), {"mask_value"}),
    "last shard lost": (lost_shard, {"rows_lost"}),
    "last shard unlisted": (unlisted_shard, {"file_unlisted"}),
    "another policy recorded": (other_policy, {"answer_unsupervised"}),
    "spans one token late": (on_spans(moved(1)), {"rendering_differs"}),
    "spans one token early": (on_spans(moved(-1)), {"rendering_differs"}),
    "roles swapped": (on_spans(swapped_roles), {"rendering_differs"}),
    "headers taken for content": (
        on_spans(renamed("kind", KIND["header"], KIND["content"])), {"special_in_content"}),
    "stops taken for headers": (
        on_spans(renamed("kind", KIND["end"], KIND["header"])), {"rendering_differs"}),
    "tool results taken for answers": (
        on_spans(renamed("role", ROLE["tool"], ROLE["assistant"])), {"rendering_differs"}),
    "reasoning taken for answer": (
        on_spans(renamed("kind", KIND["reasoning"], KIND["content"])), {"special_in_content"}),
    "rows one token late": (moved_rows, {"span_astray"}),
    "role forged by text": (forged_role, {"special_in_content"}),
}  # fmt: skip
"""Faults of anything else on disk."""
