"""What must hold, one check a guard; each takes a house, what it needs, and fails by assertion."""

import errno
import os
import signal

from mypt import files
from mypt.training import loop, run
from mypt.training.checkpoints import checkpoint
from tasks.tracking.journal import Journal
from tasks.tracking.records import Metrics, Opened, read
from tests.faults import children, operations
from tests.faults.durability import Ledger
from tests.faults.pipeline import PRETRAIN, finish, plan_pretrain
from tests.faults.test_crashes import crash_and_recover
from tests.faults.test_damage import Subject
from tests.faults.test_kills import Training
from tests.faults.test_numbers import Overflow, Poison
from tests.faults.test_races import race


def is_durable(house, **_):
    def work():
        ledger = Ledger(house.home)
        operations.intercept(ledger.act)
        house.run()
        ledger.check_end()
        return ledger.broken

    assert children.ask(work) == []


def survives_crash_of(kind, ending):
    """Return the check that a crash at the first such operation loses nothing."""

    def check(house, undisturbed, **_):
        def work():
            found = []
            operations.intercept(operations.record(found))
            house.run()
            return [o.number for o in found if o.kind == kind and o.paths[-1].endswith(ending)]

        numbers = children.ask(work)
        house.clear()
        assert numbers, "the operation is not there any more"
        crash_and_recover(house, numbers[0], undisturbed)

    return check


def detects(what, kind, after=None):
    """Return the check that one changed bit of such a file is refused: in its middle, or after
    some words of it, where other parts of the file have checks of their own."""

    def check(made, **_):
        subject = Subject(made, what, kind)
        path = subject.files[0]
        whole = path.read_bytes()
        broken = bytearray(whole)
        at = whole.index(after) if after else len(broken) // 2
        while chr(broken[at]) not in "123456789" and path.suffix == ".json":
            at += 1  # another digit: still JSON
        broken[at] ^= 1
        path.write_bytes(broken)
        try:
            subject.assert_refused(path)
        finally:
            path.write_bytes(whole)

    return check


def builds_once(house, **_):
    def work():
        house.make_datasets()

    for _ in range(8):
        ended = race(work, work, work)
        assert all(ended), [one.message for one in ended]
        house.check_whole()
        house.clear()


def trains_once(house, **_):
    def work():
        finish(plan_pretrain(house.make_datasets()[0]))

    children.run_whole(house.make_datasets)
    for _ in range(8):
        for ended in race(work, work, work):
            assert not ended.code or "is held by another run" in ended.message, ended
        files.remove_folder(house.home / "models/base")


def stops_at_nan(house, dice, **_):
    poison = Poison("nan", "pretrain", dice)
    ended = children.run(lambda: house.run(poison.enter))
    assert ended.message.startswith(f"step {poison.step + 1}: loss nan"), ended.message


def keeps_what_is_finite(house, **_):
    overflow = Overflow("pretrain")
    assert "TrainingError" in children.run(lambda: house.run(overflow.enter)).kind
    for path in house.home.glob("models/*/step_*"):
        weights = checkpoint.load_checkpoint(path).weights.values()
        assert all(tensor.isfinite().all() for tensor in weights)


def saves_when_terminated(house, **_):
    children.run_whole(house.make_datasets)
    training = Training(house, PRETRAIN, "texts")

    def work():
        true_batch = run.Run.batch

        def batch(here, micro):
            if here.state.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return true_batch(here, micro)

        run.Run.batch = batch
        return training.run()

    assert children.run(work).shell_code == 143
    assert training.saved == training.steps == 3


def resumes_bit_for_bit(house, undisturbed, **_):
    def work():
        true_step, done = loop.take_step, []

        def take_step(here):
            done.append(0)
            if len(done) == 6:
                os._exit(137)
            return true_step(here)

        loop.take_step = take_step
        house.run()

    assert children.run(work).code == 137
    children.run_whole(house.run)
    assert house.print_of() == undisturbed


def repeats_no_step(house, **_):
    def work():
        os.environ["MYPT_HOME"] = str(house.home)
        for _ in range(2):
            journal = Journal("twice")
            journal.write(Opened(experiment="demo", title="twice"))
            journal.write(Metrics(step=1, values={"loss": 1.0}))
            journal.end("KILLED")
        return [line.record.step for line in read("twice") if isinstance(line.record, Metrics)]

    assert children.ask(work) == [1]


def names_the_disk(house, **_):
    def work():
        def act(operation, do, _):
            if operation.kind == "fsync" and (house.home / "models/base/run.json").exists():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return do()

        operations.intercept(act)
        house.run()

    ended = children.run(work)
    assert str(house.home) in ended.message, ended.message
