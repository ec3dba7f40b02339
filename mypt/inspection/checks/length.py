"""What a block size and a length policy would make of the rows: nothing is cut, all is counted."""

import numpy as np

from mypt.data.dataset import Dataset
from mypt.data.manifest import SPLITS, Split
from mypt.data.packing.accounts import LengthAccount, merge
from mypt.data.packing.layout import plan_rows
from mypt.data.packing.pieces import LengthPolicy
from mypt.errors import DataError
from mypt.inspection.checks.contents import ShardCheck
from mypt.inspection.checks.findings import EXAMPLES, Findings, LengthPreview, Where


def preview_length(
    dataset: Dataset,
    block_size: int,
    length_policy: LengthPolicy,
    max_lost: float,
    findings: Findings,
) -> LengthPreview:
    """Plan both splits as packed training would, and report what would stop it.

    Args:
        dataset: The dataset.
        block_size: Places of a packed row; it holds rows of at most one token more.
        length_policy: What becomes of longer rows.
        max_lost: Largest share of supervised tokens that may be lost to length.
        findings: Where to report.
    """
    accounts: list[LengthAccount] = []
    packed = 0
    for split in SPLITS:
        if not dataset.shards(split):
            continue
        _count_long(dataset, split, block_size, findings)
        try:
            plan = plan_rows(
                dataset,
                split,
                block_size,
                length_policy,
                use_loss_mask=dataset.manifest.mask is not None,
            )
        except DataError as error:
            findings.add("length_refused", Where(split=split, detail=str(error)))
            continue
        accounts += plan.accounts
        packed += plan.n_rows
    by_source = tuple(
        merge([account for account in accounts if account.source == source], source)
        for source in dict.fromkeys(account.source for account in accounts)
    )
    if lone := sum(account.lone_answers for account in by_source):
        findings.add("lone_answers", count=lone)
    preview = LengthPreview(
        block_size=block_size, length_policy=length_policy, packed_rows=packed, accounts=by_source
    )
    if preview.lost > max_lost:
        detail = f"{preview.lost:.1%} lost, {max_lost:.1%} allowed"
        findings.add("too_much_lost", Where(detail=detail))
    return preview


def _count_long(dataset: Dataset, split: Split, block_size: int, findings: Findings) -> None:
    first_row = 0
    for shard in dataset.shards(split):
        if shard.rows is not None:
            check = ShardCheck(dataset, split, shard, first_row, findings)
            lengths = shard.rows["stop"] - shard.rows["start"]
            long = np.flatnonzero(lengths > block_size + 1)
            for row in long[:EXAMPLES]:
                findings.add("too_long", check.place(int(row), f"{lengths[row]} tokens"), 0)
            if len(long):
                findings.add("too_long", count=len(long))
        first_row += shard.record.n_rows
