"""About thirty mask bugs, each switched on alone: validation or proof catches every one."""

import shutil

import pytest

from mypt.data.dataset import open_dataset
from mypt.errors import MyptError
from mypt.evaluation.proof.proof import prove_mask
from mypt.inspection.checks import masks
from mypt.inspection.validation import validate
from tests.mypt.clean import CLEAN, everything, pairs, preferences, weights
from tests.mypt.faults import (
    DATASET_FAULTS,
    MASK_FAULTS,
    PAIR_FAULTS,
    WEIGHT_FAULTS,
    moved,
    on_spans,
)
from tests.mypt.loader_faults import FAULTS as LOADER_FAULTS
from tests.mypt.loader_faults import OF_WEIGHTS

DISK_FAULTS = MASK_FAULTS | DATASET_FAULTS


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return everything(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def weighed(tmp_path_factory):
    return weights(tmp_path_factory.mktemp("weighed"))


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def proved(path):
    """Return whether the proof goes through."""
    try:
        return prove_mask(path, rows=32).ok
    except (MyptError, ValueError):
        return False


@pytest.mark.parametrize("make", CLEAN, ids=lambda make: make.__name__)
def test_a_clean_dataset_raises_no_alarm(make, tmp_path):
    path = make(tmp_path)
    report = validate(path)
    assert [str(f) for f in report.findings if f.level in ("error", "warning")] == []
    assert [check.name for check in prove_mask(path).checks if not check.ok] == []


@pytest.mark.parametrize("name", DISK_FAULTS)
def test_validation_catches(name, copy):
    damage, expected = DISK_FAULTS[name]
    damage(copy)
    report = validate(copy)
    assert not report.ok
    assert expected <= report.codes()


@pytest.mark.parametrize("by", [1, -1])
def test_moved_spans_are_caught_where_no_tag_shows_it(by, tmp_path):
    path = pairs(tmp_path)  # its template writes nothing between question and answer
    on_spans(moved(by))(path)
    assert "digest_differs" in validate(path).codes()


@pytest.mark.parametrize("name", MASK_FAULTS)
def test_validation_catches_even_if_the_masking_code_has_the_fault_too(name, copy, monkeypatch):
    damage, expected = MASK_FAULTS[name]
    damage(copy)
    damaged = {
        len(shard.mask): shard.mask
        for split in ("train", "val")
        for shard in open_dataset(copy).shards(split)
    }
    monkeypatch.setattr(masks, "mask_from_spans", lambda _, n_tokens, *__, **___: damaged[n_tokens])
    report = validate(copy)
    assert "mask_differs" not in report.codes()
    assert not report.ok
    assert expected <= report.codes()


@pytest.mark.parametrize("name", MASK_FAULTS)
def test_the_proof_catches_masks_that_break_the_laws(name, copy):
    damage, _ = MASK_FAULTS[name]
    damage(copy)
    assert not proved(copy)


@pytest.mark.parametrize("name", LOADER_FAULTS)
def test_the_proof_catches(name, whole, monkeypatch):
    fault, expected = LOADER_FAULTS[name]
    fault(monkeypatch, open_dataset(whole))
    failed = {check.name for check in prove_mask(whole, rows=32).checks if not check.ok}
    assert expected <= failed | {name.partition(": ")[2] for name in failed}


@pytest.mark.parametrize("name", WEIGHT_FAULTS)
def test_validation_and_proof_catch_in_weights(name, weighed, tmp_path):
    damage, expected = WEIGHT_FAULTS[name]
    folder = shutil.copytree(weighed, tmp_path / "copy")
    damage(folder)
    report = validate(folder)
    assert not report.ok
    assert expected <= report.codes()
    assert not proved(folder)


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_the_proof_catches_in_the_weights_of_a_batch(name, weighed, monkeypatch):
    fault, expected = OF_WEIGHTS[name]
    fault(monkeypatch, open_dataset(weighed))
    failed = {check.name for check in prove_mask(weighed, rows=32).checks if not check.ok}
    assert expected <= failed | {name.partition(": ")[2] for name in failed}


@pytest.mark.parametrize("name", PAIR_FAULTS)
def test_validation_catches_in_preference_pairs(name, tmp_path):
    damage, expected = PAIR_FAULTS[name]
    folder = preferences(tmp_path)
    damage(folder)
    report = validate(folder)
    assert not report.ok
    assert expected <= report.codes()


def test_no_fault_no_alarm(copy):
    assert validate(copy).ok
    assert proved(copy)
