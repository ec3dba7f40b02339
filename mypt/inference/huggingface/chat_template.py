"""A chat template as Jinja, its ``{% generation %}`` blocks around what our mask supervises.

``transformers`` renders a conversation to one string and only then makes tokens of it, while we
encode each segment alone (DESIGN.md D6). Two noncharacters of Unicode carry what the string
would lose: ``GLUE`` inside what only looks like a special token keeps it text, ``CUT`` between
two segments keeps merges apart where the tokenizer would not. The exported tokenizer takes both
out again.

Where no special token ends a supervised stretch and its last character takes several tokens,
``transformers`` marks the first of these only; an assistant's turn always has such an end.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mypt.config import MaskPolicy
from mypt.data.masking import FIELDS, rules
from mypt.data.spans import KINDS
from mypt.data.template import Slot, Template
from mypt.data.tokenizer import Tokenizer

GLUE: Final = "\ufdd0"
CUT: Final = "\ufdd1"
_KINDS: Final = tuple(kind for kind in KINDS if kind != "header")
_TRAINS: Final = ("unset", "0", "1")
_ASCII: Final = "\n" + "".join(map(chr, range(32, 127)))
_TAILS: Final = ("", "a", " ", "\n", "1.")
_LETTERS: Final = (
    ("À", "ɏ"), ("Ͱ", "Ͽ"), ("Ѐ", "ԯ"), ("ぁ", "ゖ"), ("ァ", "ヺ"), ("一", "鿿"), ("가", "힣"),
)  # fmt: skip
_LAST_CASED: Final = "ԯ"
_BODY: Final = """\
{%- macro plain(text) -%}
{%- if GLUE in text or CUT in text -%}
{{- raise_exception('a message holds U+FDD0 or U+FDD1, which are no characters; remove them') -}}
{%- endif -%}
{%- set said = namespace(text=text) -%}
{%- for token in SPECIALS -%}
{%- set said.text = said.text | replace(token, token[0] ~ GLUE ~ token[1:]) -%}
{%- endfor -%}
{{- said.text -}}
{%- endmacro -%}
{%- macro class(c) -%}
{%- set cased = 'À' <= c <= 'ɏ' or 'Ͱ' <= c <= 'ԯ' -%}
{%- set other = 'ぁ' <= c <= 'ゖ' or 'ァ' <= c <= 'ヺ' or '一' <= c <= '鿿' or '가' <= c <= '힣' -%}
{{- '字' if other else 'é' if cased and c | lower != c | upper else c -}}
{%- endmacro -%}
{%- macro gap(before, text) -%}
{%- if class(text[0]) not in AFTER.get(before, '') and class(before[-1]) not in BEFORE.get(text, '')
-%}{{- CUT -}}{%- endif -%}
{%- endmacro -%}
{%- macro spelled(call) -%}
{%- set called = call.function if call.function is defined else call -%}
{%- set arguments = called.arguments if called.arguments is defined else none -%}
{%- set arguments = {} if arguments is none or not (arguments | string | trim) else arguments -%}
{%- if called.name is not string or arguments is not mapping -%}
{{- raise_exception('a tool call needs a name and arguments as an object, for a template '
 ~ 'cannot parse text; read them with json.loads') -}}
{%- endif -%}
{{- '{"name": ' ~ (called.name | tojson) ~ ', "arguments": ' ~ (arguments | tojson) ~ '}' -}}
{%- endmacro -%}
{%- set ns = namespace(last=-1, asked=0, round=0, learned='', before='', slots=[], parts=[]) -%}
{%- for message in messages -%}
{%- if message.role in ROLES -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- if message.role == 'user' -%}{%- set ns.asked = loop.index0 -%}{%- endif -%}
{%- if message.role == 'assistant' -%}{%- set ns.round = ns.asked -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- if message.role not in TURNS -%}
{{- raise_exception('the template has no form for role ' ~ message.role) -}}
{%- endif -%}
{%- set turn = TURNS[message.role] -%}
{%- set train = 'unset' -%}
{%- if message.train is defined and message.train is not none -%}
{%- set train = '1' if message.train else '0' -%}
{%- endif -%}
{%- set ns.parts = [] -%}
{%- if message.reasoning_content -%}
{%- set ns.parts = [['reasoning', message.reasoning_content, none]] -%}
{%- endif -%}
{%- if message.content is string -%}
{%- set ns.parts = ns.parts + [['text', message.content, none]] -%}
{%- elif message.content -%}
{%- for part in message.content -%}
{%- set own = part.train if part.train is defined else none -%}
{%- set own = none if own is none else ('1' if own else '0') -%}
{%- set ns.parts = ns.parts + [[part.type, part.text, own]] -%}
{%- endfor -%}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- set ns.parts = ns.parts + [['tool_call', spelled(call), none]] -%}
{%- endfor -%}
{%- set ns.slots = turn.first if loop.first else turn.later -%}
{%- for kind, text, own in ns.parts -%}
{%- if kind not in PARTS -%}
{{- raise_exception('the template has no form for ' ~ kind ~ ' parts') -}}
{%- endif -%}
{%- set form = PARTS[kind] -%}
{%- for slot in form.open + [[form.kind, plain(text), false]] + form.close -%}
{%- set ns.slots = ns.slots + [slot + [own or train]] -%}
{%- endfor -%}
{%- endfor -%}
{%- set earlier = LAST_ONLY and loop.index0 != ns.last or ROUND_ONLY and loop.index0 < ns.round -%}
{%- for slot in ns.slots + turn.end -%}
{%- set kind, text, special, said = (slot + [train])[:4] -%}
{%- if text -%}
{%- set behind = earlier and said == 'unset' -%}
{%- set outcome = 0 if kind == 'header' or behind else LEARNED[message.role][said][kind] -%}
{%- if outcome == 2 -%}
{{- raise_exception('a tool\\'s result is given to the model, never written by it') -}}
{%- endif -%}
{%- set between = gap(ns.before, text) if ns.before and not special else '' -%}
{%- if outcome and ns.learned -%}
{%- set ns.learned = ns.learned ~ between ~ text -%}
{%- elif outcome -%}
{{- between -}}{%- set ns.learned = text -%}
{%- else -%}
{%- if ns.learned -%}
{%- generation -%}{{- ns.learned -}}{%- endgeneration -%}{%- set ns.learned = '' -%}
{%- endif -%}
{{- between ~ text -}}
{%- endif -%}
{%- set ns.before = '' if special else text -%}
{%- endif -%}
{%- endfor -%}
{%- endfor -%}
{%- if ns.learned -%}
{%- generation -%}{{- ns.learned -}}{%- endgeneration -%}
{%- endif -%}
{%- if add_generation_prompt -%}
{%- for kind, text, special in (OPENING.later if messages else OPENING.first) -%}
{{- gap(ns.before, text) if ns.before and not special else '' -}}{{- text -}}
{%- set ns.before = '' if special else text -%}
{%- endfor -%}
{%- endif -%}
"""


def chat_template(tokenizer: Tokenizer, template: Template, policy: MaskPolicy) -> str:
    """Return the Jinja source for ``chat_template.jinja``.

    It reads messages as ``transformers`` has them: ``content`` (a string, or parts of type
    text, reasoning, context, cite, tool_call and failed_call), ``reasoning_content``,
    ``tool_calls``, which count as calls that did not fail; and our own ``train``, of a message or
    of a part. Arguments of a call that are text are refused: training reads them as JSON and
    spells them anew, which Jinja cannot.

    Args:
        tokenizer: What tells where merges would cross.
        template: Its own: how turns are written.
        policy: Whose tokens ``{% generation %}`` marks.
    """
    values = {
        "SPECIALS": _beginnings(tokenizer.special_tokens),
        "TURNS": {role: _turn(template, role) for role in template.turns},
        "OPENING": _turn(template, "assistant"),
        "PARTS": _parts(template),
        "LEARNED": {role: _learned(role, policy) for role in template.turns},
        "ROLES": list(policy.roles),
        "LAST_ONLY": policy.last_turn_only,
        "ROUND_ONLY": policy.last_round_only,
        "GLUE": GLUE,
        "CUT": CUT,
    }
    values |= dict(zip(("AFTER", "BEFORE"), _seams(tokenizer, values), strict=True))
    head = "\n".join(f"{{%- set {name} = {_literal(value)} -%}}" for name, value in values.items())
    return f"{head}\n{_BODY}"


def _beginnings(tokens: Iterable[str]) -> list[str]:
    """Return how special tokens begin, at least one for each; numbered ones share theirs."""
    heads = {token: re.split(r"\d", token)[0] for token in tokens}
    return sorted({head if len(head) > 2 else token for token, head in heads.items()})


def _seams(tokenizer: Tokenizer, values: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return by fixed text what may follow it, and what precede it, without a merge across.

    No token holds both bytes beside such a seam, and the tokenizer cuts both sides as it does each
    alone; of letters past ASCII, cased and others, it is asked about some, which stand for all.
    """
    pairs = _pairs(tokenizer.vocabulary.tokens)
    ends = ((ord(first), ord(last) + 1) for first, last in _LETTERS)
    letters = [chr(n) for first, stop in ends for n in range(first, stop, (stop - first) // 20)]
    letters = [c for c in letters if c > _LAST_CASED or c.lower() != c.upper()]
    tried = [(c, tail) for c in (*_ASCII, *letters) for tail in _TAILS]
    after, before = dict[str, str](), dict[str, str]()
    for text in sorted(set(_fixed_texts(values))):
        after[text] = _unmerged(tokenizer, pairs, [(c, text, c + tail) for c, tail in tried])
        before[text] = _unmerged(tokenizer, pairs, [(c, tail + c, text) for c, tail in tried])
    return after, before


def _pairs(tokens: Sequence[bytes]) -> NDArray[np.bool_]:
    """Return (256, 256) which byte follows which inside a token."""
    data = np.frombuffer(b"".join(tokens), np.uint8)
    inside = np.ones(len(data), bool)
    inside[np.cumsum([len(token) for token in tokens if token]) - 1] = False
    found = np.zeros((256, 256), bool)
    found[data[:-1][inside[:-1]], data[1:][inside[:-1]]] = True
    return found


def _unmerged(
    tokenizer: Tokenizer, pairs: NDArray[np.bool_], seams: list[tuple[str, str, str]]
) -> str:
    """Return the characters at all whose seams both sides have the ids that they have alone."""
    asked = (text for _, left, right in seams for text in (left + right, left, right))
    texts = list(dict.fromkeys(asked))
    flat, lengths = tokenizer.encode_each(tokenizer.spelled(texts), many=False)
    parts = np.split(flat, np.cumsum(lengths)[:-1])
    ids = {text: part.tolist() for text, part in zip(texts, parts, strict=True)}
    merged = {
        c
        for c, left, right in seams
        if pairs[left.encode()[-1], right.encode()[0]]
        or ids[left + right] != ids[left] + ids[right]
    }
    cased = any("\x7f" < c <= _LAST_CASED for c in merged)
    other = any(c > _LAST_CASED for c in merged)
    safe = "".join(c for c in _ASCII if c not in merged)
    return safe + ("" if cased else "é") + ("" if other else "字")


def _fixed_texts(values: dict[str, Any]) -> Iterator[str]:
    forms = [*values["TURNS"].values(), values["OPENING"]]
    slots = [slot for form in forms for part in form.values() for slot in part]
    slots += [slot for form in values["PARTS"].values() for slot in form["open"] + form["close"]]
    yield from (text for _, text, special in slots if not special)


def _literal(value: Any) -> str:
    """Return a value as Jinja spells it: JSON, none of whose words is ``null`` here."""
    return json.dumps(value, ensure_ascii=False)


def _turn(template: Template, role: str) -> dict[str, Any]:
    first, later = (_slots(template.form((role, first, ()))) for first in (True, False))  # type: ignore[arg-type]
    headers = [[slot for slot in slots if slot[0] == "header"] for slots in (first, later)]
    return {
        "first": headers[0],
        "later": headers[1],
        "end": [slot for slot in later if slot[0] == "end"],
    }


def _parts(template: Template) -> dict[str, Any]:
    """Return what stands before and after each kind of part that the template can write."""
    found: dict[str, Any] = {"text": {"kind": "content", "open": [], "close": []}}
    for kind, form in template.forms.items():
        if form is not None:
            slots = template.form(("assistant", False, (kind,)))
            own = [slot for slot in slots if KINDS[slot.kind] == kind]
            at = next(index for index, slot in enumerate(own) if slot.is_part)
            found[kind] = {
                "kind": kind, "open": _slots(own[:at]), "close": _slots(own[at + 1 :]),
            }  # fmt: skip
    return found


def _slots(slots: tuple[Slot, ...] | list[Slot]) -> list[tuple[str, str, bool]]:
    """Return fixed slots as (kind, text, whether it is a special token)."""
    return [
        (KINDS[slot.kind], slot.special or slot.text or "", slot.special is not None)
        for slot in slots
    ]


def _learned(role: str, policy: MaskPolicy) -> dict[str, dict[str, int]]:
    """Return 0, 1 or 2 (refused) for each ``train`` and kind, in a last turn."""
    return {
        train: {kind: _outcome(role, kind, train, policy) for kind in _KINDS} for train in _TRAINS
    }


def _outcome(role: str, kind: str, train: str, policy: MaskPolicy) -> int:
    values = dict.fromkeys(FIELDS, "") | {
        "role": role, "kind": kind, "train": train, "last_turn": "yes",
    }  # fmt: skip
    decides = next(rule for rule in rules(policy) if rule.fits(values))
    return 2 if decides.outcome is None else int(decides.outcome > 0)
