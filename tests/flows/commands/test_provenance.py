"""``mypt lineage`` and ``mypt reproduce``: to the raw bytes and back, on the command line."""

import json
from pathlib import Path

import pytest
import torch

from flows.cli import main
from mypt.config import MaskPolicy, PrepareConfig, Preset, Source
from mypt.data.dataset import prepare
from mypt.training.loop import train
from mypt.training.plan import plan_run
from tests.mypt.conftest import TINY, write_chat


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A raw file and a chat model that was fine-tuned on it; the folder of both."""
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    torch.set_num_threads(1)
    raw = write_chat(tmp_path / "chat.jsonl", 40)
    config = PrepareConfig(sources=(Source(path=str(raw)),), tokenization="byte", val_fraction=0.2)
    data = prepare(config, MaskPolicy(), tmp_path / "runs" / "datasets" / "chat").path
    preset = Preset.model_validate(TINY | {"max_iters": 4})
    list(train(plan_run(preset, "base", data)))
    list(train(plan_run(preset, "chat", data, init_from="base")))
    return tmp_path


@pytest.fixture
def said(capsys):
    """Run a command; return its exit code and what it said on both streams."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


def leaves(link):
    found = [link] if link["kind"] == "file" else []
    return found + [leaf for below in link["links"] for leaf in leaves(below)]


def test_verify_names_the_file_of_which_one_byte_was_changed(world, said):
    code, out, _ = said("lineage", "chat", "--verify")
    assert code == 0
    assert "NOT AS RECORDED" not in out
    raw = world / "chat.jsonl"
    data = bytearray(raw.read_bytes())
    data[len(data) // 2] ^= 1
    raw.write_bytes(data)
    code, out, _ = said("lineage", "chat", "--verify")
    assert code == 1
    assert "chat.jsonl: its bytes changed" in "".join(
        line.strip(" │└├─") for line in out.split("\n")
    )
    code, out, _ = said("lineage", "chat", "--verify", "--json")
    assert code == 1
    assert {line for leaf in leaves(json.loads(out)) for line in leaf["problems"]} == {
        f"{raw}: its bytes changed"
    }
    assert said("lineage", "chat")[0] == 0


def test_the_rows_are_listed_with_how_often_each_was_learned(world, said):
    code, out, _ = said("lineage", "chat", "--rows", "--json")
    assert code == 0
    found = json.loads(out)
    assert {row["training"] for row in found["rows"]} == {"chat step 4", "base step 4"}
    assert {row["file"] for row in found["rows"]} == {str(world / "chat.jsonl")}
    for source in found["sources"]:
        rows = [row for row in found["rows"] if row["training"] == source["training"]]
        assert sum(row["learned"] for row in rows) == source["learned"] > 0
    code, out, _ = said("lineage", "chat", "--rows")
    assert code == 0
    assert sum(line.endswith("(chat step 4, chat.jsonl)") for line in out.splitlines()) == len(rows)


def test_one_row_is_found_by_file_and_line(world, said):
    rows = json.loads(said("lineage", "chat", "--rows", "--json")[1])["rows"]
    wanted = max(
        (row for row in rows if row["training"] == "chat step 4"), key=lambda r: r["times"]
    )
    place = f"{world / 'chat.jsonl'}:{wanted['line']}"
    code, out, _ = said("lineage", "chat", "--row", place, "--json")
    assert code == 0
    assert wanted in json.loads(out)["rows"]
    code, out, _ = said("lineage", "chat", "--row", place)
    assert code == 0
    assert f"{wanted['times']:>7} {wanted['learned']:>9} {wanted['read']:>9}" in out


def test_the_checkpoints_that_saw_a_file_or_a_dataset_are_listed(world, said):
    for what in (world / "chat.jsonl", world / "runs" / "datasets" / "chat"):
        code, out, _ = said("lineage", "--uses", what, "--json")
        assert code == 0
        ways = [(use["name"], tuple(use["through"])) for use in json.loads(out)["uses"]]
        assert ("base step 4", ()) in ways
        assert ("chat step 4", ("base step 4",)) in ways
        n = len([*(world / "runs" / "models").glob("*/step_*")])
        assert f"{n} of {n} checkpoints saw it" in said("lineage", "--uses", what)[1]


def test_the_page_is_written_beside_the_answer(world, said):
    code, out, _ = said("lineage", "chat", "--html", world / "page.html")
    assert (code, out) == (0, f"lineage: {world / 'page.html'}\n")
    page = (world / "page.html").read_text()
    assert (page.count("<details"), page.count("as above")) == (4, 1), "one dataset, two models"
    assert "bytes not checked: add --verify" in page


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("chat", "--uses", "x"),
        ("chat", "--rows", "--verify"),
        ("chat", "--rows", "--row", "a:1"),
        ("chat", "--row", "a"),
    ],
)
def test_questions_that_do_not_go_together_are_wrong_use(world, said, arguments):
    assert (world / "runs").is_dir()
    code, out, err = said("lineage", *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert ("leave the checkpoint and" in err) == ("--uses" in arguments)


def test_an_unknown_row_is_a_finding_in_one_line(world, said):
    code, _, err = said("lineage", "chat", "--row", f"{world / 'nothing.jsonl'}:3")
    assert code == 1
    assert "read such a file; it read chat.jsonl" in err


def test_asking_starts_no_torch(world):
    import subprocess
    import sys

    code = (
        "import sys; from flows.cli import main\n"
        "assert main(['lineage', 'chat', '--rows']) == 0\n"
        "assert main(['lineage', 'chat', '--verify']) == 0\n"
        "sys.exit('torch' in sys.modules or 'prefect' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, cwd=world)
    assert done.returncode == 0, done.stderr
    assert Path(world).is_dir()


def test_reproduce_gives_the_same_bits_and_says_so(world, said):
    code, out, _ = said("reproduce", "chat")
    lines = out.splitlines()
    assert code == 0
    assert [line.split(" ")[:3] for line in lines if line.startswith("same: ")] == [
        ["same:", "dataset", "chat"],
        ["same:", "training", "base,"],
        ["same:", "training", "chat,"],
    ]
    folder = next((world / "runs" / "reproductions").iterdir())
    assert lines[-1] == f"the same bits; made in {folder}"
    code, _, err = said("reproduce", "chat", "--out_dir", folder)
    assert code == 2
    assert "exists; expected a new folder" in err


def test_reproduce_exits_1_and_names_what_differs(world, said):
    raw = world / "chat.jsonl"
    raw.write_text(raw.read_text().replace("say 7", "say 8"))
    code, out, _ = said("reproduce", "chat", "--out_dir", world / "again", "--json")
    assert code == 1
    (stage,) = json.loads(out)["stages"]
    assert stage["outcome"] == "differs"
    assert str(raw) in stage["details"][0]
    code, out, _ = said("reproduce", "chat", "--out_dir", world / "more")
    assert code == 1
    assert f"  {stage['details'][0]}" in out.splitlines()
