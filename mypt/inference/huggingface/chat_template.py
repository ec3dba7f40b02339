"""A chat template as Jinja, its ``{% generation %}`` blocks around what our mask supervises.

``transformers`` renders a conversation to one string and only then makes tokens of it, while we
encode each segment alone (DESIGN.md D6). Two noncharacters of Unicode carry what the string
would lose: ``GLUE`` inside what only looks like a special token keeps it text, ``CUT`` between
two segments keeps merges apart. The exported tokenizer takes both out again.

Where no special token ends a supervised stretch and its last character takes several tokens,
``transformers`` marks the first of these only; an assistant's turn always has such an end.
"""

import json
from typing import Any, Final

from mypt.config import MaskPolicy
from mypt.data.masking import FIELDS, rules
from mypt.data.spans import KINDS
from mypt.data.template import Slot, Template

GLUE: Final = "\ufdd0"
CUT: Final = "\ufdd1"
_KINDS: Final = ("content", "end", "reasoning", "tool_call")
_TRAINS: Final = ("unset", "0", "1")
_BODY: Final = """\
{%- macro plain(text) -%}
{%- if GLUE in text or CUT in text -%}
{{- raise_exception('a message holds U+FDD0 or U+FDD1, which are no characters; remove them') -}}
{%- endif -%}
{%- set found = namespace(special=false) -%}
{%- for token in SPECIALS -%}{%- if token in text -%}{%- set found.special = true -%}{%- endif -%}
{%- endfor -%}
{{- text | join(GLUE) if found.special else text -}}
{%- endmacro -%}
{%- macro spelled(call) -%}
{%- set called = call.function if call.function is defined else call -%}
{%- set arguments = called.arguments if called.arguments is defined else {} -%}
{{- '{"name": ' ~ (called.name | tojson) ~ ', "arguments": ' -}}
{{- (arguments if arguments is string else (arguments or {}) | tojson) or '{}' -}}{{- '}' -}}
{%- endmacro -%}
{%- set ns = namespace(last=-1, asked=0, round=0, learned='', in_text=false, slots=[], parts=[]) -%}
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
{%- set gap = CUT if ns.in_text and not special else '' -%}
{%- if outcome and ns.learned -%}
{%- set ns.learned = ns.learned ~ gap ~ text -%}
{%- elif outcome -%}
{{- gap -}}{%- set ns.learned = text -%}
{%- else -%}
{%- if ns.learned -%}
{%- generation -%}{{- ns.learned -}}{%- endgeneration -%}{%- set ns.learned = '' -%}
{%- endif -%}
{{- gap ~ text -}}
{%- endif -%}
{%- set ns.in_text = not special -%}
{%- endif -%}
{%- endfor -%}
{%- endfor -%}
{%- if ns.learned -%}
{%- generation -%}{{- ns.learned -}}{%- endgeneration -%}
{%- endif -%}
{%- if add_generation_prompt -%}
{%- for kind, text, special in (OPENING.later if messages else OPENING.first) -%}
{{- CUT if ns.in_text and not special else '' -}}{{- text -}}
{%- set ns.in_text = not special -%}
{%- endfor -%}
{%- endif -%}
"""


def chat_template(template: Template, policy: MaskPolicy) -> str:
    """Return the Jinja source for ``chat_template.jinja``.

    It reads messages as ``transformers`` has them: ``content`` (a string, or parts of type
    text, reasoning and tool_call), ``reasoning_content``, ``tool_calls``; and our own ``train``,
    of a message or of a part.

    Args:
        template: How turns are written.
        policy: Whose tokens ``{% generation %}`` marks.
    """
    values = {
        "SPECIALS": list(template.special_tokens),
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
    head = "\n".join(f"{{%- set {name} = {_literal(value)} -%}}" for name, value in values.items())
    return f"{head}\n{_BODY}"


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
    for kind, form in (("reasoning", template.reasoning), ("tool_call", template.tool_call)):
        if form is not None:
            slots = template.form(("assistant", False, (kind,)))  # type: ignore[arg-type]
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
