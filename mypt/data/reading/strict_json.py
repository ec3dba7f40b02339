"""JSON that hides nothing: no doubled key, no lone surrogate, no bottomless nesting."""

import json
import re
from collections import Counter
from typing import Any

from mypt.data.reading.raw import Limits, decode
from mypt.data.reading.records import Where
from mypt.errors import DataError
from mypt.text import shown

BLANKS = b" \t\r\n"
STRING = rb'"(?:[^"\\]++|\\.)*+"'
BRACKET = re.compile(rb'(?:[^"\[\]{}]++|' + STRING + rb")*+([\[\]{}])", re.DOTALL)
DEPTH = {b"[": 1, b"{": 1, b",": 0, b"]": -1, b"}": -1}
_MANY_DIGITS = re.compile(r"[0-9]{309}")
_LIMITS = Limits()
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class _DoubledKeyError(ValueError):
    pass


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        (most, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise _DoubledKeyError(most)
    return fields


_STRICT = json.JSONDecoder(object_pairs_hook=_without_doubles)
_SPELL = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _whole_number(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:
        return float(digits)


# Python refuses integers of more than 4,300 digits; as a number of no use here, any will do.
_HUGE = json.JSONDecoder(object_pairs_hook=_without_doubles, parse_int=_whole_number)
_CURES = (
    (r"^'|^(None|True|False)\b", "this is how Python prints; write it with json.dumps"),
    (r"^.?\0", "this looks like UTF-16; say --encoding utf-16-le or utf-16-be"),
    (r"^(,\s*)?[\]}]", "remove the comma before a closing bracket"),
    (r"^,", "remove the comma after the value"),
    (r"^$", "the text ends too early; get the whole of it, or remove the row"),
    (r"^/[/*]|^#", "JSON has no comments; remove them"),
)
"""What to do, by what the text goes on with where it is no JSON."""
_CURES_BY_PROBLEM = {
    "Invalid control character": "write line feeds and tabs inside a string as \\n and \\t",
    "Unterminated string": "close the string, or get the whole file if it was cut off",
    "Invalid \\": "write a backslash inside a string twice",
    "Extra data": "write each row on a line of its own",
}


def parse_text(text: str, place: Where) -> Any:
    """Return the value of JSON that stands in a field or cell as text; see :func:`parse`.

    Raises:
        DataError: As :func:`parse` does.
    """
    return _parse(text, place, _LIMITS)


def parse(data: bytes, offset: int, place: Where, limits: Limits) -> Any:
    """Return the value of one JSON text.

    Args:
        data: The text's bytes, strict UTF-8.
        offset: Where they start in the file, for errors.
        place: The row they belong to, for errors.
        limits: How deep and how many its arrays and objects may be.

    Raises:
        DataError: If it is no JSON or beyond the limits, has a key twice in one object, or
            holds half of a surrogate pair, which no tokenizer can encode.
    """
    return _parse(decode(data, offset, place), place, limits)


def _parse(text: str, place: Where, limits: Limits) -> Any:
    if text.count("[") + text.count("{") > limits.nesting:
        _check_brackets(text.encode(), place, limits)
    try:
        value = _decode(text)
        if "\\u" in text and _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except _DoubledKeyError as error:
        raise DataError(
            f"{place}: the key {shown(error.args[0])} stands twice in one object; which one"
            " counts cannot be known; remove one"
        ) from None
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(
            f"{place}: {half} is half of a surrogate pair and no character; expected text that"
            " UTF-8 can hold; repair or remove the row"
        ) from None
    except RecursionError:
        raise _too_deep(place, limits) from None
    except json.JSONDecodeError as error:
        problem = "a second value" if error.msg == "Extra data" else error.msg
        raise DataError(
            f"{place}: no JSON ({problem} at character {error.pos + 1}); found"
            f" {shown(text[error.pos :].lstrip() or text.strip())}; {_cure(text, error)}"
        ) from None
    return value


def spell(value: Any, place: Where) -> str:
    """Return a value as JSON on one line, equal values as equal text.

    Raises:
        DataError: If JSON has no such value, or a number is beyond what float64 reaches.
    """
    try:
        text = _SPELL(value)
        if _MANY_DIGITS.search(text):
            json.dumps(json.loads(text, parse_int=float), allow_nan=False)
    except ValueError:
        raise DataError(
            f"{place}: a number that is no JSON or beyond float64, such as NaN, Infinity or 1e999;"
            " expected numbers up to 1.7e308; write null, or the number as text"
        ) from None
    except TypeError as error:
        raise DataError(
            f"{place}: {error}; expected what JSON has: text, numbers, lists and objects"
        ) from None
    return text


def _cure(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos : error.pos + 80].lstrip(" \t\r\n")
    before = text[max(0, error.pos - 80) : error.pos].rstrip(" \t\r\n")
    is_cut = rest[:1] in ("]", "}") and not before.endswith(",")
    by_rest = (cure for begins, cure in _CURES if re.match(begins, rest) and not is_cut)
    by_problem = (c for problem, c in _CURES_BY_PROBLEM.items() if error.msg.startswith(problem))
    return next(by_rest, None) or next(by_problem, "mend the row or remove it")


def _decode(text: str) -> Any:
    try:
        return _STRICT.decode(text)
    except (json.JSONDecodeError, _DoubledKeyError):
        raise
    except ValueError:
        return _HUGE.decode(text)


def _check_brackets(data: bytes, place: Where, limits: Limits) -> None:
    depth = opened = at = 0
    while match := BRACKET.match(data, at):
        at = match.end()
        depth += DEPTH[match[1]]
        opened += DEPTH[match[1]] > 0
        check_limits(depth, opened, place, limits)


def check_limits(depth: int, opened: int, place: Where, limits: Limits) -> None:
    """Compare how deep brackets are nested, and how many there are, with the limits.

    Raises:
        DataError: If they are beyond them.
    """
    if depth > limits.nesting:
        raise _too_deep(place, limits)
    if opened > limits.brackets:
        raise DataError(
            f"{place}: more than {limits.brackets:,} arrays and objects in one row; expected a row"
            " of messages or text; remove it"
        )


def _too_deep(place: Where, limits: Limits) -> DataError:
    return DataError(
        f"{place}: arrays or objects nested more than {limits.nesting} deep; expected a row of"
        " messages or text; remove it"
    )
