"""A changed bit, a torn file, a file of something else: detected before use, and named."""

import shutil

import pytest

from mypt.config import MaskPolicy
from mypt.data.dataset import mask, open_dataset
from mypt.errors import CheckpointError, DataError, MyptError
from mypt.evaluation.report import evaluate_model
from mypt.home import step_folder
from mypt.inspection.validation import validate
from mypt.provenance.trace import trace
from mypt.training.checkpoints.checkpoint import load_checkpoint
from mypt.training.loop import train
from mypt.training.plan import plan_run
from tests.faults.damage import CHECKPOINT, DATASET, HARMS, SWAPPED, flip, tear
from tests.faults.pipeline import EVALUATE, SFT, TINY

pytestmark = pytest.mark.faults
KINDS = [("dataset", kind) for kind in DATASET] + [("checkpoint", kind) for kind in CHECKPOINT]
STEP = step_folder(TINY["max_iters"])


@pytest.fixture
def put_back():
    """A function that remembers a file's bytes; afterwards they are as they were."""
    kept = {}
    yield lambda path: kept.setdefault(path, path.read_bytes())
    for path, data in kept.items():
        path.write_bytes(data)


class Subject:
    """One kind of file, all files of that kind, and what reads them."""

    def __init__(self, made, what, kind):
        self.kind = kind
        if what == "dataset":
            self.folder = made / "home/datasets/chat"
            self.files = sorted(self.folder.glob(DATASET[kind]))
            digest = open_dataset(self.folder).manifest.digest
            self.read = lambda: open_dataset(self.folder, digest=digest)
            others = [made / "home/datasets/chats/dataset_metadata.json"]
        else:
            self.folder = made / "home/models/chat" / STEP
            self.files = [self.folder / CHECKPOINT[kind]]
            digest = load_checkpoint(self.folder).ref.digest
            self.read = lambda: self._same(load_checkpoint(self.folder), digest)
            others = [made / "home/models/base" / STEP / CHECKPOINT[kind]]
        if kind == "tokenizer":
            others = [made / "tokenizer_state.json"]
        self.others = others

    def strangers(self, path):
        """Return files of this kind with other bytes."""
        found = [*self.files, *self.others]
        return [other for other in found if other.read_bytes() != path.read_bytes()]

    def assert_refused(self, path):
        """Check that the file is named, and not only its folder."""
        with pytest.raises(MyptError) as caught:
            self.read()
        assert len(str(caught.value).splitlines()) == 1
        assert str(path) in str(caught.value)

    @staticmethod
    def _same(checkpoint, digest):
        if checkpoint.ref.digest != digest:
            raise MyptError(f"{checkpoint.path}/lineage.json is another one")


@pytest.mark.row("flip")
@pytest.mark.parametrize(("what", "kind"), KINDS)
@pytest.mark.trials(quick=20, full=200, at_once=200)
def test_a_flipped_bit_is_detected(trials, made, what, kind, dice, row, put_back):
    subject = Subject(made, what, kind)
    for _ in trials:
        path = dice.choice(subject.files)
        whole = put_back(path)
        flip(path, dice)
        with row.trial():
            subject.assert_refused(path)
        path.write_bytes(whole)
    subject.read()


def mask_again(made):
    mask(made / "home/datasets/chat", MaskPolicy(), made / "home/datasets/again")


def train_on_it(made):
    chat, base = made / "home/datasets/chat", made / "home/models/base"
    next(train(plan_run(SFT, "again", chat, init_from=base)))


def validate_it(made):
    report = validate(made / "home/datasets/chat")
    if not report.ok:
        raise DataError("; ".join(str(finding) for finding in report.findings))


def evaluate_on_it(made):
    evaluate_model(made / "home/models/chat" / STEP, made / "home/datasets/chat", EVALUATE)


def train_from_it(made):
    chat, parent = made / "home/datasets/chat", made / "home/models/chat" / STEP
    next(train(plan_run(SFT, "again", chat, init_from=parent)))


def trace_it(made):
    found = trace(made / "home/models/chat" / STEP, verify=True)
    if found.problems:
        raise CheckpointError("; ".join(found.problems))


READERS = {
    "dataset": (mask_again, train_on_it, validate_it, evaluate_on_it),
    "checkpoint": (train_from_it, evaluate_on_it, trace_it),
}


@pytest.mark.row("flip")
@pytest.mark.parametrize(("what", "kind"), KINDS)
def test_no_reader_takes_a_flipped_bit(made, what, kind, dice, row, put_back, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(made / "home"))
    subject = Subject(made, what, kind)
    path = dice.choice(subject.files)
    put_back(path)
    flip(path, dice)
    for read in READERS[what]:
        with row.trial(), pytest.raises(MyptError, match=path.name):
            read(made)
    assert not (made / "home/datasets/again").exists()


def test_the_readers_take_what_is_whole(made, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(made / "home"))
    for read in (*READERS["dataset"], *READERS["checkpoint"]):
        shutil.rmtree(made / "home/models/again", ignore_errors=True)
        read(made)
        shutil.rmtree(made / "home/datasets/again", ignore_errors=True)


@pytest.mark.row("tear")
@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize(("what", "kind"), KINDS)
@pytest.mark.trials(quick=2, full=10, at_once=10)
def test_a_torn_file_is_detected(trials, made, what, kind, harm, dice, row, put_back):
    subject = Subject(made, what, kind)
    for _ in trials:
        path = dice.choice(subject.files)
        whole = put_back(path)
        tear(path, harm, subject.strangers(path), dice)
        with row.trial():
            if (kind, harm) == ("lineage", SWAPPED):  # whole by itself: it does not fit the rest
                with pytest.raises(MyptError, match=str(subject.folder)):
                    subject.read()
            else:
                subject.assert_refused(path)
        path.write_bytes(whole)
    subject.read()
