from types import ModuleType

import pytest

from mypt.config import MaskPolicy
from mypt.data import masking
from mypt.data.preparation import encoding
from tasks import keys
from tasks.keys import code_digest, stage_key


def forget():
    keys.code_digest.cache_clear()
    keys._read.cache_clear()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A core of three modules in two rooms, beside a file of knobs."""
    folder = tmp_path / "mypt"
    for name, code in {
        "config.py": "KNOB = 1",
        "data/reading.py": "from mypt.config import KNOB\nfrom mypt.data import cutting",
        "data/cutting.py": "def cut():\n    import mypt.model.net",
        "model/net.py": "import torch",
        "model/other.py": "",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
        (folder / name).with_name("__init__.py").touch()
    monkeypatch.setattr(keys, "_PACKAGE", folder)
    forget()
    yield folder
    forget()


def digest(module="mypt.data.reading"):
    forget()
    return code_digest(module)


def test_an_import_counts_wherever_it_stands(package):
    (package / "data" / "cutting.py").write_text(
        "try:\n    pass\nexcept E:\n    match x:\n        case 1:\n"
        "            import mypt.model.net"
    )
    before = digest()
    (package / "model" / "net.py").write_text("import torch as t")
    assert digest() != before


@pytest.mark.parametrize("changed", ["data/reading.py", "data/cutting.py", "model/net.py"])
def test_the_code_of_a_stage_is_all_that_it_imports(package, changed):
    before = digest()
    path = package / changed
    path.write_text(path.read_text() + "\n# another")
    assert digest() != before


@pytest.mark.parametrize("changed", ["config.py", "model/other.py"])
def test_other_code_does_not_count(package, changed):
    before = digest()
    (package / changed).write_text("ANOTHER = 2")
    assert digest() == before


@pytest.mark.parametrize(
    "missing", ["mypt.data.gone", "mypt.config", "numpy", "mypt.data.cutting.cut"]
)
@pytest.mark.usefixtures("package")
def test_what_is_no_module_of_a_room_gives_no_key(missing):
    with pytest.raises(LookupError, match=f"^{missing}: no module in a room"):
        stage_key(ModuleType(missing))


def test_an_import_that_leads_nowhere_gives_no_key(package):
    (package / "model" / "net.py").write_text("from mypt.data.renamed import cut")
    with pytest.raises(LookupError, match=r"^mypt\.data\.renamed: no module"):
        digest()


def test_modules_that_import_each_other_come_to_an_end(package):
    (package / "model" / "net.py").write_text("import mypt.data.reading")
    assert digest() == digest()


def test_the_inputs_decide_the_key():
    module = masking
    one = stage_key(module, "a" * 64, MaskPolicy())
    assert one == stage_key(module, "a" * 64, MaskPolicy())
    others = {
        stage_key(module, "b" * 64, MaskPolicy()),
        stage_key(module, "a" * 64, MaskPolicy(end_of_turn=False)),
        stage_key(encoding, "a" * 64, MaskPolicy()),
    }
    assert len(others | {one}) == 4


def test_the_real_stages_find_their_code(monkeypatch):
    found = []
    real = keys._file
    monkeypatch.setattr(keys, "_file", lambda name: found.append(real(name)) or found[-1])
    digest("mypt.training.loop")
    names = {path.name for path in found if path}
    assert {"loop.py", "gpt.py", "loss.py", "loader.py"} <= names
    assert "preview.py" not in names
