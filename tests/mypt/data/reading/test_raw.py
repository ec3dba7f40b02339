"""Raw bytes: lines, unpacking within limits, damage that is named."""

import gzip
import hashlib
import lzma
import os
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mypt.data.reading import raw as unpacking
from mypt.data.reading.raw import Limits, RawFile, decode, lines
from mypt.errors import DataError
from tests.mypt.data.rawfiles import memory_below, write

PACK = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
TEXT = "".join(f"line {n} of some text\r\n\u2028" for n in range(20_000)).encode()


def plain(path: Path, limits: Limits | None = None) -> bytes:
    return b"".join(RawFile(path, limits=limits).chunks())


@given(st.binary(max_size=60) | st.text(alphabet="a\n\r\u2028\x85\0", max_size=40).map(str.encode))
def test_lines_are_cut_at_line_feeds_and_nowhere_else(tmp_path_factory, data):
    data = b"x" + data
    path = write(tmp_path_factory.getbasetemp() / "lines.txt", data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpacking, "CHUNK", 3)
        found = list(lines(RawFile(path)))
    expected = data.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    assert [line.data for line in found] == expected
    assert [line.number for line in found] == list(range(1, len(expected) + 1))
    for line in found:
        assert data[line.offset : line.offset + len(line.data)] == line.data


