"""Commands about datasets, where a person types them."""

import numpy as np

from flows.cli import main


def shards(folder):
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        np.arange(50, dtype=np.uint32).tofile(folder / split / "shard_000.bin")
        np.ones(50, np.uint8).tofile(folder / split / "shard_000_mask.bin")
    return str(folder)


def test_who_means_a_mask_of_nothing_but_1_says_so(tmp_path, capsys):
    made, meant = shards(tmp_path / "made"), shards(tmp_path / "meant")
    assert main(["adopt", made, "--tokenization", "byte"]) == 1
    assert "if the corpus has one role, say --expect_single_role" in capsys.readouterr().out
    assert main(["validate", made]) == 1
    assert main(["validate", made, "--expect_single_role"]) == 0
    assert main(["adopt", meant, "--tokenization", "byte", "--expect_single_role"]) == 0


def test_a_folder_of_transformers_that_is_not_there_is_not_taken_for_a_name(tmp_path, capsys):
    raw = tmp_path / "a.txt"
    raw.write_text("text")
    words = ["--input_files", str(raw), "--out_dir", str(tmp_path / "out")]
    assert main(["prepare", *words, "--tokenization", f"hf:{tmp_path}/nothing"]) == 2
    said = capsys.readouterr().err
    assert "expected one with tokenizer.json" in said
    assert "hf download" not in said


def test_a_look_writes_nothing_and_a_dataset_wants_a_folder(tmp_path, capsys):
    raw = tmp_path / "a.txt"
    raw.write_text("31/12/23, 23:59 - Ann: Hi\n31/12/23, 23:59 - Bob: Yo\n")
    assert main(["prepare", "--look", str(raw), "--tokenization", "bpe:300"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "found the speakers Ann (1), Bob (1); choose one by --assistant" in said
    assert (
        main(["prepare", "--look", str(raw), "--assistant", "Bob", "--tokenization", "byte"]) == 0
    )
    assert "a.txt: whatsapp, by how it begins" in capsys.readouterr().out
    assert main(["prepare", "--input_files", str(raw)]) == 2
    assert "--out_dir is missing" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
