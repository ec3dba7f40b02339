import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from mypt import files
from mypt.errors import CheckpointError, ConfigError
from mypt.home import models_dir
from mypt.training.checkpoints.folder import newest_whole, point, prune, steps
from mypt.training.claim import claim, read_run
from mypt.training.lineage import RunContext
from mypt.training.loop import train


@pytest.fixture
def claimed(plan):
    with claim(plan(), RunContext(prefect_flow_run_id="f")) as folder:
        yield folder


def test_the_first_claim_writes_what_the_name_means(claimed, plan):
    record = read_run(claimed)
    assert record.plan == plan()
    assert record.context.prefect_flow_run_id == "f"


def test_a_later_claim_keeps_the_first_record(plan):
    with claim(plan(), RunContext(mlflow_run_id="first")) as folder:
        before = (folder / "run.json").read_bytes()
    with claim(plan(), RunContext(mlflow_run_id="second")):
        assert (folder / "run.json").read_bytes() == before


def test_a_claim_clears_what_killed_processes_left(plan):
    folder = models_dir() / "m"
    (folder / ".tmp-step_000002").mkdir(parents=True)
    (folder / ".tmp-step_000002" / "model.safetensors").write_bytes(b"half")
    (folder / ".tmp-77-latest").write_bytes(b"step")
    with claim(plan(), RunContext()):
        assert {path.name for path in folder.iterdir()} == {".lock", "run.json"}


def test_a_folder_of_unknown_origin_is_refused(plan):
    (models_dir() / "m" / "step_000500").mkdir(parents=True)
    with (
        pytest.raises(CheckpointError, match=r"holds step 500 and no run\.json"),
        claim(plan(), RunContext()),
    ):
        pass


def test_a_damaged_run_file_is_refused(plan):
    with claim(plan(), RunContext()) as folder:
        pass
    data = bytearray((folder / "run.json").read_bytes())
    data[30] ^= 1
    (folder / "run.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"run\.json: damaged"), claim(plan(), RunContext()):
        pass


def test_the_label_of_a_preset_is_no_other_config(plan):
    with claim(plan(), RunContext()):
        pass
    renamed = plan()
    renamed = renamed.model_copy(
        update={"preset": renamed.preset.model_copy(update={"name": "other label"})}
    )
    with claim(renamed, RunContext()):
        pass


def test_a_start_without_a_step_owns_no_name(plan):
    with claim(plan(), RunContext()) as folder:
        pass
    with claim(plan(batch_size=8), RunContext()):
        assert read_run(folder).plan == plan(batch_size=8)
    (folder / "damaged-step_000002").mkdir()
    with pytest.raises(ConfigError, match="batch_size 8 -> 4"), claim(plan(), RunContext()):
        pass


def test_all_differing_keys_are_named(plan):
    with claim(plan(), RunContext()) as folder:
        (folder / "step_000002").mkdir()
    with (
        pytest.raises(ConfigError, match=r"config: batch_size 4 -> 8, seed 1337 -> 1;"),
        claim(plan(batch_size=8, seed=1), RunContext()),
    ):
        pass


def test_the_lock_is_free_again_after_an_error(plan):
    with pytest.raises(KeyError), claim(plan(), RunContext()):
        raise KeyError
    with claim(plan(), RunContext()):
        pass


def test_of_processes_that_claim_at_once_one_wins_and_the_others_are_told(plan):
    made = plan()
    for _ in range(5):
        ready, start = os.pipe()
        children = []
        for _ in range(4):
            children.append(os.fork())
            if children[-1] == 0:
                os.close(start)
                os.read(ready, 1)  # returns when the parent closes its end
                try:
                    with claim(made, RunContext()):
                        time.sleep(0.3)
                except CheckpointError:
                    os._exit(75)
                os._exit(0)
        os.close(ready)
        os.close(start)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert sorted(codes) == [0, 75, 75, 75]


def test_steps_are_found_newest_first_and_nothing_else(claimed):
    for name in ("step_000002", "step_000010", "step_1000000", "damaged-step_000011", "other"):
        (claimed / name).mkdir()
    (claimed / "step_000099").write_text("a file")
    assert steps(claimed) == (1_000_000, 10, 2)


def test_pruning_keeps_the_newest_and_the_best(claimed):
    for step in (1, 2, 3, 4, 5):
        (claimed / f"step_{step:06d}").mkdir()
    prune(claimed, 2, best_step=2)
    assert steps(claimed) == (5, 4, 2)
    prune(claimed, 1, best_step=None)
    assert steps(claimed) == (5,)


def test_best_never_names_a_checkpoint_that_is_not_there(claimed):
    for step in (3, 6):
        (claimed / f"step_{step:06d}").mkdir()
    point(claimed, 6, best_step=3)
    assert (claimed / "best").read_text() == "step_000003\n"
    files.remove_folder(claimed / "step_000003")
    point(claimed, 6, best_step=3)
    assert not (claimed / "best").exists()
    assert (claimed / "latest").read_text() == "step_000006\n"


def test_an_older_damaged_copy_gives_way_to_a_newer_one(claimed):
    for text in ("first", "second"):
        (claimed / "step_000003").mkdir()
        (claimed / "step_000003" / "model.safetensors").write_text(text)
        found, notes = newest_whole(claimed)
        assert found is None
        assert "renamed damaged-step_000003" in notes[0]
    aside = claimed / "damaged-step_000003" / "model.safetensors"
    assert aside.read_text() == "second"


@contextmanager
def as_an_image(folder):
    """Let what lies in ``folder`` be the layer of an image below what is written there now."""
    layer, *rest = (folder.with_name(f"{folder.name}-{part}") for part in ("layer", "now", "work"))
    folder.rename(layer)
    for place in (folder, *rest):
        place.mkdir()
    said = f"lowerdir={layer},upperdir={rest[0]},workdir={rest[1]},redirect_dir=off"
    if shutil.which("mount") is None:
        pytest.skip("no mount on this machine")
    done = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", said, folder],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"no overlay can be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_training_goes_on_over_checkpoints_in_a_layer_of_an_image(plan, finish):
    """There no folder of the layer can be renamed, as pruning and setting aside do."""
    home = models_dir().parent
    wanted = finish(plan("straight"))["end"].checkpoint
    number = iter(range(99))
    list(train(plan(keep_checkpoints=1), should_stop=lambda: next(number) >= 7))
    weights = files.digest_file(Path(wanted.path) / "model.safetensors")
    with as_an_image(home):
        with pytest.raises(OSError, match="cross-device"):
            (models_dir() / "straight").rename(models_dir() / "other")
        (models_dir() / "m" / "step_000007" / "config.json").write_text("{}")
        end = finish(plan(keep_checkpoints=1))["end"]
        assert files.digest_file(Path(end.checkpoint.path) / "model.safetensors") == weights
        left = {path.name for path in (models_dir() / "m").iterdir()}
        assert "damaged-step_000007" in left
        best = (models_dir() / "m" / "best").read_text().strip()
        assert {name for name in left if name.startswith("step_")} == {"step_000012", best}
        assert not [name for name in left if name.startswith(".tmp-")]
