"""The pages for people, and what they tell them to type."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS, ROOT / "DESIGN.md", ROOT / "BENCHMARKS.md", ROOT / "CHANGELOG.md"]


def lines_of(page: Path) -> list[str]:
    """Return the lines of a page's bash blocks, without what they say of themselves."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    return [line.split("  #")[0] for part in blocks for line in part.splitlines() if line.strip()]


def rows_of(page: Path) -> list[str]:
    """Return what the rows of a page's table of commands begin with."""
    table = page.read_text().partition("| command |")[2].partition("\n\n")[0]
    return re.findall(r"^\| (`mypt .*`) \| ", table, re.MULTILINE)


def commands_of(page: Path) -> list[str]:
    """Return the ``mypt`` commands of a page, in the order given."""
    return [line for line in lines_of(page) if line.startswith("mypt ")]
