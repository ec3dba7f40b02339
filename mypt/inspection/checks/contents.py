"""Whether a dataset's files are there and whole, and whether what they hold fits each other.

Files first: there, unchanged, of the layout they should have. Then tokens, rows and spans; masks
are looked at elsewhere.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mypt import files
from mypt.data.conversations import WRITTEN_AS, PartKind
from mypt.data.dataset import Dataset, ShardView
from mypt.data.manifest import SPLITS, FileRecord, Manifest, Shard, Split
from mypt.data.pairs import prompt_sizes, unpaired
from mypt.data.rendering.base_template import AnyTemplate, BaseTemplate
from mypt.data.shards import open_table, origin
from mypt.data.spans import BY_POLICY, KIND, KINDS, ROLES, ROW_DTYPE, SPAN_DTYPE
from mypt.data.template import PartForm
from mypt.data.tokenizer import Tokenizer, load_tokenizer
from mypt.errors import MyptError
from mypt.inspection.checks.findings import EXAMPLES, Findings, Where

TOKEN_BYTES = 4
MASK_BYTES = 1


def check_files(folder: Path, manifest: Manifest, findings: Findings) -> None:
    """Check everything that can be said without looking at a token."""
    for record in manifest.files():
        _check_bytes(folder, record, findings)
    for shard in manifest.shards:
        _check_layout(folder, shard, findings)
    _check_names(folder, manifest, findings)
    _check_counts(manifest, findings)
    if not findings.broken:
        _check_tokenizer(folder, manifest, findings)


def _check_bytes(folder: Path, record: FileRecord, findings: Findings) -> None:
    path = folder / record.name
    if not path.is_file():
        findings.add("file_missing", Where(where=record.name))
    elif path.stat().st_size != record.size:
        detail = f"{path.stat().st_size} bytes found, {record.size} expected"
        findings.add("file_size", Where(where=record.name, detail=detail))
    elif files.digest_file(path) != record.digest:
        findings.add("file_changed", Where(where=record.name, detail="digest differs"))


def _check_layout(folder: Path, shard: Shard, findings: Findings) -> None:
    for record, width in ((shard.tokens, TOKEN_BYTES), (shard.mask, MASK_BYTES)):
        if record is not None and record.size != width * shard.n_tokens:
            detail = (
                f"{record.size} bytes found, {width * shard.n_tokens} expected for"
                f" {shard.n_tokens} tokens of {width} bytes"
            )
            findings.add("file_size", Where(where=record.name, detail=detail))
    for record, dtype, length in (
        (shard.spans, SPAN_DTYPE, None),
        (shard.rows, ROW_DTYPE, shard.n_rows),
    ):
        if record is not None and (folder / record.name).is_file():
            _check_array(folder, record, dtype, length, findings)


def _check_array(
    folder: Path, record: FileRecord, dtype: np.dtype[np.void], length: int | None, found: Findings
) -> None:
    try:
        array = open_table(folder / record.name)
    except ValueError as error:
        found.add("file_layout", Where(where=record.name, detail=f"no array ({error})"))
        return
    if array.dtype != dtype or array.ndim != 1:
        detail = f"{array.dtype} {array.shape} found, {dtype} in one dimension expected"
        found.add("file_layout", Where(where=record.name, detail=detail))
    elif length is not None and len(array) != length:
        detail = f"{len(array)} rows found, {length} expected"
        found.add("file_layout", Where(where=record.name, detail=detail))


def _check_names(folder: Path, manifest: Manifest, findings: Findings) -> None:
    listed = {record.name for record in manifest.files()}
    for split in SPLITS:
        numbers = [shard.index for shard in manifest.split(split)]
        if numbers != list(range(len(numbers))):
            findings.add("shard_numbers", Where(split=split, detail=f"found {numbers}"))
        for path in sorted((folder / split).glob("shard_*")):
            name = f"{split}/{path.name}"
            if name not in listed:
                findings.add("file_unlisted", Where(where=name))
    masked = [shard.mask is not None for shard in manifest.shards]
    if any(masked) and not all(masked):
        for shard in manifest.shards:
            if shard.mask is None:
                findings.add("mask_partial", Where(where=shard.tokens.name))


def _check_counts(manifest: Manifest, findings: Findings) -> None:
    """Check that rows read = rows kept + rows dropped, source by source."""
    for index, source in enumerate(manifest.sources):
        shards = [shard for shard in manifest.shards if shard.source == index]
        if any(shard.rows is None for shard in shards):
            continue  # made by hand: nobody counted
        kept = sum(shard.n_rows for shard in shards)
        dropped = sum(count.rows for count in source.dropped)
        if kept + dropped != source.rows_read:
            detail = f"{source.rows_read} read, {kept} kept, {dropped} dropped"
            findings.add("rows_lost", Where(where=source.name, detail=detail))


def _check_tokenizer(folder: Path, manifest: Manifest, findings: Findings) -> None:
    try:
        tokenizer = load_tokenizer(folder)
    except MyptError as error:
        findings.add("tokenizer_differs", Where(where=manifest.tokenizer.name, detail=str(error)))
        return
    for what, found, expected in (
        ("vocabulary", tokenizer.n_vocab, manifest.n_vocab),
        ("template", tokenizer.template.digest, manifest.template),
    ):
        if found != expected:
            detail = f"{what} {found} found, {expected} expected"
            findings.add("tokenizer_differs", Where(where=manifest.tokenizer.name, detail=detail))


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """One shard under examination; N tokens, S spans, R rows."""

    dataset: Dataset
    split: Split
    shard: ShardView
    first_row: int
    """Rows of the split before this shard."""
    findings: Findings

    def place(self, row: int, detail: str = "") -> Where:
        """Return the place of a row, counted in the shard."""
        source = self.dataset.manifest.sources[self.shard.record.source]
        where = origin(self.shard, source, row)
        return Where(split=self.split, row=self.first_row + row, where=where, detail=detail)

    def place_token(self, position: int, detail: str) -> Where:
        """Return the place of a token, counted in the shard."""
        if self.shard.rows is None:
            name = self.shard.record.tokens.name
            return Where(split=self.split, where=f"{name} token {position}", detail=detail)
        row = int(np.searchsorted(self.shard.rows["stop"], position, side="right"))
        inside = position - int(self.shard.rows["start"][row])
        return self.place(row, f"token {inside}: {detail}")


def check_tokens(check: ShardCheck) -> bool:
    """Check ids, rows, spans and special tokens.

    Returns:
        Whether rows and spans tile the shard, so that what they hold can be looked at.
    """
    _check_ids(check)
    tiled = _check_rows(check) and _check_spans(check) and _check_pairs(check)
    if tiled:
        _check_specials(check)
    return tiled


def _check_ids(check: ShardCheck) -> None:
    known = _known_ids(check.dataset.tokenizer)
    tokens = check.shard.tokens
    unknown = np.flatnonzero(~known[np.minimum(tokens, len(known) - 1)])
    if len(unknown):
        detail = f"id {tokens[unknown[0]]} found, the vocabulary ends at {len(known) - 2}"
        name = check.shard.record.tokens.name
        place = Where(split=check.split, where=f"{name} token {unknown[0]}", detail=detail)
        check.findings.add("token_unknown", place, len(unknown))


def _known_ids(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """Return for each id whether it stands for something; the last item for all beyond."""
    known = np.zeros(tokenizer.n_vocab + 1, dtype=bool)
    known[tokenizer.vocabulary.ids] = True
    known[list(tokenizer.special_tokens.values())] = True
    return known


def _check_rows(check: ShardCheck) -> bool:
    rows = check.shard.rows
    if rows is None:
        return True
    gap = _first_gap(rows, len(check.shard.tokens))
    if gap is not None:
        detail = f"row {gap} of {len(rows)} of {len(check.shard.tokens)} tokens"
        check.findings.add("rows_gap", Where(where=check.shard.record.tokens.name, detail=detail))
    return gap is None


def _check_pairs(check: ShardCheck) -> bool:
    """Check that both sides of each preference pair stand together after the same prompt."""
    rows, spans, n_pairs = check.shard.rows, check.shard.spans, check.dataset.manifest.pairs
    if not n_pairs or rows is None or spans is None:
        return True
    apart = unpaired(rows)
    for row in apart[:EXAMPLES]:
        check.findings.add("pair_apart", check.place(int(row)), 0)
    if len(apart):
        check.findings.add("pair_apart", count=len(apart))
        return False
    size = prompt_sizes(spans, len(rows))
    start = rows["start"].astype(np.int64)
    for pair, (a, b) in enumerate(zip(start[::2].tolist(), start[1::2].tolist(), strict=True)):
        ours, theirs = size[2 * pair : 2 * pair + 2]
        tokens = check.shard.tokens
        if ours != theirs or not np.array_equal(tokens[a : a + ours], tokens[b : b + theirs]):
            detail = f"{ours} and {theirs} tokens"
            check.findings.add("prompt_differs", check.place(2 * pair, detail))
    return True


def _first_gap(parts: NDArray[np.void], n_tokens: int) -> int | None:
    """Return the first part that does not start where the one before it stops, or None."""
    starts = np.append(parts["start"], np.uint64(n_tokens))
    stops = np.insert(parts["stop"], 0, np.uint64(0))
    wrong = np.flatnonzero((starts != stops) | np.append(parts["stop"] < parts["start"], False))
    return int(wrong[0]) if len(wrong) else None


def _check_spans(check: ShardCheck) -> bool:
    spans, rows = check.shard.spans, check.shard.rows
    if spans is None or rows is None:
        return True
    gap = _first_gap(spans, len(check.shard.tokens))
    if gap is not None:
        detail = f"span {gap} of {len(spans)} of {len(check.shard.tokens)} tokens"
        check.findings.add("spans_gap", Where(where=check.shard.record.tokens.name, detail=detail))
        return False
    row = np.minimum(spans["conversation"], len(rows) - 1)
    weights = check.dataset.manifest.row_weights
    astray = (
        (spans["conversation"] >= len(rows))
        | (spans["role"] >= len(ROLES))
        | (spans["kind"] >= len(KINDS))
        | ((spans["train"] - BY_POLICY).astype(np.uint8) >= 3 + len(weights))
        | (spans["start"] < rows["start"][row])
        | (spans["stop"] > rows["stop"][row])
    )
    for span in np.flatnonzero(astray)[:EXAMPLES]:
        check.findings.add("span_astray", check.place(int(row[span]), f"span {span}"), 0)
    if astray.any():
        check.findings.add("span_astray", count=int(astray.sum()))
    return not astray.any()


def _check_specials(check: ShardCheck) -> None:
    """Check that special tokens stand only where the template writes them."""
    spans, tokens, tokenizer = check.shard.spans, check.shard.tokens, check.dataset.tokenizer
    if spans is None:
        return
    special = np.flatnonzero(np.isin(tokens, list(tokenizer.special_tokens.values())))
    kind = spans["kind"][np.searchsorted(spans["stop"], special, side="right")]
    wrong = kind == KIND["content"]
    for name, around in _written_around(tokenizer).items():
        wrong |= (kind == KIND[name]) & ~np.isin(tokens[special], around)
    inside = special[wrong]
    for position in inside[:EXAMPLES]:
        text = tokenizer.decode_part(tokens[position : position + 1])
        check.findings.add("special_in_content", check.place_token(int(position), repr(text)), 0)
    if len(inside):
        check.findings.add("special_in_content", count=len(inside))


def _written_around(tokenizer: Tokenizer) -> dict[PartKind, list[int]]:
    """Return the special tokens that the template may write around marked parts."""
    template = tokenizer.template
    if isinstance(template, BaseTemplate):
        own = _specials_in(template.source, tokenizer)
        return {kind: own for kind, written in WRITTEN_AS.items() if written != "text"}
    return {
        kind: [] if form is None else _specials_in(form.open + form.close, tokenizer)
        for kind, form in part_forms(template).items()
    }


def part_forms(template: AnyTemplate) -> dict[PartKind, PartForm | None]:
    """Return what a template writes around the parts that it marks; a base's own is not known."""
    if isinstance(template, BaseTemplate):
        return {}
    return template.forms


def _specials_in(text: str, tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.special_id(name) for name in tokenizer.special_tokens if name in text]
