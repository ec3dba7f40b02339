"""The flags of ``mypt prepare`` for files of any other layout."""

import json

import pytest

from flows.cli import main
from tests.mypt.data.corpora import texts

SAID = [("ann", "Hi"), ("ann", "there"), ("bob", "Hello"), ("ann", "Bye"), ("bob", "Bye")]


@pytest.fixture
def talk(tmp_path):
    """Chats of two people, one of whom speaks twice in a row."""
    path = tmp_path / "talk.jsonl"
    turns = [
        [{"who": who, "said": {"text": f"{number} {text}"}} for who, text in SAID]
        for number in range(8)
    ]
    path.write_text("\n".join(json.dumps({"meta": {"talk": row}}) for row in turns) + "\n")
    return path


def prepare(talk, *flags):
    out = talk.parent / "dataset"
    command = ["prepare", "--input_files", str(talk), "--out_dir", str(out)]
    where = ["--turns_field", "meta.talk", "--role-field", "who", "--text_field", "said.text"]
    code = main([*command, "--tokenization", "byte", "--format", "mapping", *where, *flags])
    assert code == 0
    return texts(out)["train"]


@pytest.mark.parametrize(
    "roles", [["--role_names", "ann=user,bob=assistant"], ["--by_order"], ["--by-order"]]
)
def test_a_file_of_any_layout_is_read_by_flags_alone(talk, roles):
    (row,) = [text for text in prepare(talk, *roles) if "1 Hi" in text]
    assert row.replace(">\n<", "><") == (
        "<User>1 Hi\n1 there</User><Assistant>1 Hello</Assistant>"
        "<User>1 Bye</User><Assistant>1 Bye</Assistant>"
    )


@pytest.mark.parametrize("between", ["", " / "])
def test_turns_of_one_role_in_a_row_are_joined_with_the_text_that_join_says(talk, between):
    rows = prepare(talk, "--by_order", "--join", between)
    assert any(f"<User>1 Hi{between}1 there</User>" in text for text in rows)


def test_flags_of_a_mapping_are_refused_with_another_format(talk, capsys):
    out = talk.parent / "dataset"
    command = ["prepare", "--input_files", str(talk), "--out_dir", str(out), "--by_order"]
    assert main(command) == 2
    assert "--by_order: expected only together with --format mapping" in capsys.readouterr().err
    assert not out.exists()


def test_speakers_without_a_role_are_refused_with_both_ways_out(talk, capsys):
    out = talk.parent / "dataset"
    command = ["prepare", "--input_files", str(talk), "--out_dir", str(out), "--format", "mapping"]
    where = ["--turns_field", "meta.talk", "--role_field", "who", "--text_field", "said.text"]
    assert main(command + where) == 1
    (line,) = capsys.readouterr().err.splitlines()
    for said in ("unknown role 'ann'", "what each name means", "by_order"):
        assert said in line
