"""Strict JSON, whole and item by item, against the standard library's."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mypt.data.reading import raw as unpacking
from mypt.data.reading import strict_json
from mypt.data.reading.json_items import items, members
from mypt.data.reading.raw import Limits, RawFile
from mypt.data.reading.strict_json import parse, spell
from mypt.errors import DataError
from tests.mypt.data.rawfiles import memory_below, write

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.text(alphabet='"\\[]{},:\n'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)
LIMITS = Limits()
INDENTS = st.sampled_from([None, 0, 1, "\t"])


@pytest.fixture
def place(tmp_path):
    return RawFile(write(tmp_path / "a.jsonl", "x")).place(3)


@given(VALUES, st.booleans())
def test_every_value_is_read_as_the_standard_library_reads_it(value, ascii_only):
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert parse(data, 0, None, LIMITS) == json.loads(data)


@given(st.lists(VALUES, max_size=6), INDENTS, st.integers(1, 9))
def test_an_array_is_cut_into_its_items_wherever_the_chunks_end(
    tmp_path_factory, values, indent, chunk
):
    data = json.dumps(values, indent=indent, ensure_ascii=False).encode()
    path = write(tmp_path_factory.getbasetemp() / "array.json", b" \n" + data + b"\n ")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpacking, "CHUNK", chunk)
        found = list(items(RawFile(path)))
    assert [json.loads(item.data) for item in found] == values
    assert [item.number for item in found] == list(range(1, len(values) + 1))
    for item in found:
        assert path.read_bytes()[item.offset :].startswith(item.data)


@given(st.dictionaries(st.text(), VALUES, max_size=5), INDENTS, st.integers(1, 9))
def test_an_object_is_cut_into_its_members(tmp_path_factory, fields, indent, chunk):
    data = json.dumps(fields, indent=indent).encode()
    path = write(tmp_path_factory.getbasetemp() / "object.json", data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpacking, "CHUNK", chunk)
        found = [json.loads(b"{%b}" % item.data) for item in items(RawFile(path))]
    assert found == [{key: value} for key, value in fields.items()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "item 2: the file ends inside it"),
        ('["a', "item 1: the file ends inside it"),
        ("[1] 2", "no JSON; found '2' after the end"),
        ('{"a": 1}\n{"b": 2}', "after the end; write the rows as one array"),
        ("[1}", r"no JSON; '}' closes what '\[' opened"),
        ("3", "found '3'; expected a JSON array or object"),
        ("  \n ", "found white space; expected a JSON array or object"),
    ],
)
def test_an_array_that_is_broken_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        list(items(RawFile(write(tmp_path / "a.json", text))))


def test_a_file_of_many_rows_needs_the_memory_of_one(tmp_path):
    row = json.dumps({"text": "word " * 4000})
    path = write(tmp_path / "a.json", "[" + ",\n".join([row] * 1000) + "]")
    assert path.stat().st_size > 16 << 20
    with memory_below(4 << 20):
        assert sum(1 for _ in items(RawFile(path))) == 1000


def test_an_item_over_the_limit_is_refused_before_it_is_read_whole(tmp_path):
    path = write(tmp_path / "a.json", '[1, "' + "x" * (8 << 20) + '"]')
    opened = RawFile(path, limits=Limits(row_bytes=1 << 20))
    with pytest.raises(DataError, match=r"a.json: item 2: more than 1,048,576 bytes"):
        list(items(opened))
    assert opened.bytes_done < 4 << 20


@pytest.mark.parametrize("key", ["role", "content", "id"])
def test_a_key_that_stands_twice_is_refused(place, key):
    data = f'{{"{key}": "user", "x": {{}}, "{key}": "assistant"}}'.encode()
    with pytest.raises(DataError, match=rf"a.jsonl:3: the key '{key}' stands twice"):
        parse(data, 0, place, LIMITS)
    with pytest.raises(DataError, match="stands twice"):
        parse(b'[{"deeper": %b}]' % data, 0, place, LIMITS)


@pytest.mark.parametrize("text", [r"\ud83d", r"\uDE00", r"\ud83d \ude00", r"a\udfffb"])
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(place, text):
    for data in (f'"{text}"', f'{{"{text}": 1}}', f'[{{"a": ["{text}"]}}]'):
        with pytest.raises(DataError, match=r"a.jsonl:3: \\ud[0-9a-f]{3} is half of a surrogate"):
            parse(data.encode(), 0, place, LIMITS)


def test_whole_surrogate_pairs_and_escaped_backslashes_are_text(place):
    assert parse(rb'"\ud83d\ude00"', 0, place, LIMITS) == "\U0001f600"
    assert parse(rb'"\\ud83d"', 0, place, LIMITS) == r"\ud83d"


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_nesting_is_refused_beyond_the_limit_and_read_up_to_it(place, opening):
    closing = "]" if opening == "[" else "}"
    for depth in (200, 201, 100_000):
        data = (opening * depth + "1" + closing * depth).encode()
        if depth <= 200:
            assert parse(data, 0, place, LIMITS)
        else:
            with pytest.raises(DataError, match="nested more than 200 deep"):
                parse(data, 0, place, LIMITS)


def test_brackets_without_an_end_are_refused_by_their_depth(tmp_path, place):
    with pytest.raises(DataError, match="nested more than 200 deep"):
        parse(b"[" * 100_000, 0, place, LIMITS)
    with pytest.raises(DataError, match="item 1: arrays or objects nested more than 200 deep"):
        list(items(RawFile(write(tmp_path / "deep.json", "[" * 100_000))))


def test_a_row_of_too_many_brackets_is_refused(tmp_path, place):
    limits = Limits(brackets=1000)
    for data in (b"[" + b"[]," * 999 + b"1]", b"[" + b"[]," * 1000 + b"1]"):
        path = write(tmp_path / "a.json", b"[1," + data + b"," + data + b"]")
        if data.count(b"[") <= 1000:
            assert parse(data, 0, place, limits)
            assert len(list(items(RawFile(path, limits=limits)))) == 3
        else:
            with pytest.raises(DataError, match="more than 1,000 arrays and objects in one row"):
                parse(data, 0, place, limits)
            with pytest.raises(DataError, match="item 2: more than 1,000 arrays"):
                list(items(RawFile(path, limits=limits)))


def test_brackets_that_are_wide_or_inside_strings_are_no_nesting(place):
    assert len(parse(b"[" + b",".join([b"[{}]"] * 5000) + b"]", 0, place, LIMITS)) == 5000
    assert parse(json.dumps("[" * 5000).encode(), 0, place, LIMITS) == "[" * 5000
    assert parse(json.dumps(['"[{\\' * 500]).encode(), 0, place, LIMITS) == ['"[{\\' * 500]


def test_unclosed_strings_full_of_quotes_take_no_quadratic_time(place):
    for data in (b"[" * 150 + b'"' + b'\\"[' * 400_000, b'[{"a":"' + b'"' * 400_001 + b"[" * 300):
        with pytest.raises(DataError):
            parse(data, 0, place, LIMITS)


@given(
    st.dictionaries(st.text(max_size=3), VALUES, min_size=1, max_size=6),
    st.integers(1, 40),
    INDENTS,
)
def test_rows_deeper_in_a_file_are_cut_out_wherever_the_chunks_end(
    tmp_path_factory, fields, chunk, indent
):
    path = tmp_path_factory.getbasetemp() / "deep.json"
    wanted = [{"a": "]}"}, [1, "{"], "x"]
    key = next(iter(fields)) + "+"
    whole = {"before": fields, "at": {**fields, key: wanted, "after": fields}, "end": 1}
    path.write_text(json.dumps(whole, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpacking, "CHUNK", chunk)
        found = [json.loads(item.data) for item in items(RawFile(path), ("at", key))]
        held = {member.key: json.loads(member.data) for member in members(RawFile(path))}
    assert found == wanted
    assert held == whole


@pytest.mark.parametrize("end", ["]}", "}", "} 1", "}}}", ""])
def test_brackets_behind_the_rows_must_close_too(tmp_path, end):
    path = write(tmp_path / "a.json", '{"at": {"x": [1, 2], "y": 3' + end)
    with pytest.raises(DataError, match=r"no JSON|the file ends inside it"):
        list(items(RawFile(path), ("at", "x")))


def test_long_members_are_passed_without_being_held(tmp_path):
    rows = json.dumps(["word " * 20] * 150_000)
    path = write(tmp_path / "a.json", f'{{"a": 1, "long": {rows}, "b": {{"c": []}}}}')
    with memory_below(3 << 20):
        found = [(member.key, member.data) for member in members(RawFile(path))]
        assert found == [("a", b"1"), ("long", None), ("b", b'{"c": []}')]
        assert sum(1 for _ in items(RawFile(path), ("long",))) == 150_000


def test_numbers_beyond_python_are_read_as_numbers(place):
    for text in ("1" * 5000, "-" + "9" * 100_000, "1e99999", "0." + "1" * 100_000, "NaN"):
        assert isinstance(parse(text.encode(), 0, place, LIMITS), float)
    row = parse(b'{"id": ' + b"1" * 5000 + b', "n": 3, "x": 1.0}', 0, place, LIMITS)
    assert (type(row["n"]), type(row["x"])) == (int, float)
    assert parse(b'{"id": ' + b"1" * 5000 + b', "n": 12345678901234567890}', 0, place, LIMITS)


@given(VALUES.filter(lambda value: "Infinity" not in json.dumps(value)))
def test_what_is_spelled_is_read_as_it_was(value):
    assert json.loads(spell(value, "a")) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**309, {"a": [-(10**400)]}])
def test_numbers_that_json_or_float64_has_not_are_not_spelled(value):
    with pytest.raises(DataError, match=r"a.jsonl:3: a number that is no JSON or beyond float64"):
        spell(value, "a.jsonl:3")


@pytest.mark.parametrize("value", [10**308, 2**200, "9" * 400, {"9" * 400: 1}])
def test_many_digits_are_kept(value):
    assert json.loads(spell(value, "a")) == value


def test_values_that_json_has_not_are_named():
    with pytest.raises(DataError, match=r"a:1: Object of type bytes .* expected what JSON has"):
        spell({"a": b"x"}, "a:1")


@pytest.mark.parametrize("data", [b"", b"{", b"{'a': 1}", b"[1,]", b"nul", b'{"a" 1}', b"{} {}"])
def test_what_is_no_json_is_named(place, data):
    with pytest.raises(DataError, match=r"a.jsonl:3: no JSON \(.* at character \d+\); found"):
        parse(data, 0, place, LIMITS)


@given(st.binary(max_size=80) | st.text(alphabet='[]{}",:\\u1d8e \n', max_size=80).map(str.encode))
def test_arbitrary_bytes_give_a_value_or_a_data_error(data):
    try:
        value = parse(data, 0, None, Limits(nesting=20))
    except DataError:
        return
    json.dumps(value, ensure_ascii=False).encode()


def test_an_error_shows_no_more_than_a_little_of_the_line(place):
    with pytest.raises(DataError) as caught:
        parse(b"x" * 100_000, 0, place, LIMITS)
    assert len(str(caught.value)) < 300


def test_the_limits_guard_the_json_reader_from_the_call_stack(place, monkeypatch):
    monkeypatch.setattr(strict_json, "_check_brackets", lambda *_: None)
    with pytest.raises(DataError, match="nested more than"):
        parse(b"[" * 200_000, 0, place, LIMITS)
