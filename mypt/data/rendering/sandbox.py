"""Jinja templates of strangers, run in jinja2's sandbox under a budget of work.

The budget counts steps and characters, not seconds: what a template may do is the same on every
machine. Every pass of a loop, every call, and every value that is kept or written is charged.
"""

import json
import re
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from mypt.errors import DataError

OPENS: Final = "\U0010fffc"
CLOSES: Final = "\U0010fffd"
"""What stand for the two ends of ``{% generation %}``, where they are asked for."""
_LONGEST_SOURCE: Final = 1 << 18
_WORK: Final = 1 << 21
"""Steps and characters of a rendering, beside what its input is worth."""
_WORK_A_CHARACTER: Final = 64
_LARGEST_NUMBER: Final = 100_000
_FILTERS: Final = (
    "abs", "bool", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first",
    "float", "groupby", "int", "items", "join", "last", "length", "list", "lower", "map", "max",
    "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr",
    "sort", "string", "sum", "title", "trim", "unique", "upper",
)  # fmt: skip
"""Filters whose result is no larger than what goes in, or is charged for when it is kept."""
_BOUNDLESS: Final = (
    "center", "expandtabs", "format", "format_map", "ljust", "maketrans", "rjust", "translate",
    "zfill",
)  # fmt: skip
"""Methods of text whose result has no bound."""
TODAY: Final = datetime(2024, 7, 26)
"""What ``strftime_now`` tells, so that a row is the same whenever it is rendered."""


class _Budget:
    def __init__(self, units: int, shows: bool) -> None:
        self.left = units
        self.shows = shows
        """Whether ``{% generation %}`` leaves its marks."""

    def charge(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise TemplateError("it does more work than a conversation of this length is worth")


def _budget(context: Context) -> _Budget:
    found: _Budget = context.parent["_budget"]
    return found


@pass_context
def _each(context: Context, values: Any, weight: int) -> Any:
    budget = _budget(context)
    for value in values:
        budget.charge(weight)
        yield value


@pass_context
def _kept(context: Context, value: Any) -> Any:
    if isinstance(value, str | list | tuple | dict):
        _budget(context).charge(len(value))
    return value


@pass_context
def _shown(context: Context, mark: str) -> str:
    return mark if _budget(context).shows else ""


@pass_context
def _replaced(context: Context, value: Any, old: str, new: str) -> str:
    text = str(value)
    _budget(context).charge(text.count(old) * len(new))
    return text.replace(old, new)


@pass_context
def _joined(context: Context, values: Any, between: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        values = [context.environment.getitem(value, attribute) for value in values]
    words = [str(value) for value in values]
    _budget(context).charge(sum(map(len, words)) + len(words) * len(between))
    return between.join(words)


def _as_json(value: Any, **how: Any) -> str:
    """Spell JSON as transformers' templates do: without escapes for HTML or for letters."""
    known = {"ensure_ascii", "indent", "separators", "sort_keys"}
    return json.dumps(value, **{"ensure_ascii": False} | {k: how[k] for k in known & how.keys()})


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


class _Generation(Extension):
    """``{% generation %}``: what the template's author says that the model writes."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks = [
            nodes.Output([nodes.Filter(nodes.Const(mark), "_shown", [], [], None, None)])
            for mark in (OPENS, CLOSES)
        ]
        return [marks[0].set_lineno(line), *body, marks[1].set_lineno(line)]


class _Charged(NodeTransformer):
    """Puts the budget into a template's tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        weight = 1 + sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_each", [nodes.Const(weight)], [], None, None)
        return node

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.node = _charged(node.node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _charged(node)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [n if isinstance(n, nodes.TemplateData) else _charged(n) for n in node.nodes]
        return node


def _charged(node: Any) -> nodes.Filter:
    return nodes.Filter(node, "_kept", [], [], None, None)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        self.filters = {name: self.filters[name] for name in _FILTERS if name in self.filters}
        self.filters |= {
            "_each": _each, "_kept": _kept, "_shown": _shown, "tojson": _as_json,
            "replace": _replaced, "join": _joined,
        }  # fmt: skip
        self.globals = {
            name: self.globals[name] for name in ("range", "dict", "namespace", "joiner", "cycler")
        }
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": TODAY.strftime}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        charged: nodes.Template = _Charged().visit(tree)
        return charged

    def call(self, context: Context, called: Any, /, *args: Any, **named: Any) -> Any:
        weight = 64 if isinstance(called, Macro) else 4
        _budget(context).charge(weight)
        numbers = [n for n in (*args, *named.values()) if isinstance(n, int)]
        if any(abs(n) > _LARGEST_NUMBER for n in numbers):
            raise TemplateError(f"it counts to more than {_LARGEST_NUMBER}")
        text, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        if name in _BOUNDLESS:
            raise TemplateError(f"it calls {name}, whose result has no bound")
        if isinstance(text, str) and name == "replace":
            return _replaced(context, text, *args)
        if isinstance(text, str) and name == "join":
            return _joined(context, args[0], text)
        return super().call(context, called, *args, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(v) for v in (left, right) if isinstance(v, str | list | tuple)]
        if sizes and operator in "*%" and not (operator == "%" and isinstance(left, int)):
            numbers = [v for v in (left, right) if isinstance(v, int)]
            if operator == "%" or any(n * sum(sizes) > _LARGEST_NUMBER for n in numbers):
                raise TemplateError(f"it makes text with {operator!r}, which has no bound")
        if operator == "**" and max(abs(left), abs(right)) > 1 << 10:
            raise TemplateError("it takes powers, which have no bound")
        _budget(context).charge(1 + sum(sizes))
        return super().call_binop(context, operator, left, right)


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    if len(source) > _LONGEST_SOURCE:
        raise DataError(
            f"the chat template has {len(source)} characters; {_LONGEST_SOURCE} at most"
        )
    try:
        return _Sandbox().from_string(source)
    except (TemplateError, RecursionError, MemoryError, AssertionError, ValueError) as error:
        raise DataError(f"the chat template is no Jinja that can be read: {error}") from None


def render(source: str, variables: dict[str, Any], size: int, *, shows: bool = False) -> str:
    """Return what a chat template writes.

    Args:
        source: Jinja.
        variables: ``messages`` and what else it reads.
        size: Characters of the conversation, which bound the work.
        shows: Whether the ends of ``{% generation %}`` are shown by :data:`OPENS` and
            :data:`CLOSES`.

    Raises:
        DataError: If it cannot be read, refuses the conversation, or does too much work.
    """
    budget = _Budget(_WORK + _WORK_A_CHARACTER * size, shows)
    try:
        return _compiled(source).render(variables | {"_budget": budget})
    except (TemplateError, RecursionError, MemoryError, ArithmeticError) as error:
        raise DataError(f"the chat template refuses it: {str(error)[:200] or 'too deep'}") from None
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise DataError(f"the chat template fails on it: {error!r:.200}") from None


def generates(source: str) -> bool:
    """Say whether a template tells by itself what the model writes."""
    return re.search(r"\{%[-+]?\s*generation\b", source) is not None
