"""What a validation says: findings with counts and places, and the figures behind them."""

from typing import Final, Literal

from pydantic import Field

from mypt.data.manifest import ByRole, Density, Split
from mypt.data.packing.accounts import LengthAccount, merge
from mypt.parsing import Frozen

Level = Literal["error", "warning", "notice"]
LEVELS: Final[tuple[Level, ...]] = ("error", "warning", "notice")
EXAMPLES = 10
"""Places kept for each finding; the count says how many there are."""

DENSITY_BOUNDS: Final = (0.1, 0.9)
"""Supervised share of chat data: outside a warning, at 0 or 1 an error."""
FEW_TWINS: Final = 0.01
"""Share of validation rows that may be near twins of training rows: they sway no figure."""

CODES: Final[dict[str, tuple[Level, str]]] = {
    # files
    "file_missing": ("error", "files that the metadata lists are missing; prepare again"),
    "file_size": ("error", "files have another size than their tokens need; prepare again"),
    "file_changed": ("error", "files changed since they were written; prepare again"),
    "file_layout": ("error", "arrays have another type or shape than the metadata promises"),
    "file_unlisted": ("error", "shards lie in the folder that the metadata does not list; nobody"
                      " reads them"),
    "shard_numbers": ("error", "shards are not numbered 0, 1, 2, ... in each split; one is lost"),
    "rows_lost": ("error", "rows read are not the rows kept and dropped; a shard is lost"),
    "tokenizer_differs": ("error", "the tokenizer is not the one that the metadata describes"),
    # tokens, rows and spans
    "token_unknown": ("error", "token ids outside the vocabulary"),
    "rows_gap": ("error", "rows do not tile their shard: each must start where the last stops"),
    "spans_gap": ("error", "spans do not tile their shard: each must start where the last stops"),
    "span_astray": ("error", "spans leave their row, or name no known role, kind or row"),
    "special_in_content": ("error", "special tokens inside content: spans are off, or a role is"
                           " forged"),
    "rendering_differs": ("error", "rows are not what template and tokenizer make of their text"),
    "digest_differs": ("error", "rows whose tokens do not give back what was read"),
    "pair_apart": ("error", "rows without the other side of their preference pair beside them"),
    "prompt_differs": ("error", "preference pairs whose prompts differ: only the answers may"),
    # masks
    "mask_partial": ("error", "only some shards have masks; mask the whole dataset again"),
    "mask_value": ("error", "mask bytes that stand for no weight of the dataset's table"),
    "span_split": ("error", "spans supervised in part: the mask does not follow the spans"),
    "header_supervised": ("error", "headers supervised: the program writes them, not the model"),
    "tool_supervised": ("error", "tool results supervised: no model writes them"),
    "role_supervised": ("error", "tokens of a role that the policy does not supervise are"
                        " supervised"),
    "stop_supervised": ("error", "ends of turns supervised against the policy"),
    "reasoning_supervised": ("error", "reasoning or tool calls supervised against the policy"),
    "turn_supervised": ("error", "turns supervised that the policy or the row excludes"),
    "stop_unsupervised": ("error", "ends of turns unsupervised: the model would never stop"),
    "never_stops": ("error", "no token at which generation stops is learned: no answer would end"),
    "answer_unsupervised": ("error", "content unsupervised that the policy supervises"),
    "weight_differs": ("error", "tokens whose weight is another than the policy and their row say"),
    "mask_differs": ("error", "mask bytes differ from what the recorded policy gives"),
    "stats_differ": ("error", "recorded mask statistics differ from the masks"),
    "density_zero": ("error", "nothing is supervised: no training step would learn"),
    "density_one": ("error", "everything is supervised, the user's words too; if the corpus has"
                    " one role, say --expect_single_role"),
    "density_low": ("warning", f"fewer than {DENSITY_BOUNDS[0]:.0%} of the tokens are supervised"),
    "density_high": ("warning", f"more than {DENSITY_BOUNDS[1]:.0%} of the tokens are supervised"),
    "row_unsupervised": ("notice", "rows without any supervised token: read, never learned from"),
    "first_supervised": ("notice", "rows whose first token is supervised: nothing comes before it,"
                         " so it is never a target"),
    "role_absent": ("notice", "roles that the policy supervises and no row has"),
    "mask_none": ("notice", "dataset of chats without masks, of which every token would be learned;"
                  " 'mypt mask' makes them"),
    "mask_by_hand": ("notice", "masks made by hand: no spans and no policy to check them against"),
    # rows
    "leak": ("error", "validation rows that also stand in training"),
    "leak_folded": ("warning", "validation rows that stand in training but for case and spaces"),
    "doubled": ("notice", "rows that stand more than once in their split"),
    "doubled_folded": ("notice", "rows that are another row but for case and spaces"),
    "replacement": ("notice", "content with U+FFFD, what decoders write for what they cannot read"),
    "looks_like_tag": ("notice", "content that looks like a role tag; harmless, a sign of dirty"
                       " data"),
    "looks_like_turn": ("warning", "content that spells the header of a turn, which this template"
                        " writes as plain text: the model cannot tell them apart; take one whose"
                        " headers are tokens, such as chatml"),
    "dropped": ("notice", "rows dropped while reading"),
    "changed": ("notice", "rows changed while reading"),
    "split_empty": ("notice", "splits without a row"),
    # length
    "too_long": ("notice", "rows longer than the block, which length_policy splits, drops or"
                 " refuses"),
    "lone_answers": ("warning", "answers would be learned without their question, which does not"
                     " fit beside them; raise block_size"),
    "lost_systems": ("notice", "pieces of conversations would be read without their system message;"
                     " length_policy keep_system repeats it"),
    "length_refused": ("warning", "packed training would refuse this block size and policy"),
    "too_much_lost": ("warning", "packed training would stop: the length policy loses more"
                      " supervised tokens than allowed"),
}  # fmt: skip
"""Every finding: how bad it is, and what it means."""