@pytest.mark.parametrize("suffix", PACK)
def test_packed_files_are_unpacked_whole_and_in_several_parts(tmp_path, suffix):
    half = len(TEXT) // 2
    path = write(tmp_path / f"a.txt{suffix}", PACK[suffix](TEXT[:half]) + PACK[suffix](TEXT[half:]))
    opened = RawFile(path)
    assert b"".join(opened.chunks()) == TEXT
    assert opened.bytes_done == opened.size == path.stat().st_size
    opened.check_unchanged(hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_a_packed_file_that_is_cut_off_is_refused(tmp_path, suffix, keep):
    packed = PACK[suffix](TEXT)
    path = write(tmp_path / f"a.txt{suffix}", packed[: int(len(packed) * keep)])
    with pytest.raises(DataError, match=r"cannot be read to its end .* undamaged copy"):
        plain(path)


@pytest.mark.parametrize("suffix", PACK)
def test_a_packed_file_that_is_none_is_refused(tmp_path, suffix):
    with pytest.raises(DataError, match=f"first bytes are not those of {suffix}; .* name without"):
        plain(write(tmp_path / f"a.txt{suffix}", "only text"))


@pytest.mark.parametrize("suffix", PACK)
def test_a_file_that_unpacks_without_bound_is_refused_before_it_does(tmp_path, suffix):
    path = write(tmp_path / f"bomb.txt{suffix}", PACK[suffix](bytes(80 << 20)))
    with (
        memory_below(32 << 20),
        pytest.raises(DataError, match=r"unpack to more than 67,108,864; expected at most 200"),
    ):
        for _ in RawFile(path).chunks():
            pass


def test_what_packs_well_may_unpack_within_the_free_allowance(tmp_path):
    path = write(tmp_path / "zeros.txt.gz", gzip.compress(bytes(1 << 20)))
    assert plain(path) == bytes(1 << 20)
    with pytest.raises(DataError, match="unpack to more than"):
        plain(path, Limits(free_expansion=1 << 19))


def test_a_line_over_the_limit_is_refused_before_it_is_read_whole(tmp_path):
    path = write(tmp_path / "long.jsonl", b"short\n" + b"x" * (8 << 20))
    opened = RawFile(path, limits=Limits(row_bytes=1 << 20))
    with pytest.raises(DataError, match=r"long.jsonl:2: a line of more than 1,048,576 bytes"):
        list(lines(opened))
    assert opened.bytes_done < 2 << 20


def test_a_line_of_exactly_the_limit_is_read(tmp_path):
    path = write(tmp_path / "a.txt", "12345\n123456\n")
    with pytest.raises(DataError, match=r"a.txt:2: a line of more than 5"):
        list(lines(RawFile(path, limits=Limits(row_bytes=5))))
    assert len(list(lines(RawFile(path, limits=Limits(row_bytes=6))))) == 2


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_a_byte_order_mark_is_skipped_at_the_start_only(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(unpacking, "CHUNK", chunk)
    path = write(tmp_path / "a.txt", "\ufeffone\ufefftwo")
    assert plain(path).decode() == "one\ufefftwo"
    assert plain(write(tmp_path / "b.txt", "\ufeff")) == b""


def test_bytes_that_are_no_utf8_are_named_with_their_offset(tmp_path):
    opened = RawFile(write(tmp_path / "a.txt", b"good\nb\xc3\xa4d \xff\n"))
    line = list(lines(opened))[1]
    with pytest.raises(DataError, match=r"a.txt:2: byte 0xff at offset 10 is no UTF-8"):
        decode(line.data, line.offset, opened.place(line.number))


@pytest.mark.parametrize("data", [b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"])
def test_surrogates_overlong_and_cut_off_characters_are_no_utf8(tmp_path, data):
    place = RawFile(write(tmp_path / "a.txt", data)).place(1)
    with pytest.raises(DataError, match="is no UTF-8"):
        decode(data, 0, place)


def test_a_file_that_is_missing_empty_or_no_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.txt: no such file"):
        RawFile(tmp_path / "nowhere.txt")
    with pytest.raises(DataError, match="is empty"):
        RawFile(write(tmp_path / "empty.txt", ""))
    with pytest.raises(DataError, match="no ordinary file"):
        RawFile(tmp_path)
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match="no ordinary file"):
        RawFile(tmp_path / "pipe.txt")


def test_a_name_with_a_line_feed_stays_on_one_line(tmp_path):
    with pytest.raises(DataError) as caught:
        RawFile(tmp_path / "two\nlines\x1b[31m.txt")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_file_that_changed_since_it_was_hashed_is_refused(tmp_path):
    path = write(tmp_path / "a.txt", "before")
    opened = RawFile(path)
    digest = opened.sha256()
    write(path, "after!")
    list(opened.chunks())
    with pytest.raises(DataError, match="changed while it was read"):
        opened.check_unchanged(digest)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        opened.sha256()


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.txt.zst"])
def test_the_first_bytes_tell_what_packs_a_file_whatever_it_is_called(tmp_path, suffix, name):
    path = write(tmp_path / name, PACK[suffix](TEXT))
    assert plain(path) == TEXT
    assert not RawFile(path).is_plain


def test_a_zstd_file_may_begin_with_a_frame_that_is_skipped(tmp_path):
    skipped = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    assert plain(write(tmp_path / "a.txt.zst", skipped + PACK[".zst"](TEXT))) == TEXT


@given(st.text(st.characters(codec="cp1252"), min_size=1), st.integers(1, 5))
def test_other_letters_become_utf8_wherever_the_chunks_end(tmp_path_factory, text, chunk):
    path = tmp_path_factory.getbasetemp() / "letters.txt"
    for encoding in ("cp1252", "utf-16", "utf-32"):
        write(path, text.encode(encoding))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(unpacking, "CHUNK", chunk)
            opened = RawFile(path, encoding=encoding)
            assert b"".join(opened.chunks()) == text.encode().removeprefix(unpacking.BOM)
        opened.check_unchanged(hashlib.sha256(path.read_bytes()).hexdigest())


def test_bytes_that_are_not_of_the_encoding_that_was_said_are_named(tmp_path):
    path = write(tmp_path / "a.txt", "text".encode("utf-16") + b"x")
    with pytest.raises(DataError, match=r"a.txt: no utf-16 \(.*\); name the --encoding"):
        b"".join(RawFile(path, encoding="utf-16").chunks())


def test_bytes_that_are_no_utf8_name_the_encoding_to_try(tmp_path):
    place = RawFile(write(tmp_path / "a.txt", "x")).place(1)
    for data, encoding in (("é".encode("latin-1"), "cp1252"), ("é".encode("utf-16"), "utf-16")):
        with pytest.raises(DataError, match=f"no UTF-8 .* --encoding {encoding} does"):
            decode(data, 0, place)
