"""Headers of GGUF files written by hand: what the package's own reader says, and what lies."""

import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mypt.data.vocabularies.gguf_header import read_header
from mypt.errors import DataError

gguf = pytest.importorskip("gguf", reason="pip install 'mypt[gguf]'")
F32, STRING, ARRAY, U8 = 0, 8, 9, 0
HUGE = 1 << 40


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def many(kind, count, values=b""):
    return struct.pack("<IQ", kind, count) + values


def tensor(name, shape, offset, kind=F32):
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def made(tensors=(), pairs=(), *, body=256, counts=None, start=b"GGUF\x03\0\0\0"):
    n = counts or (len(tensors), len(pairs))
    header = start + struct.pack("<QQ", *n) + b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % 32 + body)


HOSTILE = {
    "size of 2^40": made([tensor("a", (HUGE,), 0)]),
    "sizes that wrap round": made([tensor("a", (1 << 32, 1 << 32), 0)]),
    "no number": made([tensor("a", (8, 0), 0)]),
    "2^32 dimensions": made([text("a") + struct.pack("<I", (1 << 32) - 1)]),
    "offset out of the file": made([tensor("a", (8,), 1 << 20)]),
    "offset beyond 2^63": made([tensor("a", (8,), (1 << 64) - 32)]),
    "overlapping": made([tensor("a", (16,), 0), tensor("b", (16,), 32)]),
    "one twice": made([tensor("a", (8,), 0), tensor("a", (8,), 32)]),
    "type of no number": made([tensor("a", (8,), 0, 999)]),
    "rows that hold no block": made([tensor("a", (8,), 0, 8)]),
    "2^40 tensors": made(counts=(HUGE, 0)),
    "2^40 keys": made(counts=(0, HUGE)),
    "a key of 2^40 bytes": made(pairs=[struct.pack("<Q", HUGE)], counts=(0, 1)),
    "2^40 strings": made(pairs=[pair("a", ARRAY, many(STRING, HUGE))]),
    "2^62 bytes": made(pairs=[pair("a", ARRAY, many(U8, 1 << 62))]),
    "lists of lists": made(pairs=[pair("a", ARRAY, many(ARRAY, 1, many(ARRAY, 1)))]),
    "a kind of value": made(pairs=[pair("a", 77, b"")]),
    "no UTF-8": made(pairs=[pair("a", STRING, struct.pack("<Q", 1) + b"\xff")]),
    "a key twice": made(pairs=[pair("a", U8, b"\1"), pair("a", U8, b"\1")]),
    "alignment 0": made(pairs=[pair("general.alignment", 4, struct.pack("<I", 0))]),
    "alignment of 2^31": made(
        [tensor("a", (8,), 0)], [pair("general.alignment", 4, struct.pack("<I", 1 << 31))]
    ),
    "high byte first": made(start=b"GGUF\0\0\0\x03"),
    "another file": b"PK\3\4" + bytes(64),
    "cut off": made()[:20],
    "empty": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_lies_is_refused_in_one_line_at_once(name, tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(HOSTILE[name])
    before = time.process_time()
    with pytest.raises(DataError, match="no GGUF that can be read: ") as caught:
        read_header(path)
    assert "\n" not in str(caught.value)
    assert time.process_time() - before < 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process's peak")
@pytest.mark.parametrize("unit", [struct.pack("<Q", 0), text("ab")])
def test_a_giant_header_ends_within_ten_seconds_and_a_gigabyte(unit, tmp_path):
    path = tmp_path / "a.gguf"
    strings = unit * 10_000_000
    path.write_bytes(made(pairs=[pair("a", ARRAY, many(STRING, 10_000_000, strings))]))
    program = """
import sys, time
from pathlib import Path
from mypt.data.vocabularies.gguf_header import read_header
try:
    read_header(Path(sys.argv[1]))
except Exception as error:
    print(error)
peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(time.process_time(), int(peak) / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    said, figures = done.stdout.splitlines()
    assert "a header of more than 2,097,152 values" in said
    seconds, gigabytes = map(float, figures.split())
    assert seconds < 10
    assert gigabytes < 1


def test_values_and_places_are_those_of_the_packages_own_reader(tmp_path):
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_array("words", ["a", "\u00e9", ""])
    writer.add_array("numbers", [1, -2, 3])
    values = np.arange(64, dtype=np.float32).reshape(2, 32)
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("plain", values)
    writer.add_tensor("packed", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs, ours = gguf.GGUFReader(path), read_header(path)
    for key, value in ours.values.items():
        expected = theirs.fields[key].contents()
        found = value.tolist() if isinstance(value, np.ndarray) else value
        assert found == (pytest.approx(expected) if isinstance(value, float) else expected), key
    assert ours.values["llama.attention.layer_norm_rms_epsilon"] == 1e-5
    for one in theirs.tensors:
        found = ours.tensors[one.name]
        assert (found.kind, found.shape) == (one.tensor_type.name, tuple(one.shape[::-1].tolist()))
        assert path.read_bytes()[found.start : found.stop] == one.data.tobytes()
