import pytest

from mypt.errors import MyptError
from mypt.home import lock
from tasks.tracking.journal import Journal, close_if_dead
from tasks.tracking.records import Ended, Metrics, Opened, Tags, flatten, journal_path, names, read


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))


def begun(name="run"):
    journal = Journal(name)
    journal.write(Opened(experiment="demo", title="a run"))
    return journal


def records(name="run"):
    return [line.record for line in read(name)]


def test_what_is_written_is_read_back_in_order():
    journal = begun()
    journal.write(Metrics(step=3, values={"loss": 0.5}))
    journal.write(Tags(values={"a": "b"}))
    journal.end("FINISHED")
    opened, metrics, tags, ended = records()
    assert (opened.title, metrics.step, metrics.values) == ("a run", 3, {"loss": 0.5})
    assert (tags.values, ended.status) == ({"a": "b"}, "FINISHED")


def test_a_resumed_run_repeats_no_step():
    journal = begun()
    for step in range(1, 8):
        journal.write(Metrics(step=step, values={"loss": 1 / step}))
    journal.end("KILLED")
    resumed = begun()
    for step in range(5, 11):  # the checkpoint was of step 4
        resumed.write(Metrics(step=step, values={"loss": 1 / step, "new": 0.0}))
    resumed.end("FINISHED")
    found = [r for r in records() if isinstance(r, Metrics)]
    assert [r.step for r in found if "loss" in r.values] == list(range(1, 11))
    assert [r.step for r in found if "new" in r.values] == list(range(5, 11))


def test_a_figure_that_is_no_number_is_left_out():
    journal = begun()
    journal.write(Metrics(step=1, values={"loss": float("nan"), "rate": 0.1}))
    journal.write(Metrics(step=2, values={"loss": float("inf")}))
    journal.end("FINISHED")
    assert [r.values for r in records() if isinstance(r, Metrics)] == [{"rate": 0.1}]


def test_a_torn_last_line_is_cut_off_and_written_over():
    journal = begun()
    journal.end("KILLED")
    with journal_path("run").open("ab") as file:
        file.write(b'{"kind": "metr')
    assert len(records()) == 2
    begun().end("FINISHED")
    assert [r.kind for r in records()] == ["opened", "ended", "opened", "ended"]


def test_a_damaged_line_is_named():
    begun().end("FINISHED")
    path = journal_path("run")
    path.write_bytes(path.read_bytes().replace(b'"kind":"ended"', b'"kind":"ende\x00"'))
    with pytest.raises(MyptError, match=r"run\.jsonl: the line that ends at byte \d+ is damaged"):
        records()


def test_only_one_process_writes_a_journal(monkeypatch):
    monkeypatch.setattr("tasks.tracking.journal._LOCK_SECONDS", 0.05)
    journal = begun()
    with pytest.raises(MyptError, match="being written by another process"):
        Journal("run")
    journal.end("FINISHED")
    begun().end("FINISHED")


def test_a_dead_writers_journal_is_closed_as_killed():
    journal = begun()
    close_if_dead("run")
    assert not any(isinstance(r, Ended) for r in records()), "its writer lives"
    journal._file.close()  # what the operating system does for a process that dies
    journal._lock.release()
    close_if_dead("run")
    close_if_dead("run")
    assert [r.status for r in records() if isinstance(r, Ended)] == ["KILLED"]


def test_a_live_writer_is_found_by_its_lock():
    with lock("run.writing"):
        journal_path("run").parent.mkdir(parents=True)
        journal_path("run").write_text(
            Opened(experiment="demo", title="t").model_dump_json() + "\n"
        )
        close_if_dead("run")
    assert len(records()) == 1


def test_nested_configs_become_dotted_keys():
    config = {"sft": {"lr": 0.1, "prompts": ["a", "b"]}, "empty": [], "none": None}
    assert flatten(config) == {
        "sft.lr": "0.1",
        "sft.prompts.0": "a",
        "sft.prompts.1": "b",
        "empty": "[]",
        "none": "None",
    }


def test_journals_are_listed_by_name():
    begun("b").end("FINISHED")
    begun("a").end("FINISHED")
    assert names() == ("a", "b")
