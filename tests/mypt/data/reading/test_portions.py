"""Large files are cut where no row is, so that the rows of the portions are those of the files."""

import gzip
import json
import random

import pytest

from mypt.config import Source
from mypt.data.conversations import Document
from mypt.data.reading import portions
from mypt.data.reading import raw as unpacking
from mypt.data.reading.portions import read_portion
from mypt.data.reading.records import Tally
from mypt.data.reading.sources import open_source
from mypt.errors import DataError
from tests.mypt.data.corpora import chats, say, write_chats
from tests.mypt.data.rawfiles import jsonl, write

SIZE = 40_000


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(portions, "PORTION_BYTES", SIZE)
    monkeypatch.setattr(unpacking, "CHUNK", 7_000)


def text(n_bytes, ends=("\n\n", "\r\n\r\n", "\n", " "), seed=0):
    rng, parts, size = random.Random(seed), [], 0
    while size < n_bytes:
        parts.append("ü" * rng.randint(0, 40) + rng.choice(ends) * rng.randint(1, 3))
        size += len(parts[-1].encode())
    return "".join(parts)


def lines_of_chat(n):
    turns = [turn for number in range(n) for turn in (*chats(1, seed=number)[0], None)]
    return "".join("  \n\n" if turn is None else json.dumps(turn) + "\n" for turn in turns)


FILES = {
    "a.txt": text(300_000),
    "long.txt": text(200_000, ends=("ü" * 30_000,)),
    "bom.txt": "\ufeff" + text(150_000, seed=1),
    "rows.jsonl": jsonl(*({"text": "x" * (i % 700)} for i in range(600))),
    "bom.jsonl": "\ufeff\n\n" + jsonl(*({"text": f"{i} \u2028"} for i in range(6_000))),
    "chat.jsonl": lines_of_chat(500),
    "list.json": json.dumps([{"text": "x" * 900} for _ in range(90)]),
    "cells.csv": "text,weight\n" + '"two\nlines",1\n' * 9_000,
    "tags.txt": "<User>a\n\nb</User><Assistant>c</Assistant>\n\n" * 2_000,
}


def read_whole(source):
    reader = open_source(source)
    rows = list(reader)
    return rows, reader.record()


def read_portions(source):
    reader, tally = open_source(source), Tally()
    found = list(reader.portions(0))
    rows = [row for portion in found for row in read_portion(portion, tally)]
    reader.begin()
    reader.add(len(rows), tally)
    reader.finish()
    return rows, reader.record(), found


@pytest.mark.parametrize("name", FILES)
def test_the_rows_of_all_portions_are_those_of_the_file(tmp_path, name):
    path = write(tmp_path / name, FILES[name])
    source = Source(path=str(path))
    rows, record = read_whole(source)
    again, counted, found = read_portions(source)
    assert again == rows  # places too
    assert counted == record
    assert len(found) > 1 or name in ("list.json", "cells.csv", "tags.txt")


def test_a_packed_file_is_one_portion(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(text(300_000).encode()))
    rows, record = read_whole(Source(path=str(path)))
    again, counted, found = read_portions(Source(path=str(path)))
    assert (again, counted) == (rows, record)
    assert len(found) == 1


def test_small_files_go_together_and_large_ones_apart(tmp_path):
    for number in range(9):
        write(tmp_path / f"{number}.txt", text(9_000 if number != 4 else 100_000, seed=number))
    found = read_portions(Source(path=str(tmp_path)))[2]
    assert len(found[0].pieces) == 4
    assert max(portion.size for portion in found) < SIZE + 17_000
    assert sum(portion.size for portion in found) == sum(
        path.stat().st_size for path in tmp_path.iterdir()
    )


def test_a_line_longer_than_a_portion_is_not_cut(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl({"text": "x" * 200_000}, {"text": "y"}))
    rows, _, found = read_portions(Source(path=str(path)))
    assert [row.text[0] for row in rows if isinstance(row, Document)] == ["x", "y"]
    assert len(found) == 1 or found[0].size > 200_000


def test_white_space_alone_is_refused_however_much_it_is(tmp_path):
    for name in ("a.txt", "a.jsonl"):
        path = write(tmp_path / name, " \n" * 100_000)
        with pytest.raises(DataError, match=r"only white space|no rows found"):
            read_portions(Source(path=str(path), format="text"))


def test_a_portion_that_changed_since_it_was_cut_is_refused(tmp_path):
    path = write(tmp_path / "a.txt", text(200_000))
    *_, last = open_source(Source(path=str(path))).portions(0)
    path.write_bytes(path.read_bytes()[:-10] + b"changed...")
    with pytest.raises(DataError, match="changed while it was read"):
        list(read_portion(last, Tally()))


def test_a_file_that_changed_before_it_was_cut_is_refused(tmp_path):
    path = write_chats(tmp_path / "a.jsonl", chats(400))
    reader = open_source(Source(path=str(path)))
    path.write_bytes(path.read_bytes().replace(b"tea", b"TEA"))
    with pytest.raises(DataError, match="changed while it was read"):
        list(reader.portions(0))


def test_an_error_names_the_line_of_the_file_not_of_the_portion(tmp_path):
    rows = [{"messages": turns} for turns in chats(900)]
    rows[800] = {"messages": [say("wizard", "?")]}
    path = write(tmp_path / "a.jsonl", jsonl(*rows))
    with pytest.raises(DataError, match=r"a\.jsonl:801: .*wizard"):
        read_portions(Source(path=str(path)))
