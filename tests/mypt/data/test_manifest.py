"""The metadata shows any change of itself and of the files it lists."""

import json
import random

import pytest

from mypt import files
from mypt.config import MaskPolicy
from mypt.data.dataset import prepare
from mypt.data.manifest import METADATA, MaskStats, read_manifest, verify_files, write_manifest
from mypt.data.spans import ROLES
from mypt.errors import ManifestError
from tests.mypt.data.corpora import chats, config, write_chats


@pytest.fixture
def folder(tmp_path):
    path = write_chats(tmp_path / "chat.jsonl", chats(20))
    prepare(config(path), MaskPolicy(), tmp_path / "d")
    return tmp_path / "d"


def test_a_flipped_bit_anywhere_in_the_metadata_is_noticed(folder):
    path = folder / METADATA
    whole = path.read_bytes()
    rng = random.Random(0)
    places = [rng.randrange(len(whole)) for _ in range(150)]
    places += range(whole.index(b'"path"'), whole.index(b'"size"', whole.index(b'"path"')))
    for at in places:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        with pytest.raises(ManifestError, match=METADATA):
            read_manifest(folder)
    path.write_bytes(whole)
    read_manifest(folder)


@pytest.mark.parametrize("keep", [0, 1, 0.5, 0.99])
def test_cut_metadata_is_noticed(folder, keep):
    path = folder / METADATA
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else 1])
    with pytest.raises(ManifestError, match=METADATA):
        read_manifest(folder)


def test_where_the_sources_lay_is_kept_and_is_not_in_the_digest(folder):
    manifest = read_manifest(folder)
    (source,) = manifest.sources
    moved = source.files[0].model_copy(update={"path": "/elsewhere/chat.jsonl"})
    update = {"sources": (source.model_copy(update={"files": (moved,)}),)}
    assert write_manifest(folder, manifest.model_copy(update=update)).digest == manifest.digest
    assert read_manifest(folder).sources[0].files[0].path == "/elsewhere/chat.jsonl"


def test_every_other_value_is_in_the_digest(folder):
    manifest = read_manifest(folder)
    for field, value in (
        ("kind", "text"), ("n_vocab", 1), ("template", "t"), ("parent", "p"), ("recipe", "r"),
        ("shards", ()), ("mask", None), ("tokenizer_name", "n"), ("sources", ()),
    ):  # fmt: skip
        assert manifest.model_copy(update={field: value}).compute_digest() != manifest.digest


def test_another_version_is_refused_by_number(folder):
    write_manifest(folder, read_manifest(folder).model_copy(update={"version": 99}))
    with pytest.raises(ManifestError, match="version 99, this mypt reads 1"):
        read_manifest(folder)


def test_a_missing_short_or_changed_file_is_named(folder):
    manifest = read_manifest(folder)
    for record in manifest.files():
        path = folder / record.name
        whole = path.read_bytes()
        name = path.name.replace(".", r"\.")
        path.unlink()
        with pytest.raises(ManifestError, match=rf"{name}: missing"):
            verify_files(folder, manifest)
        path.write_bytes(whole + b"\0")
        with pytest.raises(ManifestError, match=rf"{name}: {len(whole) + 1} bytes found"):
            verify_files(folder, manifest)
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(ManifestError, match=rf"{name}: its bytes changed"):
            verify_files(folder, manifest)
        path.write_bytes(whole)
    verify_files(folder, manifest)


def test_metadata_from_before_the_making_was_kept_is_still_read(folder):
    manifest = read_manifest(folder)
    old = manifest.model_copy(update={"making": None}).sealed()
    values = old.model_dump(mode="json", exclude={"making"})
    values["seal"] = files.digest_json({k: v for k, v in values.items() if k != "seal"})
    files.write_json(folder / METADATA, values)
    assert read_manifest(folder) == old
    assert old.digest == manifest.digest


def test_the_making_names_paths_and_is_sealed_but_not_in_the_digest(folder):
    manifest = read_manifest(folder)
    assert manifest.making.policies == (MaskPolicy(),)
    (source,) = manifest.making.config.sources
    assert source.path.endswith("chat.jsonl")
    other = manifest.making.model_copy(update={"policies": (None,)})
    changed = manifest.model_copy(update={"making": other})
    assert changed.compute_digest() == manifest.digest
    assert changed.sealed().seal != manifest.seal


def test_metadata_of_before_a_knob_existed_are_sound(folder):
    values = json.loads((folder / METADATA).read_text())
    del values["making"]["config"]["sources"][0]["strict"]
    values["seal"] = files.digest_json({k: v for k, v in values.items() if k != "seal"})
    files.write_json(folder / METADATA, values)
    assert read_manifest(folder).making.config.sources[0].strict is False


def test_roles_stand_in_one_order_whatever_was_met_or_written_first(folder):
    stats = read_manifest(folder).mask.stats
    values = stats.model_dump()
    turned = values | {"by_role": dict(reversed(values["by_role"].items()))}
    for found in (stats, MaskStats.model_validate(turned)):
        assert list(found.by_role) == [role for role in ROLES if role in found.by_role]
        assert len(found.by_role) > 1
