import base64
import errno
import json
import logging
import pickle
import re
import threading
from io import StringIO
from itertools import count
from typing import ClassVar

import pytest
from prefect import flow, get_run_logger
from prefect.client.schemas.objects import StateType
from prefect.filesystems import LocalFileSystem
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.settings import (
    PREFECT_DEFAULT_RESULT_STORAGE_BLOCK,
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_RESULTS_PERSIST_BY_DEFAULT,
    temporary_settings,
)
from prefect.states import State

from mypt import files
from mypt.errors import DataError, TrainingError
from tasks import stages
from tasks.reporting import artifacts
from tasks.stages import Output, _may_pass, is_present, make_room, stage, tell
from tasks.tracking.recording import recorded, reused_everything
from tasks.tracking.records import journals_dir


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "home"))


class Trap:
    """Runs when it is unpickled."""

    sprung: ClassVar[list] = []

    def __reduce__(self):
        return spring, ()


def spring():
    Trap.sprung.append(True)


def whole(path):
    if path.read_text() != "whole":
        raise ValueError("changed")


def make_stage(folder, failures=(), read=lambda: None):
    """Return a stage that writes what it has read into one file, and the list of its calls."""
    calls = []
    failing = list(failures)

    @stage("write {what} {name}", whole)
    def write(name: str, what: str = "file") -> Output[str]:
        found = read()

        def make():
            calls.append(found or what)
            if failing:
                raise failing.pop(0)
            (folder / name).write_text("whole")
            return name

        return Output(folder / name, f"write-{name}", make)

    return write, calls


def run(task, *args, times=1):
    """Run a task in a flow; return the names of its task runs' states."""

    @flow(persist_result=False)
    def one():
        return [task(*args, return_state=True) for _ in range(times)]

    return [state.name for state in one()]


