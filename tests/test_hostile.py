"""Folders from elsewhere that lie: each command answers in a line, soon, and opens only files."""

import json
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from flows.cli import main
from mypt import files
from mypt.data.manifest import Manifest
from mypt.home import models_dir
from tests.test_attacks import TINY

SECONDS = 10
KILOBYTES = 1 << 20
RESERVED = 1 << 20
"""What a process has asked for before and not touched may fill up besides."""
TRAIN = "train --config_file tiny.json --model_name {} --dataset_dir d"
OF_MODEL = [
    "lineage m --verify", "lineage m --rows", "generate m --prompt hi --max_tokens 2", "list",
    "reproduce m", "evaluate m", "plan tiny.json", TRAIN.format("n") + " --init_from_model m",
]  # fmt: skip
OF_DATA = [
    "validate d", "show d", "show d --html d.html", "mask d --out_dir e --policy user",
    "diff d d", "export d --to parquet p", "lineage --uses d", TRAIN.format("n"),
]  # fmt: skip


@pytest.fixture(scope="module")
def _made(tmp_path_factory):
    """A dataset and a model that was trained on it."""
    place = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPT_HOME", str(place / "runs"))
        patch.chdir(place)
        rows = [
            json.dumps({"role": role, "content": f"{text} {n}"}) + "\n" + "\n" * (role != "user")
            for n in range(30)
            for role, text in (("user", "What is"), ("assistant", "It is"))
        ]
        Path("chats.jsonl").write_text("".join(rows))
        Path("tiny.json").write_text(TINY.model_dump_json())
        assert (
            main(
                [
                    "prepare",
                    "--input_files",
                    "chats.jsonl",
                    "--out_dir",
                    "d",
                    "--tokenization",
                    "byte",
                ]
            )
            == 0
        )
        assert main(TRAIN.format("m").split()) == 0
    return place


@pytest.fixture
def step(_made, tmp_path, monkeypatch):
    """The model's step folder, in a place that may be spoilt."""
    place = shutil.copytree(_made, tmp_path / "place")
    monkeypatch.setenv("MYPT_HOME", str(place / "runs"))
    monkeypatch.chdir(place)
    os.mkfifo("pipe")
    (found,) = (models_dir() / "m").glob("step_*")
    return found


def answer(capsys, command):
    """Run a command within the limits; return its code and what it said."""

    def late(*_):
        pytest.fail(f"{command}: no answer in {SECONDS} seconds")

    capsys.readouterr()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        code = main(command.split())
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < KILOBYTES + RESERVED
    said, wrong = capsys.readouterr()
    assert len(wrong.splitlines()) <= 1 or code == 0, wrong
    assert "Traceback" not in said + wrong
    return code, said + wrong


def forge(folder, **changes):
    """Write a lineage with a digest that fits; return that."""
    values = json.loads((folder / "lineage.json").read_bytes())
    del values["digest"]
    return files.write_sealed(folder / "lineage.json", values | changes)


@pytest.mark.parametrize(
    "path", ["/dev/zero", "{}/pipe", "../../../etc/passwd", "/", "a" * 5000, "x\0y", "**/*"]
)
def test_a_lineage_may_name_any_path(step, capsys, path):
    path = path.format(Path.cwd())
    data = json.loads((step / "lineage.json").read_bytes())["dataset"]
    (source,), (asked,) = data["sources"], data["making"]["config"]["sources"]
    data["path"] = asked["path"] = source["files"][0]["path"] = path
    forge(step, dataset=data)
    for command in OF_MODEL[:5]:
        code, said = answer(capsys, command)
        assert "root:" not in said
        assert code in (0, 1)
    assert answer(capsys, "lineage m --verify")[0] == 1


@pytest.mark.parametrize("name", [
    "lineage.json", "config.json", "trainer_state.json", "tokenizer_state.json",
    "model.safetensors",
])  # fmt: skip
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
def test_a_file_of_a_checkpoint_that_never_ends_is_not_read(step, capsys, name, kind):
    (step / name).unlink()
    (step / name).symlink_to(Path(kind).absolute())
    for command in OF_MODEL:
        code, said = answer(capsys, command)
        assert code == 0 or name in said, (command, said)
    assert answer(capsys, OF_MODEL[0])[0] == 1


@pytest.mark.parametrize("name", [
    "dataset_metadata.json", "tokenizer_state.json", "train/shard_000.bin",
    "train/shard_000_mask.bin", "train/shard_000_spans.npy", "val/shard_000_rows.npy",
])  # fmt: skip
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
def test_a_file_of_a_dataset_that_never_ends_is_not_read(step, capsys, name, kind):
    assert step.is_dir()
    (Path("d") / name).unlink()
    (Path("d") / name).symlink_to(Path(kind).absolute())
    for command in OF_DATA:
        code, said = answer(capsys, command)
        assert code in (1, 2) or command.startswith("lineage"), (command, said)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/dev/zero", "{}/pipe"])
def test_metadata_may_name_no_file_of_another_folder(step, capsys, name):
    assert step.is_dir()
    path = Path("d/dataset_metadata.json")
    values = json.loads(path.read_bytes())
    for part in ("tokens", "spans", "mask"):
        values["shards"][0][part]["name"] = name.format(Path.cwd())
    files.write_json(path, Manifest.model_validate(values).sealed().model_dump(mode="json"))
    for command in OF_DATA:
        code, said = answer(capsys, command)
        assert "root:" not in said
        assert code in (1, 2) or command.startswith("lineage"), (command, said)


