"""Whoever changes a signed model, or anything that it was made from, cannot sign it again."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import main
from mypt import files
from mypt.home import models_dir
from tests.mypt.provenance.keys import key_pair
from tests.test_hostile import TRAIN, _made, forge, step  # noqa: F401

pytest.importorskip("securesystemslib")
SIGN, VERIFY = "sign {} --key ann.pem", "verify {} --key ann.pub"


@pytest.fixture
def signed(step):  # noqa: F811
    """The step folder of a model on top of another, both signed, beside its signer's keys."""
    assert main(f"{TRAIN.format('n')} --init_from_model m".split()) == 0
    for number, name in enumerate(("ann", "bob")):
        for end, pem in zip(("pem", "pub"), key_pair(number), strict=True):
            Path(f"{name}.{end}").write_bytes(pem)
    assert main(SIGN.format("n").split()) == 0
    assert main(SIGN.format("d").split()) == 0
    (found,) = (models_dir() / "n").glob("step_*")
    assert step.is_dir()
    return found


def said(capsys, command, code):
    capsys.readouterr()
    assert main(command.split()) == code
    out, wrong = capsys.readouterr()
    assert len(wrong.splitlines()) == (code != 0)
    return out + wrong


def test_what_is_as_it_was_signed_is_believed(signed, capsys):
    for what in ("n", str(signed), "d"):
        assert "every byte that is here as it was signed" in said(capsys, VERIFY.format(what), 0)
    assert main(["lineage", "n", "--verify"]) == 0, "a signature is no stranger among the files"


def test_a_folder_that_came_alone_says_what_was_not_hashed(signed, capsys, tmp_path, monkeypatch):
    shutil.copytree(signed, tmp_path / "got" / signed.name)
    shutil.copy("ann.pub", tmp_path / "got")
    shutil.rmtree(Path.cwd())
    monkeypatch.chdir(tmp_path / "got")
    found = said(capsys, VERIFY.format(signed.name), 0)
    assert "every byte that is here" in found
    assert "not here, so not hashed" in found


@pytest.mark.parametrize("target", [
    "n/{}/model.safetensors", "n/{}/lineage.json", "m/{}/model.safetensors", "m/{}/lineage.json",
    "d/train/shard_000.bin", "d/dataset_metadata.json",
])  # fmt: skip
def test_a_changed_byte_anywhere_in_the_chain_is_not_believed(signed, capsys, target):
    path = Path(target.format(signed.name))
    path = path if path.exists() else models_dir() / path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    gone = target in ("m/{}/lineage.json", "d/dataset_metadata.json")  # then it is no such thing
    found = said(capsys, VERIFY.format("n"), 0 if gone else 1)
    assert ("not here, so not hashed" if gone else path.name) in found


def test_a_changed_raw_file_is_not_believed(signed, capsys):
    dataset = json.loads((signed / "lineage.json").read_bytes())["dataset"]
    places = {Path("chats.jsonl"), Path(dataset["sources"][0]["files"][0]["path"])}
    kept = {path: path.read_bytes() for path in places}
    for path in places:
        path.write_bytes(kept[path].replace(b"What", b"That", 1))
    try:
        assert "chats.jsonl: its bytes changed" in said(capsys, VERIFY.format("n"), 1)
    finally:
        for path in places:
            path.write_bytes(kept[path])


def test_who_recomputes_the_digests_is_not_believed(signed, capsys):
    path = signed / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    records = json.loads((signed / "lineage.json").read_bytes())["files"]
    for record in records:
        record["digest"] = files.digest_file(signed / record["name"])
    forge(signed, files=records)
    assert main(["lineage", "n", "--verify"]) == 0, "nothing else notices"
    assert "signs other bytes" in said(capsys, VERIFY.format("n"), 1)
    assert "signs other bytes" in said(capsys, "sign n --key bob.pem", 1)


def test_only_the_signers_key_is_taken_and_several_may_sign(signed, capsys):
    assert "not signed with the key of bob.pub" in said(capsys, "verify n --key bob.pub", 1)
    assert main(["sign", "n", "--key", "bob.pem"]) == 0
    for name in ("ann", "bob"):
        said(capsys, f"verify n --key {name}.pub", 0)
    assert len(json.loads((signed / "attestation.intoto.jsonl").read_bytes())["signatures"]) == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 10_000, '{"payload": 1}', "\xff", None])
def test_what_is_no_signature_is_one_line(signed, capsys, text):
    path = signed / "attestation.intoto.jsonl"
    path.unlink()
    if text is None:
        path.symlink_to("/dev/zero")
    else:
        path.write_text(text)
    assert "no DSSE envelope" in said(capsys, VERIFY.format("n"), 1)


def test_nothing_is_signed_that_is_not_whole_nor_with_what_is_no_key(signed, capsys):
    assert "no private key" in said(capsys, "sign m --key ann.pub", 2)
    assert "no public key" in said(capsys, "verify n --key ann.pem", 2)
    assert "no private key" in said(capsys, "sign m --key nowhere", 2)
    assert "nobody has signed" in said(capsys, VERIFY.format("m"), 2)
    (signed / "config.json").unlink()
    assert "config.json: missing" in said(capsys, SIGN.format("n"), 1)


@pytest.mark.usefixtures("signed")
@pytest.mark.parametrize("command", ["sign", "verify"])
def test_without_the_library_it_says_what_to_install(capsys, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "securesystemslib", None)
    for name in ("dsse", "signer", "exceptions"):
        monkeypatch.setitem(sys.modules, f"securesystemslib.{name}", None)
    assert main([command, "m", "--key", "a.pem" if command == "sign" else "a.pub"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pip install securesystemslib" in said


@pytest.mark.skipif(shutil.which("openssl") is None, reason="another program checks")
def test_another_program_can_check_the_signature(signed):
    envelope = json.loads((signed / "attestation.intoto.jsonl").read_bytes())
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    Path("said").write_bytes(f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload)
    Path("sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    words = "openssl pkeyutl -verify -pubin -inkey ann.pub -rawin -in said -sigfile sig"
    assert subprocess.run(words.split(), capture_output=True, check=False).returncode == 0
    (subject,) = json.loads(payload)["subject"]
    assert subject["digest"]["sha256"] == files.sha256_file(signed / subject["name"])
