"""One line for what is wrong in a config, and a true count of what else is."""

import pytest

from mypt.config import PrepareConfig
from mypt.errors import ConfigError
from mypt.parsing import parse_config


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            {"path": "a", "wieght": 2},
            "here: unknown key 'sources.0.wieght'; did you mean 'weight'?",
        ),
        (
            {"path": "a", "weight": 0},
            "here: sources.0.weight: expected a number greater than 0, found 0",
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
    with pytest.raises(ConfigError, match="sources: expected at least 1 item, found"):
        parse_config({"sources": []}, PrepareConfig, "here")
