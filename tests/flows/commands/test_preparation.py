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


def test_who_names_files_twice_or_nowhere_is_told_by_the_flags_that_were_typed(capsys):
    assert main(["prepare", "--look", "a.jsonl", "--config", "a.json"]) == 2
    assert "--look and --config were given" in capsys.readouterr().err
    assert main(["prepare", "--look", "a.jsonl", "--input_files", "a.jsonl"]) == 2
    assert "--input_files and --look were given" in capsys.readouterr().err
    assert main(["prepare", "--out_dir", "d"]) == 2
    assert "--input_files, --look and --config; none was given" in capsys.readouterr().err


def test_strict_names_all_unread_fields_of_a_row_and_lets_those_be_that_are_named(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    said = [{"role": "user", "content": "a", "mood": "x"}, {"role": "assistant", "content": "b"}]
    path.write_text(json.dumps({"messages": said, "context": "x", "topic": "y"}) + "\n")
    asked = ["prepare", "--input_files", str(path), "--tokenization", "byte", "--val_fraction", "0"]
    asked += ["--out_dir", str(tmp_path / "d"), "--strict"]
    assert main(asked) == 1
    error = capsys.readouterr().err
    for name in ("'mood' of a message", "'context' of the row", "'topic' of the row"):
        assert name in error
    assert main([*asked, "--unread", "mood,topic"]) == 1
    assert "a.jsonl:1: 'context' of the row is not read" in capsys.readouterr().err
    assert main([*asked, "--unread", "mood,topic,context"]) == 0
    (source,) = read_manifest(tmp_path / "d").sources
    assert len(source.notes) == 3
    capsys.readouterr()


def test_strict_refuses_a_field_that_is_not_read_and_tags_may_stay_text(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>b</think>c"}]
    path.write_text((json.dumps({"messages": said, "context": "x"}) + "\n") * 3)
    asked = ["prepare", "--input_files", str(path), "--tokenization", "byte", "--val_fraction", "0"]
    assert main([*asked, "--out_dir", str(tmp_path / "d0"), "--strict"]) == 1
    assert "'context' of the row is not read" in capsys.readouterr().err
    assert main([*asked, "--out_dir", str(tmp_path / "d0"), "--unread", "context"]) == 2
    assert "only where reading is strict" in capsys.readouterr().err
    unread = {"'context' of the row was not read"}
    for number, flags, note in (
        (1, [], {"text between <think> tags read as reasoning"}),
        (
            2,
            ["--reasoning-tags", "none"],
            {f"<{tag}> in the text of the assistant stays text" for tag in ("think", "/think")},
        ),
    ):
        folder = tmp_path / f"d{number}"
        assert main([*asked, "--out_dir", str(folder), *flags]) == 0
        (source,) = read_manifest(folder).sources
        assert {count.reason for count in source.notes} == unread | note
    capsys.readouterr()


def test_a_base_that_no_training_would_take_is_refused_before_anything_is_prepared(
    tmp_path, capsys
):
    path = write_chats(tmp_path / "a.jsonl", chats(3))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "adapter_config.json").write_text("{}")
    words = ["--input_files", str(path), "--tokenization", f"hf:{tmp_path / 'base'}"]
    assert main(["prepare", *words, "--out_dir", str(tmp_path / "d")]) != 0
    assert "a LoRA adapter of another model" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
