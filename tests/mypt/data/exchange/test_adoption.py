"""Shards made by hand, as the guide's pseudocode makes them, become a dataset or are refused."""

import hashlib

import numpy as np
import pytest

from mypt.config import MaskPolicy
from mypt.data.dataset import mask, open_dataset
from mypt.data.exchange.adoption import adopt
from mypt.data.manifest import METADATA
from mypt.data.tokenizer import load_tokenizer
from mypt.errors import ConfigError, DataError, MaskError
from tests.mypt.data.corpora import tree

CONVERSATION = [
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": "2+2 equals 4."},
    {"role": "user", "content": "What about 3+3?"},
    {"role": "assistant", "content": "3+3 equals 6."},
]


def write_shard(folder, index=0, token_dtype=np.uint32, mask_dtype=np.uint8):
    """Write a shard the way the guide does, line for line."""
    tokenizer = load_tokenizer("byte")
    tokens, masks = [], []
    for message in CONVERSATION:
        content_tokens = tokenizer.encode(message["content"]).tolist()
        tokens.extend(content_tokens)
        masks.extend([int(message["role"] == "assistant")] * len(content_tokens))
    folder.mkdir(parents=True, exist_ok=True)
    np.array(tokens, dtype=token_dtype).tofile(folder / f"shard_{index:03d}.bin")
    np.array(masks, dtype=mask_dtype).tofile(folder / f"shard_{index:03d}_mask.bin")


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 2), ("val", 1)):
        for index in range(count):
            write_shard(tmp_path / "hand" / split, index)
    return tmp_path / "hand"


def refused(folder, error, match):
    """Check that adopting is refused and changes nothing."""
    before = tree(folder)
    with pytest.raises(error, match=match):
        adopt(folder, "byte")
    assert tree(folder) == before


def test_the_guides_shards_become_a_dataset_whose_masks_are_theirs(folder):
    before = tree(folder)
    made = adopt(folder, "byte")
    dataset = open_dataset(folder, digest=made.digest)
    (first, second), (val,) = dataset.shards("train"), dataset.shards("val")
    for shard in (first, second, val):
        learned = np.asarray(shard.tokens)[np.asarray(shard.mask) == 1]
        assert dataset.tokenizer.decode(learned) == "2+2 equals 4.3+3 equals 6."
        assert (shard.spans, shard.rows) == (None, None)
    stats = dataset.manifest.mask.stats
    assert (dataset.manifest.kind, dataset.manifest.mask.policy) == ("chat", None)
    assert (stats.total.tokens, stats.total.supervised) == (3 * 53, 3 * 26)
    assert {name: data for name, data in tree(folder).items() if name in before} == before


def test_the_shards_own_sha256_is_the_root_of_the_lineage(folder):
    adopt(folder, "byte")
    (source,) = open_dataset(folder).manifest.sources
    assert (source.name, source.format, len(source.files)) == ("hand", "shards", 6)
    assert source.files[0].sha256 == hashlib.sha256(
        (folder / "train/shard_000.bin").read_bytes()
    ).hexdigest()  # fmt: skip


def test_where_the_folder_lies_does_not_change_its_digest(folder, tmp_path):
    for split, count in (("train", 2), ("val", 1)):
        for index in range(count):
            write_shard(tmp_path / "elsewhere" / "hand" / split, index)
    assert adopt(folder, "byte").digest == adopt(tmp_path / "elsewhere" / "hand", "byte").digest


def test_the_folder_may_be_the_one_that_one_is_in(folder, monkeypatch):
    monkeypatch.chdir(folder)
    made = adopt(".", "byte")
    assert open_dataset(folder, digest=made.digest).manifest.sources[0].name == "hand"


def test_shards_without_any_mask_are_taken_as_text(folder):
    for path in folder.rglob("*_mask.bin"):
        path.unlink()
    adopt(folder, "byte")
    dataset = open_dataset(folder)
    assert (dataset.manifest.kind, dataset.manifest.mask) == ("text", None)
    assert dataset.shards("train")[0].mask is None


def test_an_empty_val_folder_says_that_there_is_no_validation(folder):
    for path in (folder / "val").iterdir():
        path.unlink()
    adopt(folder, "byte")
    assert open_dataset(folder).manifest.split("val") == ()


@pytest.mark.parametrize(
    ("dtypes", "cause"),
    [
        ({"mask_dtype": np.uint32}, "the mask looks like 32-bit numbers"),
        ({"mask_dtype": np.int64}, "the mask looks like 64-bit numbers"),
        ({"token_dtype": np.uint16}, "the tokens look like 16-bit numbers"),
        ({"token_dtype": np.int64}, "the tokens look like 64-bit numbers"),
        ({"token_dtype": np.int64, "mask_dtype": np.int64}, "or both like 64-bit ones"),
    ],
)
def test_a_wrong_dtype_is_named_with_the_right_one(folder, dtypes, cause):
    write_shard(folder / "train", 1, **dtypes)
    refused(folder, MaskError, rf"shard_001\.bin: .*{cause}.*uint32 and masks as uint8")


def test_ids_of_eight_bytes_are_noticed_without_a_mask_too(folder):
    for path in folder.rglob("*_mask.bin"):
        path.unlink()
    np.arange(1, 9, dtype=np.int64).tofile(folder / "train/shard_001.bin")
    refused(folder, DataError, r"shard_001\.bin: every second id is 0; .* 64-bit .*uint32")