def test_a_file_in_a_file_400_times_is_refused_before_it_is_walked_down(step, capsys):
    own = json.loads((step / "lineage.json").read_bytes())
    del own["digest"]
    values, parent = own, {"model_name": "m", "step": 2, "digest": "0" * 64, "weights": "0" * 64}
    for number in range(400):
        values = own | {"parent": parent | {"path": f"/nowhere/{number}", "lineage": values}}
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    data = json.dumps(values).encode()
    sys.setrecursionlimit(limit)
    (step / "lineage.json").write_bytes(data)
    for command in OF_MODEL:
        code, said = answer(capsys, command)
        assert (code == 0) == (command == "plan tiny.json"), said
        assert "nested too deeply" in said or code == 0


def test_a_chain_of_400_parents_is_refused(step, capsys):
    parent = None
    for number in range(400):
        place = shutil.copytree(step, models_dir() / f"c{number}" / step.name)
        (place.parent / "latest").write_text(f"{step.name}\n")
        digest = forge(place, model_name=f"c{number}", parent=parent)
        parent = {"model_name": f"c{number}", "step": 2, "digest": digest, "weights": "0" * 64,
                  "path": str(place), "lineage": None}  # fmt: skip
    for command in ("lineage c399 --verify", "lineage c399 --rows", "reproduce c399"):
        code, said = answer(capsys, command)
        assert code == 1
        assert "a chain of more than 64 parents" in said
    assert answer(capsys, "list")[0] == 0
    assert answer(capsys, "generate c399 --prompt hi --max_tokens 2")[0] == 0


def test_a_config_of_200_billion_parameters_takes_no_memory(step, capsys):
    values = json.loads((step / "config.json").read_bytes())
    values |= {"n_layer": 1000, "n_embd": 4096, "n_head": 32}
    files.write_json(step / "config.json", values)
    own = json.loads((step / "lineage.json").read_bytes())
    for record in own["files"]:
        path = step / record["name"]
        record |= {"size": path.stat().st_size, "digest": files.digest_file(path)}
    forge(step, config=values, files=own["files"])
    for command in (*OF_MODEL, "export m --to hf x", "plan tiny.json --init_from_model m"):
        answer(capsys, command)


def test_doubled_keys_and_long_configs_take_no_long(step, capsys):
    assert step.is_dir()
    keys = ",".join(f'"k{n}": 1' for n in range(200_000))
    Path("keys.jsonl").write_text(f'{{{keys}, "k7": 2}}\n' * 2)
    keys = keys[: 1 << 18].rpartition(",")[0]
    Path("keys.json").write_text(f"{{{keys}}}")
    code, said = answer(capsys, "prepare --input_files keys.jsonl --out_dir x --tokenization byte")
    assert code == 1
    assert "'k7' stands twice" in said
    assert "unknown key 'k0'" in answer(capsys, "plan keys.json")[1]
    Path("keys.json").write_text(f"{{// a comment\n{keys}}}")
    assert "comments may stand in" in answer(capsys, "plan keys.json")[1]


def test_a_tokenizer_that_never_ends_is_not_waited_for(step, capsys):
    assert step.is_dir()
    for name in ("tokenizer.json", "tokenizer_state.json"):
        Path("t").mkdir(exist_ok=True)
        os.mkfifo(f"t/{name}")
    for tokenization in ("hf:t", "t/tokenizer_state.json", "t"):
        begun = time.monotonic()
        command = f"prepare --input_files chats.jsonl --out_dir x --tokenization {tokenization}"
        assert answer(capsys, command)[0] in (1, 2)
        assert time.monotonic() - begun < SECONDS


def repeated(value, n):
    """Return a column of one value, ``n`` times; in a Parquet file it takes a few bytes."""
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), pa.array([value]))


@pytest.mark.parametrize("column", ["text", "messages", "ids"])
def test_a_table_that_unpacks_without_end_is_refused(step, capsys, monkeypatch, column):
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet

    from mypt.data.reading import tables

    assert step.is_dir()
    monkeypatch.setattr(tables, "_MOST_MEMORY", 1 << 27)
    contents = repeated("y" * (1 << 20), 100_000)
    roles = pa.array(["user"] * 100_000)
    message = pa.StructArray.from_arrays([roles, contents], ["role", "content"])
    ids = pa.array(np.full(40_000_000, 7, np.int32))
    made = {
        "text": contents,
        "messages": pa.ListArray.from_arrays(
            pa.array(range(0, 100_001, 1000), pa.int32()), message
        ),
        "ids": pa.ListArray.from_arrays(pa.array([0, len(ids)], pa.int32()), ids),
    }[column]
    table = {"text": {"text": made}, "messages": {"messages": made}}
    table["ids"] = {"input_ids": made, "labels": made}
    Path("t").mkdir()
    path = Path("t/train.parquet")
    parquet.write_table(pa.table(table[column]), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 10_000
    command = f"prepare --input_files {path} --out_dir x --tokenization byte"
    if column == "ids":
        command = "adopt t --out_dir x --tokenization byte"
    code, said = answer(capsys, command)
    assert code == 1
    assert "unpack to more than" in said
    assert not Path("x").exists()
