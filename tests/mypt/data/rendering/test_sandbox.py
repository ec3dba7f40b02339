"""What a stranger's template may do, and that what it may not ends soon and in one line."""

import time

import pytest

from mypt.data.rendering.sandbox import CLOSES, OPENS, generates, render
from mypt.errors import DataError

DOUBLES = (
    "{{% set ns = namespace(x='ab') %}}"
    "{{% for i in range(90) %}}{{% set ns.x = {} %}}{{% endfor %}}"
)
HOSTILE = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops over a list": "{% set r = range(99999) %}{% for i in r %}{% for j in r %}x{% endfor %}"
    "{% endfor %}",
    "doubles by ~": DOUBLES.format("ns.x ~ ns.x"),
    "doubles by +": DOUBLES.format("ns.x + ns.x"),
    "doubles by join": DOUBLES.format("[ns.x, ns.x] | join"),
    "doubles by a method": DOUBLES.format("''.join([ns.x, ns.x])"),
    "squares by replace": DOUBLES.format("ns.x | replace('a', ns.x)"),
    "multiplies": "{{ 'a' * 10**9 }}",
    "formats": "{{ '%0999999999d' % 3 }}",
    "formats by a method": "{{ '{:0999999999d}'.format(3) }}",
    "pads": "{{ 'x'.center(10**9) }}",
    "takes powers": "{{ 9**9**9 }}",
    "calls itself": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "branches": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(100) }}",
    "writes much": "{% for i in range(99999) %}" + "a" * 99 + "{% endfor %}",
    "looks at classes": "{{ ''.__class__.__mro__ }}",
    "looks at globals": "{{ cycler.__init__.__globals__.os }}",
    "changes messages": "{% set _ = messages.append(1) %}",
    "includes a file": "{% include '/etc/passwd' %}",
    "is no Jinja": "{% if x",
    "is long": "x" * (1 << 19),
    "raises": "{{ raise_exception('roles must\nalternate') }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_ends_in_one_line_within_seconds(source):
    before = time.process_time()
    with pytest.raises(DataError, match="chat template") as caught:
        render(source, {"messages": [{"role": "user", "content": "x"}]}, 10)
    assert time.process_time() - before < 5
    assert "\n" not in str(caught.value)


def test_json_is_spelled_as_transformers_spells_it():
    values = {"messages": {"b": "\u00e9<&", "a": [1, None]}}
    assert render("{{ messages | tojson }}", values, 10) == '{"b": "\u00e9<&", "a": [1, null]}'
    assert render("{{ messages | tojson(indent=1) }}", values, 10).startswith('{\n "b"')


def test_the_clock_stands_still():
    assert render("{{ strftime_now('%d %b %Y') }}", {}, 0) == "26 Jul 2024"


def test_generation_blocks_show_only_where_they_are_asked_for():
    source = "a{% generation %}b{% endgeneration %}c"
    assert generates(source)
    assert not generates("{% if add_generation_prompt %}x{% endif %}")
    assert render(source, {}, 0) == "abc"
    assert render(source, {}, 0, shows=True) == f"a{OPENS}b{CLOSES}c"