@pytest.mark.parametrize("drop", [1, 2, 3, 40])
def test_a_mask_shorter_than_its_tokens_is_refused(folder, drop):
    path = folder / "train/shard_000_mask.bin"
    path.write_bytes(path.read_bytes()[:-drop])
    refused(folder, MaskError, r"shard_000\.bin: 212 bytes of tokens beside \d+ of mask")


def test_a_mask_that_is_empty_is_refused(folder):
    (folder / "train/shard_000_mask.bin").write_bytes(b"")
    refused(folder, MaskError, "beside 0 of mask")


def test_tokens_that_are_no_whole_number_of_words_are_refused(folder):
    for part in ("", "_mask"):
        (folder / f"val/shard_000{part}.bin").unlink()
    (folder / "val/shard_000.bin").write_bytes(b"1234567")
    refused(folder, DataError, r"val/shard_000\.bin: 7 bytes found, expected 4 for each")


def test_a_weight_in_the_mask_is_refused_with_its_place(folder):
    path = folder / "val/shard_000_mask.bin"
    path.write_bytes(path.read_bytes()[:5] + b"\x02" + path.read_bytes()[6:])
    refused(folder, MaskError, r"val/shard_000_mask\.bin: 2 found at token 5")


def test_masks_that_supervise_nothing_are_refused(folder):
    for path in folder.rglob("*_mask.bin"):
        path.write_bytes(bytes(53))
    refused(folder, MaskError, "no token is supervised")


def test_an_id_outside_the_vocabulary_is_refused(folder):
    tokens = np.fromfile(folder / "val/shard_000.bin", dtype=np.uint32)
    tokens[7] = 70_000
    tokens.tofile(folder / "val/shard_000.bin")
    refused(folder, DataError, r"val/shard_000\.bin: id 70000 found at token 7")


def test_a_shard_without_its_mask_is_named(folder):
    (folder / "train/shard_001_mask.bin").unlink()
    refused(folder, MaskError, r"1 of 3 shards have no mask, such as train/shard_001\.bin")


def test_a_mask_without_its_shard_is_named(folder):
    (folder / "train/shard_001.bin").unlink()
    refused(folder, DataError, r"train/shard_001\.bin: missing")


@pytest.mark.parametrize(
    "name", ["shard_003.bin", "shard_01.bin", "tokens.bin", "shard_000.mask.bin", "0/shard_002.bin"]
)
def test_a_file_that_would_be_left_out_is_refused(folder, name):
    (folder / "train" / name).parent.mkdir(exist_ok=True)
    (folder / "train" / name).write_bytes(b"1234")
    refused(folder, DataError, r"train/\S+: found among \d shards, expected only")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_split_is_refused_with_the_way_out(folder, split):
    for path in (folder / split).iterdir():
        path.unlink()
    (folder / split).rmdir()
    refused(folder, DataError, rf"{split}: no such folder")


def test_a_train_folder_without_shards_is_refused(folder):
    for path in (folder / "train").iterdir():
        path.unlink()
    refused(folder, DataError, r"train: no shard_000\.bin found")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        adopt(tmp_path / "nowhere", "byte")


def test_metadata_that_is_already_there_is_never_overwritten(folder):
    (folder / METADATA).write_text('{"made": "by hand"}')
    refused(folder, ConfigError, "exists and is never overwritten")


def test_a_tokenizer_that_lies_there_is_kept_and_must_be_the_one_that_is_named(folder):
    load_tokenizer("byte", "chatml").write(folder)
    before = (folder / "tokenizer_state.json").read_bytes()
    with pytest.raises(ConfigError, match="tokenizer 'byte' found, --tokenization says 'gpt2'"):
        adopt(folder, "gpt2")
    adopt(folder, "byte")
    assert (folder / "tokenizer_state.json").read_bytes() == before
    assert open_dataset(folder).tokenizer.template.name == "chatml"


def test_shards_made_by_hand_cannot_be_masked_by_a_policy_and_the_reason_is_said(folder, tmp_path):
    adopt(folder, "byte")
    with pytest.raises(MaskError, match="made by hand and has no spans"):
        mask(folder, MaskPolicy(), tmp_path / "masked")
    assert not (tmp_path / "masked").exists()


def with_specials(folder, tokenizer):
    ids = [tokenizer.special_tokens["<|im_start|>"], *b"hi", tokenizer.special_tokens["<|im_end|>"]]
    np.array(ids, np.uint32).tofile(folder / "train" / "shard_000.bin")
    np.array([0, *[1] * (len(ids) - 1)], np.uint8).tofile(folder / "train" / "shard_000_mask.bin")


def test_special_ids_want_the_template_that_wrote_them(folder):
    with_specials(folder, load_tokenizer("byte", "chatml"))
    refused(folder, DataError, r"id 25\d found at token 0, and 1 more special ones; .*--template")
    adopt(folder, "byte", "chatml")
    assert open_dataset(folder).tokenizer.template.name == "chatml"


def test_special_ids_of_a_base_that_the_template_does_not_know_are_refused(folder, tmp_path):
    pytest.importorskip("transformers", reason="pip install 'mypt[dev]'")
    from tests.mypt.data.rendering.bases import CHATML, write_base

    write_base(tmp_path / "base", CHATML)
    name = f"hf:{tmp_path / 'base'}"
    with_specials(folder, load_tokenizer(name, "base"))
    with pytest.raises(DataError, match=r"id \d+, <\|im_start\|>, found at token 0"):
        adopt(folder, name, "mypt")
    adopt(folder, name, "base")
    assert open_dataset(folder).tokenizer.template.name == "base"
