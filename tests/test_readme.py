"""What the README says of the project: its commands, its rooms, the way through its code."""

import re

from tests.pages import README, ROOT

TEXT = README.read_text()


def test_it_can_be_read_in_a_few_minutes():
    assert len(TEXT.splitlines()) <= 150


def test_every_command_is_in_the_table():
    from flows.cli import app

    for name in app:
        if not name.startswith("-"):
            assert f"`mypt {name}" in TEXT, name


def test_the_table_has_the_order_of_the_help():
    from flows.cli import STAGES

    table = TEXT.partition("| command |")[2].partition("\n\n")[0]
    typed = dict.fromkeys(re.findall(r"`mypt (\w+)", table))
    commands = [command for stage in STAGES.values() for command in stage]
    assert list(typed) == commands


def rooms() -> list[str]:
    """The folders that the README's tree names, from the root."""
    tree = TEXT.partition("## The rooms")[2].split("```")[1]
    stack: list[str] = []
    found: list[str] = []
    for line in tree.strip("\n").splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.match(r"(?:\w+/ ?)+", line.lstrip())[0].split()
        stack[depth:] = names[:1]
        found += ["".join((*stack[:depth], name)).rstrip("/") for name in names]
    return found


def test_the_tree_names_every_room_and_no_other():
    packages = {
        str(file.parent.relative_to(ROOT))
        for room in ("mypt", "tasks", "flows")
        for file in (ROOT / room).rglob("*.py")
    }
    assert sorted(rooms()) == sorted(
        {*packages, "configs", "deployments", "docs", "examples", "tests"}
    )