@pytest.mark.usefixtures("prefect")
class TestUnderPrefect:
    def test_a_terminal_that_has_prefects_log_shows_each_line_once(self, capsys):
        @flow
        def one():
            tell("a line of ours")
            get_run_logger().info("a line of another")

        log = PrefectConsoleHandler(StringIO())
        logging.getLogger().addHandler(log)
        try:
            one()
        finally:
            logging.getLogger().removeHandler(log)
        assert capsys.readouterr().out.splitlines() == ["a line of ours"]
        assert "a line of another" in log.stream.getvalue()
        assert "a line of ours" not in log.stream.getvalue()

    def test_an_equal_call_is_cached_while_its_output_is_whole(self, tmp_path):
        write, calls = make_stage(tmp_path)
        assert run(write, "a", times=2) == ["Completed", "Cached"]
        assert run(write, "a") == ["Cached"]
        assert run(write, "b") == ["Completed"]
        assert len(calls) == 2

    @pytest.mark.parametrize("harm", [lambda p: p.unlink(), lambda p: p.write_text("changed")])
    def test_a_harmed_output_is_made_again_once(self, tmp_path, harm):
        write, calls = make_stage(tmp_path)
        run(write, "a")
        harm(tmp_path / "a")
        assert run(write, "a", times=2) == ["Completed", "Cached"]
        assert len(calls) == 2

    @pytest.mark.usefixtures("own_home")
    def test_a_run_knows_that_all_was_made_before_whatever_prefect_remembers(self, tmp_path):
        @stage("write {name}", whole)
        def write(name: str) -> Output:
            def make():
                with recorded(f"write-{name}", f"write {name}"):
                    (tmp_path / name).write_text("whole")
                return name

            return Output(tmp_path / name, f"write-{name}", make)

        @flow
        def one(number):
            with recorded(f"pipe-{number}", "pipe"):
                write("a")
                return reused_everything()

        assert [one(1), one(2)] == [False, True]
        for result in journals_dir().glob("write-a-*.result.json"):
            result.unlink()
        assert one(3)
        (tmp_path / "a").unlink()
        assert not one(4)

    @pytest.mark.parametrize("kept", [b"7", b"[]", b'{"result": 7}', "pickled", "sealed"])
    def test_a_kept_result_of_another_type_is_made_again_and_nothing_in_it_runs(
        self, tmp_path, kept
    ):
        write, calls = make_stage(tmp_path)
        run(write, "a")
        (result,) = journals_dir().glob("write-a-*.result.json")
        if kept == "sealed":
            files.write_sealed(result, {"result": {"path": 7}})
        else:
            trap = base64.encodebytes(pickle.dumps(Trap())).decode()
            record = {"metadata": {"serializer": {"type": "pickle"}}, "result": trap}
            result.write_bytes(json.dumps(record).encode() if kept == "pickled" else kept)
        assert run(write, "a", times=2) == ["Completed", "Cached"]
        assert len(calls) == 2
        assert not Trap.sprung

    def test_prefects_own_store_of_results_is_neither_filled_nor_read(self, tmp_path):
        store = tmp_path / "store"
        kept = {PREFECT_LOCAL_STORAGE_PATH: store, PREFECT_RESULTS_PERSIST_BY_DEFAULT: True}
        with temporary_settings(kept):
            write, _ = make_stage(tmp_path)
            run(write, "a", times=2)
        assert not store.exists()

    def test_a_missing_output_is_made_again_where_results_lie_in_a_storage_block(self, tmp_path):
        block = LocalFileSystem(basepath=str(tmp_path / "block"))
        block.save("mypt-results", overwrite=True)
        named = {PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: "local-file-system/mypt-results"}
        with temporary_settings(named | {PREFECT_RESULTS_PERSIST_BY_DEFAULT: True}):
            write, calls = make_stage(tmp_path)
            assert run(write, "a", times=2) == ["Completed", "Cached"]
            (tmp_path / "a").unlink()
            assert run(write, "a", times=2) == ["Completed", "Cached"]
        assert len(calls) == 2
        assert not (tmp_path / "block").exists()

    def test_a_reused_stage_shows_what_it_showed_and_says_when_and_by_which_run(
        self, tmp_path, monkeypatch
    ):
        told, shown = [], []
        monkeypatch.setattr(stages, "log", told.append)
        monkeypatch.setattr(
            artifacts, "create_table_artifact", lambda rows, **about: shown.append((rows, about))
        )
        monkeypatch.setattr(
            artifacts, "create_markdown_artifact", lambda text, **about: shown.append((text, about))
        )

        @stage("write {name}", whole)
        def write(name: str) -> Output[str]:
            def make():
                artifacts.show(artifacts.Shown(key="t", description="Rows.", rows=({"a": 1.5},)))
                artifacts.show(artifacts.Shown(key="m", description="Text.", text="**bold**"))
                (tmp_path / name).write_text("whole")
                return name

            return Output(tmp_path / name, f"write-{name}", make)

        @flow(persist_result=False)
        def one():
            write("a")

        for name in ("first-one", "second", "third"):
            one.with_options(flow_run_name=name)()
        made, again, once_more = shown[:2], shown[2:4], shown[4:]
        assert [(what, about["key"]) for what, about in made] == [
            ([{"a": 1.5}], "t"),
            ("**bold**", "m"),
        ]
        assert [(what, about["key"]) for what, about in again] == [
            (what, about["key"]) for what, about in made
        ]
        assert once_more == again
        by = r"Reused, made \d{4}-\d\d-\d\d \d\d:\d\d UTC by flow run \[first-one\]"
        link = r"\(/runs/flow-run/[0-9a-f-]{36}\)\. "
        for (_, before), (_, about) in zip(made, again, strict=True):
            said = about["description"]
            assert re.fullmatch(by + link + re.escape(before["description"]), said)
        assert [
            re.sub(r"made .* UTC", "made at a time", line) for line in told if "made" in line
        ] == ["write a was made at a time by flow run first-one"] * 2

    def test_what_only_names_the_run_does_not_decide_the_result(self, tmp_path):
        write, _ = make_stage(tmp_path)
        run(write, "a", "one")
        assert run(write, "a", "two") == ["Cached"]

    def test_a_stage_with_an_output_elsewhere_is_another(self, tmp_path):
        (tmp_path / "other").mkdir()
        run(make_stage(tmp_path)[0], "a")
        assert run(make_stage(tmp_path / "other")[0], "a") == ["Completed"]

    def test_a_fault_of_the_machine_is_tried_again(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tasks.stages._DELAYS", [0.0, 0.0])
        write, calls = make_stage(tmp_path, [OSError(errno.EIO, "I/O"), ConnectionError("gone")])
        assert run(write, "a") == ["Completed"]
        assert len(calls) == 3

    def test_a_fault_of_the_data_is_not(self, tmp_path):
        write, calls = make_stage(tmp_path, [DataError("line 3 is no JSON")])
        assert run(write, "a") == ["Failed"]
        assert len(calls) == 1

    def test_the_input_is_resolved_once_a_try_and_handed_to_what_is_made_of_it(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("tasks.stages._DELAYS", [0.0, 0.0])
        numbers = count(1)
        write, calls = make_stage(tmp_path, [ConnectionError("gone")], lambda: next(numbers))
        assert run(write, "a") == ["Completed"]
        assert calls == [1, 2]
        assert next(numbers) == 3
        assert run(write, "a") == ["Cached"]
        assert next(numbers) == 5

    def test_what_a_reused_stage_has_resolved_is_handed_to_no_other(self, tmp_path):
        numbers = count(1)
        write, calls = make_stage(tmp_path, read=lambda: next(numbers))

        @flow
        def cached_then_plain():
            write("a")
            write("a")
            (tmp_path / "a").unlink()
            write.fn("a")

        cached_then_plain()
        assert calls == [1, 3]

    def test_stages_at_the_same_time_keep_what_each_has_resolved(self, tmp_path):
        keyed, numbers = threading.Barrier(2), count(1)

        def read():
            keyed.wait()
            return next(numbers)

        write, calls = make_stage(tmp_path, read=read)

        @flow
        def both():
            futures = [write.submit(name) for name in ("a", "b")]
            return [future.result() for future in futures]

        assert both() == ["a", "b"]
        assert sorted(calls) == [1, 2]

    def test_an_input_that_cannot_be_resolved_fails_the_task_with_its_own_error(self, tmp_path):
        def read():
            raise DataError("chat.jsonl: no such file")

        write, calls = make_stage(tmp_path, read=read)
        with pytest.raises(DataError, match=r"chat\.jsonl: no such file"):
            flow(lambda: write("a"))()
        assert calls == []

    def test_a_reused_stage_says_so(self, tmp_path, capsys):
        write, _ = make_stage(tmp_path)
        run(write, "a", times=2)
        assert capsys.readouterr().out.splitlines() == ["write file a", "reused: write file a"]


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(errno.EIO, "I/O"), True),
        (TimeoutError("slow"), True),
        (FileNotFoundError("gone"), False),
        (PermissionError("no"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (DataError("bad line"), False),
        (TrainingError("loss is nan"), False),
        (ValueError("nan"), False),
    ],
)
def test_only_what_the_machine_may_get_over_is_tried_again(error, passes):
    assert _may_pass(None, None, State(type=StateType.FAILED, data=error)) is passes


def test_the_machines_fault_behind_an_error_of_the_core_counts():
    error = DataError("cannot be written")
    error.__cause__ = OSError(errno.EIO, "I/O")
    assert _may_pass(None, None, State(type=StateType.FAILED, data=error))


def test_runs_that_met_the_same_fault_do_not_come_back_at_once(tmp_path):
    assert make_stage(tmp_path)[0].retry_jitter_factor > 0


def test_without_prefect_a_stage_is_a_plain_function(tmp_path):
    write, _ = make_stage(tmp_path)
    assert write.fn("a") == "a"


def test_two_equal_stages_wait_for_each_other(tmp_path):
    inside, most = 0, 0
    guard = threading.Lock()

    def make():
        nonlocal inside, most
        with guard:
            inside, most = inside + 1, max(most, inside + 1)
        threading.Event().wait(0.1)
        with guard:
            inside -= 1

    @stage("slow {name}", whole)
    def slow(name: str) -> Output:
        return Output(tmp_path / name, f"slow-{name}", make)

    threads = [threading.Thread(target=slow.fn, args=("a",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_damaged_output_is_set_aside_and_named(tmp_path, capsys):
    def whole_folder(path):
        whole(path / "file")

    folder = tmp_path / "set"
    assert make_room(folder, whole_folder)
    folder.mkdir()
    (folder / "file").write_text("whole")
    assert not make_room(folder, whole_folder)
    (folder / "file").write_text("chanced")
    assert not is_present(folder, whole_folder)
    assert make_room(folder, whole_folder)
    assert not folder.exists()
    assert (tmp_path / "damaged-set" / "file").read_text() == "chanced"
    assert "set was changed since it was made; it is damaged-set now" in capsys.readouterr().out
