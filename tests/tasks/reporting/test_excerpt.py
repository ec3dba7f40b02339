import pytest

from mypt.config import MaskPolicy, PrepareConfig
from mypt.data.dataset import open_dataset, prepare, tokenize
from tasks.reporting.datasets import excerpt

LINE = '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "%s"}]}\n'


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(LINE % ("2 * 3 <b>?", " six_ ") + LINE % ("b", "c") * 3)
    return PrepareConfig(sources=({"path": str(path)},), tokenization="byte", val_fraction=0)


def test_what_is_learned_is_bold_and_nothing_that_was_said_is_markup(config, tmp_path):
    text = excerpt(open_dataset(prepare(config, MaskPolicy(), tmp_path / "d").path))
    assert "2 \\* 3 \\<b\\>?" in text
    assert " **six\\_ \\</Assistant\\>**" in text
    assert text.count("*train row") == 3


def test_without_masks_it_says_so(config, tmp_path):
    text = excerpt(open_dataset(tokenize(config, tmp_path / "d").path))
    assert text.startswith("Without masks")
    assert "**" not in text
