"""What a proof says: statements, and whether each held everywhere it was tried."""

from typing import TYPE_CHECKING

from mypt.parsing import Frozen

if TYPE_CHECKING:
    from rich.console import RenderableType


class ProofCheck(Frozen):
    """One statement about the batches, and whether it held everywhere it was tried."""

    name: str
    ok: bool
    count: int
    """How many tokens, pieces or runs it was tried on; 0 means that there was none."""
    detail: str = ""
    """The first place where it did not hold."""


class ProofReport(Frozen):
    """What was shown about a dataset's masks as training sees them."""

    dataset: str
    """Digest of the dataset."""
    seed: int
    shards: int
    """Shards that the proof looked at."""
    shards_in_all: int
    checks: tuple[ProofCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether every statement held."""
        return all(check.ok for check in self.checks)


def render(report: ProofReport) -> "RenderableType":
    """Return the report as rich prints it, a line a statement."""
    from rich.console import Group
    from rich.text import Text

    lines = []
    for check in report.checks:
        mark, style = ("ok", "green") if check.ok else ("FAILED", "bold red")
        lines.append(Text.assemble((f"{mark:7}", style), f"{check.count:>9,}  {check.name}"))
        if check.detail:
            lines.append(Text(f"{'':18}{check.detail}", style="dim"))
    verdict = "proved" if report.ok else "refuted"
    said = f"{verdict} on {report.shards} of {report.shards_in_all} shards, seed {report.seed}"
    return Group(*lines, Text(said, style="bold green" if report.ok else "bold red"))
