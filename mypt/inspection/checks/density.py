"""How much is supervised, and how much of that a context would lose: nothing is cut here."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mypt.data.dataset import Dataset
from mypt.data.manifest import SPLITS, Density, Manifest, Split
from mypt.data.packing.accounts import LengthAccount, merge
from mypt.data.packing.layout import plan_rows
from mypt.data.packing.pieces import LengthPolicy
from mypt.data.spans import KIND, ROLE, ROLES
from mypt.errors import DataError
from mypt.inspection.checks.contents import ShardCheck
from mypt.inspection.checks.findings import (
    DENSITY_BOUNDS,
    EXAMPLES,
    Findings,
    LengthPreview,
    ValidationStats,
    Where,
)
from mypt.inspection.checks.masks import supervised_in

Group = tuple[str, str, str]
"""Split, source and role; the role is empty in shards made by hand."""


@dataclass(slots=True)
class TokenCounts:
    """Counts of tokens and supervised tokens by split, source and role."""

    tokens: Counter[Group] = field(default_factory=Counter)
    supervised: Counter[Group] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    rows_unsupervised: int = 0
    longest: int = 0
    stops: int = 0
    """Supervised tokens at which generation stops."""

    def add(self, check: ShardCheck) -> None:
        """Count one shard, and report rows that teach nothing."""
        self._add_tokens(check)
        rows, mask = check.shard.rows, check.shard.mask
        if rows is None:
            return
        self.rows[check.split] += len(rows)
        self.longest = max(self.longest, int((rows["stop"] - rows["start"]).max(initial=0)))
        if mask is None:
            return
        silent = np.flatnonzero(supervised_in(rows, mask) == 0)
        self.rows_unsupervised += len(silent)
        _add_rows(check, "row_unsupervised", silent)
        if check.shard.spans is not None:
            _check_first(check, check.shard.spans, rows[rows["stop"] > rows["start"]], mask)

    def _add_tokens(self, check: ShardCheck) -> None:
        source = check.dataset.manifest.sources[check.shard.record.source].name
        spans, mask = check.shard.spans, check.shard.mask
        if mask is not None:
            ends = np.array(check.dataset.tokenizer.stop_ids, np.uint32)
            self.stops += int((np.isin(check.shard.tokens, ends) & (mask > 0)).sum())
        if spans is None:
            group = (check.split, source, "")
            self.tokens[group] += len(check.shard.tokens)
            self.supervised[group] += 0 if mask is None else int(np.count_nonzero(mask))
            return
        lengths = (spans["stop"] - spans["start"]).astype(np.int64)
        counts = np.zeros_like(lengths) if mask is None else supervised_in(spans, mask)
        for index, role in enumerate(ROLES):
            chosen = spans["role"] == index
            if chosen.any():
                group = (check.split, source, role)
                self.tokens[group] += int(lengths[chosen].sum())
                self.supervised[group] += int(counts[chosen].sum())

    def density(self, **wanted: str) -> Density:
        """Return the counts of the groups whose split, source or role is as wanted."""
        fields = ("split", "source", "role")
        groups = [
            group
            for group in self.tokens
            if all(group[fields.index(name)] == value for name, value in wanted.items())
        ]
        return Density(
            tokens=sum(self.tokens[group] for group in groups),
            supervised=sum(self.supervised[group] for group in groups),
        )

    def by(self, what: str) -> dict[str, Density]:
        """Return the density for each split, source or role that occurs."""
        position = ("split", "source", "role").index(what)
        names = dict.fromkeys(group[position] for group in self.tokens if group[position])
        return {name: self.density(**{what: name}) for name in names}

    def stats(self, manifest: Manifest) -> ValidationStats:
        """Return the figures as they stand in the report."""
        return ValidationStats(
            rows={split: self.rows[split] for split in SPLITS},
            tokens={split: manifest.tokens(split) for split in SPLITS},
            longest=self.longest,
            total=self.density(),
            by_role=self.by("role"),
            by_source=self.by("source"),
        )


def _add_rows(check: ShardCheck, code: str, rows: NDArray[np.integer]) -> None:
    for row in rows[:EXAMPLES]:
        check.findings.add(code, check.place(int(row)), 0)
    if len(rows):
        check.findings.add(code, count=len(rows))


def _check_first(
    check: ShardCheck, spans: NDArray[np.void], rows: NDArray[np.void], mask: NDArray[np.uint8]
) -> None:
    first = spans[np.searchsorted(spans["stop"], rows["start"], side="right")]
    wrong = (first["role"] != ROLE["text"]) & (mask[rows["start"]] > 0)
    _add_rows(check, "first_supervised", first["conversation"][wrong])


def check_stats(manifest: Manifest, tally: TokenCounts, findings: Findings) -> None:
    """Compare the recorded statistics with the counted ones."""
    if manifest.mask is None:
        return
    recorded = manifest.mask.stats
    for name, found, expected in (
        ("in all", {"": recorded.total}, {"": tally.density()}),
        ("by split", recorded.by_split, tally.by("split")),
        ("by role", recorded.by_role, tally.by("role")),
        ("by source", recorded.by_source, tally.by("source")),
    ):
        for key in sorted({*found, *expected}):
            one, other = found.get(key, Density()), expected.get(key, Density())
            if one != other:
                detail = (
                    f"{one.supervised} of {one.tokens} recorded, {other.supervised} of"
                    f" {other.tokens} counted"
                )
                findings.add("stats_differ", Where(where=f"{name} {key}".strip(), detail=detail))
    if recorded.rows_unsupervised != tally.rows_unsupervised:
        detail = f"{recorded.rows_unsupervised} recorded, {tally.rows_unsupervised} counted"
        findings.add("stats_differ", Where(where="rows unsupervised", detail=detail))


def check_density(
    manifest: Manifest, tally: TokenCounts, findings: Findings, expect_single_role: bool
) -> None:
    """Hold chat sources, and all chat tokens together, against DENSITY_BOUNDS.

    Plain text is left out: by policy it is supervised wholly or not at all.
    """
    if manifest.mask is None:
        if manifest.kind == "chat":  # a base model learns every token of its text
            findings.add("mask_none")
        return
    if manifest.mask.policy is None:
        findings.add("mask_by_hand")
    if not tally.density().supervised:
        findings.add("density_zero", Where(detail=f"0 of {tally.density().tokens} tokens"))
        return
    chat = {source: _chat_only(tally, source) for source in tally.by("source")}
    tokens = sum(density.tokens for density in chat.values())
    supervised = sum(density.supervised for density in chat.values())
    if tokens and tokens == supervised and not expect_single_role:
        findings.add("density_one", Where(detail=f"all {tokens} tokens"))
        return
    for source, density in chat.items():
        if density.tokens and not (supervised == tokens and expect_single_role):
            _check_bounds(source, density, findings)
    policy = manifest.mask.policy
    ends = policy is None or (policy.end_of_turn and "assistant" in policy.roles)
    if manifest.kind == "chat" and ends and not tally.stops:
        findings.add("never_stops", expected=policy is None)
    if policy is not None and manifest.kind == "chat":
        for role in policy.roles:
            if not tally.density(role=role).tokens:
                findings.add("role_absent", Where(detail=role))


def _chat_only(tally: TokenCounts, source: str) -> Density:
    whole, text = tally.density(source=source), tally.density(source=source, role="text")
    return Density(tokens=whole.tokens - text.tokens, supervised=whole.supervised - text.supervised)


def _check_bounds(source: str, density: Density, findings: Findings) -> None:
    low, high = DENSITY_BOUNDS
    detail = f"{density.density:.1%} of {density.tokens} tokens; {low:.0%} to {high:.0%} expected"
    if density.density < low:
        findings.add("density_low", Where(where=source, detail=detail))
    elif density.density > high:
        findings.add("density_high", Where(where=source, detail=detail))


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
        max_lost: Largest share of supervised tokens that may be lost to length; of answers that
            lose their question, up to this share is a notice.
        findings: Where to report.
    """
    accounts: list[LengthAccount] = []
    packed = 0
    length_policy = "drop" if dataset.paired else length_policy
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
        n_answers = _count_answers(dataset)
        place = Where(detail=f"{lone / n_answers:.1%} of the answers")
        findings.add("lone_answers", place, lone, expected=lone <= max_lost * n_answers)
    if lost := sum(account.lost_systems for account in by_source):
        findings.add("lost_systems", Where(detail=f"length_policy {length_policy}"), lost)
    preview = LengthPreview(
        block_size=block_size, length_policy=length_policy, packed_rows=packed, accounts=by_source
    )
    if preview.lost > max_lost:
        detail = f"{preview.lost:.1%} lost, {max_lost:.1%} allowed"
        findings.add("too_much_lost", Where(detail=detail))
    return preview


def _count_answers(dataset: Dataset) -> int:
    shards = [shard for split in SPLITS for shard in dataset.shards(split)]
    spans = [shard.spans for shard in shards if shard.spans is not None]
    ends = [(s["role"] == ROLE["assistant"]) & (s["kind"] == KIND["end"]) for s in spans]
    return sum(int(end.sum()) for end in ends)


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
