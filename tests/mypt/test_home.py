"""Where a run leaves its files."""

import pytest

from mypt.errors import CheckpointError
from mypt.home import find_checkpoint, home, models_dir, moved_home


def test_a_block_may_leave_its_files_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "a"))
    with moved_home(tmp_path / "b"):
        assert models_dir() == tmp_path / "b" / "models"
        with moved_home(tmp_path / "c"):
            assert home() == tmp_path / "c"
        assert home() == tmp_path / "b"
    assert home() == tmp_path / "a"


@pytest.mark.parametrize("name", ["../other/step_000001", "/tmp/step_000001", "step_" + "9" * 400])
def test_a_pointer_cannot_leave_its_model(tmp_path, name):
    for model in ("m", "other"):
        (tmp_path / model / "step_000001").mkdir(parents=True)
    (tmp_path / "m" / "latest").write_text(name)
    with pytest.raises(CheckpointError, match="no checkpoint of"):
        find_checkpoint(tmp_path / "m")