class Where(Frozen):
    """Where a finding was made."""

    split: Split | None = None
    row: int | None = None
    """Number of the row in its split, as ``mypt show --row`` takes it."""
    where: str = ""
    """File and line the row was read from, or the file of the dataset."""
    detail: str = ""
    """What was found and what was expected there."""

    def __str__(self) -> str:
        row = f"{self.split} row {self.row}" if self.row is not None else ""
        where = f"({self.where})" if row and self.where else self.where
        return ": ".join(part for part in (f"{row} {where}".strip(), self.detail) if part)


class Finding(Frozen):
    """One kind of thing that was found, how often, and the first places."""

    level: Level
    code: str
    message: str
    count: int
    examples: tuple[Where, ...] = ()


class LengthPreview(Frozen):
    """What a block size and a length policy would make of both splits."""

    block_size: int
    length_policy: str
    packed_rows: int
    """Rows of block_size places that whole conversations and pieces would fill."""
    accounts: tuple[LengthAccount, ...]
    """What is kept, dropped and cut, to the token; one a source."""

    @property
    def total(self) -> LengthAccount:
        """The account of all sources."""
        return merge(self.accounts, "all")

    @property
    def lost(self) -> float:
        """Share of the supervised tokens that would be lost to length."""
        total = self.total
        return total.lost_to_length / max(1, total.supervised_in)


class ValidationStats(Frozen):
    """The figures of a dataset, over both splits unless the name says otherwise."""

    rows: dict[str, int]
    """Rows by split."""
    tokens: dict[str, int]
    """Tokens by split."""
    longest: int = 0
    """Tokens of the longest row."""
    total: Density = Density()
    by_role: ByRole = Field(default_factory=dict)
    by_source: dict[str, Density] = Field(default_factory=dict)
    rendered: int = 0
    """Rows that were rendered and encoded once more and compared token by token."""
    length: LengthPreview | None = None


class ValidationReport(Frozen):
    """Whether a dataset keeps its contract, and everything else worth knowing."""

    dataset: str
    """Digest of the dataset's metadata."""
    findings: tuple[Finding, ...]
    """Worst first."""
    stats: ValidationStats

    @property
    def ok(self) -> bool:
        """Whether no contract is broken; warnings and notices do not count."""
        return not self.count("error")

    def count(self, level: Level) -> int:
        """Return how many findings are of one level."""
        return sum(finding.level == level for finding in self.findings)

    def codes(self) -> frozenset[str]:
        """Return the codes of all findings."""
        return frozenset(finding.code for finding in self.findings)


class Findings:
    """Collects findings by code while the checks run; memory does not grow with their number."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[Where]] = {}
        self._expected: set[str] = set()

    def add(
        self, code: str, place: Where | None = None, count: int = 1, *, expected: bool = False
    ) -> None:
        """Count a finding of ``code``, and keep its place while there are few.

        Args:
            code: One of CODES.
            place: Where it was made.
            count: How often.
            expected: Whether its extent was allowed, or is too small to matter: then the code
                is a notice, whatever its level.
        """
        if code not in CODES:
            raise KeyError(code)
        if expected:
            self._expected.add(code)
        self._counts[code] = self._counts.get(code, 0) + count
        examples = self._examples.setdefault(code, [])
        if place is not None and len(examples) < EXAMPLES:
            examples.append(place)

    def __contains__(self, code: str) -> bool:
        return code in self._counts

    @property
    def broken(self) -> bool:
        """Whether an error was found."""
        return any(CODES[code][0] == "error" for code in self._counts)

    def sorted(self) -> tuple[Finding, ...]:
        """Return the findings, worst level first, within a level in the order of CODES."""
        found = [
            Finding(
                level="notice" if code in self._expected else level,
                code=code,
                message=message,
                count=self._counts[code],
                examples=tuple(self._examples[code]),
            )
            for code, (level, message) in CODES.items()
            if code in self._counts
        ]
        return tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level)))
