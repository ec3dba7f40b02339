"""One line for what is wrong in a config, and a true count of what else is."""

import pytest

from mypt.config import PrepareConfig, Source
from mypt.errors import ConfigError
from mypt.parsing import parse_config, read_json


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            {"path": "a", "wieght": 2},
            "here: unknown key 'sources.0.wieght'; did you mean 'weight'?",
        ),
        (
            {"path": "a", "weight": 0},
            "here: sources.0.weight: expected greater than 0, found the number 0",
        ),
        (
            {"path": "a", "weight": 0, "formt": "chat"},
            "here: unknown key 'sources.0.formt'; did you mean 'format'? (and 1 more)",
        ),
    ],
)
def test_a_list_is_not_wrong_a_second_time_because_an_item_is(source, said):
    with pytest.raises(ConfigError) as caught:
        parse_config({"sources": [source]}, PrepareConfig, "here")
    assert str(caught.value) == said


def test_a_list_without_items_is_wrong_by_itself():
    with pytest.raises(ConfigError, match="sources: Tuple should have at least 1 item "):
        parse_config({"sources": []}, PrepareConfig, "here")


def test_a_name_that_no_file_can_have_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"a\\x00b: no file's name \(embedded null byte\)"):
        read_json(tmp_path / "a\0b")


@pytest.mark.parametrize("char", ["\n", "\x1b", "\x85", "\u2028", "\u202e", "\ud800"])
def test_an_unknown_key_breaks_no_line_and_steers_no_terminal(char):
    with pytest.raises(ConfigError) as caught:
        parse_config({"format": "chat", f"a{char}b": 1}, Source, "here")
    assert str(caught.value).isprintable()
