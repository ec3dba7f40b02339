"""A dataset is the same whoever prepares it, and whatever ends the workers meanwhile."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from mypt.config import Preparation
from mypt.data.dataset import open_dataset, tokenize
from mypt.data.preparation import parallel as crew
from mypt.data.preparation import processes
from mypt.data.reading import portions
from mypt.errors import ConfigError, DataError
from tests.mypt.data.corpora import chats, config, say, tree, write_chats
from tests.mypt.data.rawfiles import jsonl, write
from tests.mypt.data.reading.test_portions import FILES

SERIAL = Preparation(engine="serial")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Let processes be worth it, and several portions be many."""
    monkeypatch.setattr(crew, "_WORTH_PROCESSES", 0)
    monkeypatch.setattr(portions, "PORTION_BYTES", 60_000)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Files of all kinds, and a folder of small ones."""
    folder = tmp_path_factory.mktemp("raw")
    (folder / "small").mkdir()
    paths = [write(folder / name, content) for name, content in FILES.items()]
    for number in range(9):
        write_chats(folder / "small" / f"{number}.jsonl", chats(20, seed=number))
    return config(*paths, folder / "small", shard_tokens=100_000)


@pytest.fixture(scope="module")
def serial(corpus, tmp_path_factory):
    """What this process alone makes of it."""
    out = tmp_path_factory.mktemp("serial") / "d"
    tokenize(corpus, out, preparation=SERIAL)
    return tree(out)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_processes_make_the_same_bytes_as_one_alone(corpus, serial, tmp_path, workers):
    tokenize(corpus, tmp_path / "d", preparation=Preparation(workers=workers))
    assert tree(tmp_path / "d") == serial


def test_dask_makes_the_same_bytes(corpus, serial, tmp_path):
    pytest.importorskip("distributed", reason="pip install 'mypt[cluster]'")
    tokenize(corpus, tmp_path / "d", preparation=Preparation(engine="dask", workers=2))
    assert tree(tmp_path / "d") == serial


def test_dasks_scheduler_is_found_by_its_address(corpus, serial, tmp_path):
    distributed = pytest.importorskip("distributed", reason="pip install 'mypt[cluster]'")
    with distributed.LocalCluster(
        n_workers=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        there = Preparation(engine="dask", address=cluster.scheduler_address)
        tokenize(corpus, tmp_path / "d", preparation=there)
    assert tree(tmp_path / "d") == serial


def test_how_small_the_portions_are_changes_nothing(corpus, serial, tmp_path, monkeypatch):
    monkeypatch.setattr(portions, "PORTION_BYTES", 200_000)
    tokenize(corpus, tmp_path / "d", preparation=Preparation(workers=2))
    assert tree(tmp_path / "d") == serial


@pytest.mark.parametrize("engine", ["process", "dask"])
def test_a_worker_that_is_killed_changes_nothing(corpus, serial, tmp_path, engine):
    if engine == "dask":
        pytest.importorskip("distributed", reason="pip install 'mypt[cluster]'")
    killed = []

    def kill(*_):
        if len(killed) < 2:
            child = next(c for c in reversed(workers()) if c.pid not in killed)
            child.send_signal(signal.SIGKILL)
            killed.append(child.pid)

    there = Preparation(engine=engine, workers=2)
    tokenize(corpus, tmp_path / "d", progress=kill, preparation=there)
    assert len(killed) == 2
    assert tree(tmp_path / "d") == serial


@pytest.mark.parametrize("engine", ["process", "dask"])
def test_a_file_that_ends_three_workers_is_named_and_set_aside(tmp_path, monkeypatch, engine):
    if engine == "dask":
        pytest.importorskip("distributed", reason="pip install 'mypt[cluster]'")
    deaths = deadly(tmp_path, "bad.jsonl", monkeypatch)
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "bad", "c"):
        write_chats(folder / f"{name}.jsonl", chats(30, seed=ord(name[0])))
    there = Preparation(engine=engine, workers=2)
    made = tokenize(config(folder), tmp_path / "d", preparation=there)
    (source,) = open_dataset(made.path).manifest.sources
    assert source.rows_read == 60
    (count,) = source.dropped
    assert count.reason == "bad.jsonl: set aside, its rows unknown, since it ended every worker"
    assert count.rows == 0
    # Three with its neighbours, three alone; Dask's are asked once more each time, and it blames
    # jobs for deaths that they had no part in.
    died = len(deaths.read_text())
    assert died == 6 if engine == "process" else 3 <= died <= 12


def test_a_source_whose_only_file_is_set_aside_is_refused(tmp_path, monkeypatch):
    deadly(tmp_path, "bad.jsonl", monkeypatch)
    path = write_chats(tmp_path / "bad.jsonl", chats(30))
    with pytest.raises(DataError, match=r"every row was dropped .*bad\.jsonl: set aside"):
        tokenize(config(path), tmp_path / "d", preparation=Preparation(workers=1))
    assert not (tmp_path / "d").exists()


def test_the_first_wrong_row_is_told_as_one_process_tells_it(tmp_path):
    rows = [{"messages": turns} for turns in chats(3000)]
    rows[2500] = rows[2900] = {"messages": [say("wizard", "?")]}
    path = write(tmp_path / "a.jsonl", jsonl(*rows))
    said = []
    for who in (SERIAL, Preparation(workers=3)):
        with pytest.raises(DataError) as caught:
            tokenize(config(path), tmp_path / "d", preparation=who)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert ":2501: " in said[0]


def test_nothing_is_left_when_it_is_interrupted(corpus, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(corpus, tmp_path / "d", progress=stop, preparation=Preparation(workers=2))
    assert not workers()
    assert [path.name for path in tmp_path.iterdir()] == [".d.lock"]


def test_a_result_that_changed_on_its_way_is_refused(corpus, tmp_path, monkeypatch):
    read = crew.map_portions

    def change(*given):
        for portion, done in read(*given):
            with Path(done.file).open("r+b") as file:
                file.write(b"\0")
            yield portion, done

    monkeypatch.setattr(crew, "map_portions", change)
    with pytest.raises(DataError, match="changed between worker and dataset"):
        tokenize(corpus, tmp_path / "d", preparation=Preparation(workers=1))


def test_small_inputs_start_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "_WORTH_PROCESSES", 1 << 20)
    monkeypatch.setattr(processes, "_Worker", None)
    path = write_chats(tmp_path / "a.jsonl", chats(30))
    tokenize(config(path), tmp_path / "d", preparation=Preparation(workers=2))


def test_dask_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    path = write_chats(tmp_path / "a.jsonl", chats(30))
    with pytest.raises(ConfigError, match=r"pip install 'mypt\[cluster\]'"):
        tokenize(config(path), tmp_path / "d", preparation=Preparation(engine="dask"))


def test_a_cluster_without_workers_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="pip install 'mypt[cluster]'")
    monkeypatch.setattr("mypt.data.preparation.dask_workers._PATIENCE", 2.0)
    path = write_chats(tmp_path / "a.jsonl", chats(30))
    with distributed.LocalCluster(
        n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as empty:
        there = Preparation(engine="dask", address=empty.scheduler_address)
        with pytest.raises(DataError, match="no worker for 2 seconds"):
            tokenize(config(path), tmp_path / "d", preparation=there)


def test_an_address_without_dask_is_refused():
    with pytest.raises(ValueError, match="expected dask"):
        Preparation(address="tcp://127.0.0.1:8786")


def workers():
    """Return the processes that work for this one."""
    found = psutil.Process().children(recursive=True)
    return [c for c in found if c.status() != psutil.STATUS_ZOMBIE and works(c)]


def works(child):
    try:
        words = " ".join(child.cmdline())
    except psutil.NoSuchProcess:
        return False
    return "mypt.data.preparation.worker" in words or "spawn_main" in words


def deadly(folder, name, monkeypatch):
    """Let reading a file of this name end the worker; return the file that counts it."""
    inside, deaths = folder / "inside", folder / "deaths"
    inside.mkdir()
    deaths.touch()
    (inside / "sitecustomize.py").write_text(
        f"""
import os, signal, time
from mypt.data.reading import portions
read = portions.read_rows
def read_or_die(raw, *given):
    if raw.path.name == {name!r}:
        with open({str(deaths)!r}, "a") as file:
            file.write("x")
        time.sleep(0.5)  # Dask's nanny may wait for ever for a worker that died as it came
        os.kill(os.getpid(), signal.SIGKILL)
    return read(raw, *given)
portions.read_rows = read_or_die
"""
    )
    before = os.environ.get("PYTHONPATH", "")
    root = str(Path(__file__).parents[4])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(inside), root, before]))
    return deaths
