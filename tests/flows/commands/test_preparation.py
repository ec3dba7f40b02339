"""Who prepares is a word on the command line, or a block of the config; the dataset is the same."""

import json

from flows.cli import main
from mypt.data.manifest import read_manifest
from mypt.data.preparation import parallel as crew
from mypt.data.reading import portions
from tests.mypt.data.corpora import chats, write_chats


def test_flags_and_a_block_choose_who_prepares_and_not_what(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(crew, "_WORTH_PROCESSES", 0)
    monkeypatch.setattr(portions, "PORTION_BYTES", 5_000)
    path = write_chats(tmp_path / "a.jsonl", chats(100))
    block = {"engine": "process", "workers": 1}
    config = tmp_path / "data.json"
    config.write_text(
        json.dumps({"sources": [{"path": str(path)}], "tokenization": "byte", "preparation": block})
    )
    used = []
    mapped = crew.map_portions
    monkeypatch.setattr(crew, "map_portions", lambda *a: used.append(a[2]) or mapped(*a))
    ways = [
        ["--input_files", str(path), "--tokenization", "byte", "--engine", "serial"],
        ["--input_files", str(path), "--tokenization", "byte", "--workers", "2"],
        ["--config", str(config)],
        ["--config", str(config), "--workers", "2"],
    ]
    digests = set()
    for number, way in enumerate(ways):
        assert main(["prepare", *way, "--out_dir", str(tmp_path / f"d{number}")]) == 0
        digests.add(read_manifest(tmp_path / f"d{number}").digest)
    assert len(digests) == 1
    assert [one.workers for one in used] == [2, 1, 2]
    capsys.readouterr()


def test_an_address_without_dask_is_wrong_use(tmp_path, capsys):
    path = write_chats(tmp_path / "a.jsonl", chats(3))
    words = ["prepare", "--input_files", str(path), "--out_dir", str(tmp_path / "d")]
    assert main([*words, "--address", "tcp://127.0.0.1:1"]) == 2
    assert "expected dask" in capsys.readouterr().err
