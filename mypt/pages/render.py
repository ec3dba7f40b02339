"""One self-contained page: a template of this folder with its style, script and plots inside."""

import hashlib
import io
import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mypt.text import visible

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

_FOLDER = Path(__file__).parent
COLOURS = {"bar": "#4f7cff", "accent": "#0b8f6a", "soft": "#667085", "line": "#e4e7ec"}
"""What plots are drawn with; each becomes the page's variable of that name, which the dark sets."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["soft"],
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "grid.color": COLOURS["line"],
    "legend.frameon": False,
    "legend.labelcolor": COLOURS["soft"],
    **{f"{axis}tick.labelcolor": COLOURS["soft"] for axis in "xy"},
    **{f"{axis}tick.major.size": 0 for axis in "xy"},
    **{f"{axis}tick.major.pad": 5 for axis in "xy"},
}


def render(
    template: str, *, styles: Sequence[str] = (), scripts: Sequence[str] = (), **values: Any
) -> str:
    """Return a page's HTML; what comes from data is escaped, and nothing is loaded.

    Args:
        template: A file of this folder.
        styles: Files of this folder that the template shows as ``style``.
        scripts: Likewise as ``script``, with ``script_hash`` for its content policy.
        values: What else it shows.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    if styles:  # not escaped, nor are scripts: all are files of this package
        values["style"] = Markup(_joined(styles))
    if scripts:
        values |= {"script": Markup(_joined(scripts)), "script_hash": content_hash(scripts)}
    return environment.get_template(template).render(values)


def content_hash(names: Sequence[str]) -> str:
    """Return what a content policy calls a page's styles, or its scripts."""
    return f"sha256-{b64encode(hashlib.sha256(_joined(names).encode()).digest()).decode()}"


def plot(title: str, size: tuple[float, float], draw: "Callable[[Figure], object]") -> "Markup":
    """Return what matplotlib draws as an SVG element; the same data is the same bytes.

    Args:
        title: What a screen reader says; plots of one page need titles of their own.
        size: Width and height in inches.
        draw: Draws into the figure, in ``COLOURS``; its text is escaped.
    """
    import matplotlib
    from markupsafe import Markup
    from matplotlib.figure import Figure

    said = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(said, format="svg", metadata=nothing)
    _, _, element = visible(said.getvalue()).partition("<svg ")
    # Ids that nothing refers to would stand twice in a page of two plots.
    element = re.sub(r'<g id="[^"]*"', "<g", element)
    for name, colour in COLOURS.items():
        element = element.replace(colour, f"var(--{name})")
    return Markup('<svg role="img" aria-label="{}" {}').format(title, Markup(element))


def _joined(names: Sequence[str]) -> str:
    return "".join((_FOLDER / name).read_text(encoding="utf-8") for name in names)
