"""Text with the guide's role tags: ``<User>...</User>`` and ``<Assistant>...</Assistant>``."""

import re
from collections.abc import Iterator

from mypt.data.places import Place
from mypt.data.raw import RawFile, decode, lines
from mypt.data.records import BLANK, Record
from mypt.errors import DataError
from mypt.text import shown

TAGS = ("User", "Assistant", "System", "Tool")
_TAG = re.compile(rf"<(/?)({'|'.join(TAGS)})>")


def read_turns(raw: RawFile) -> Iterator[Record]:
    """Yield each tagged turn as a message of the chat format, and BLANK for an empty line.

    What stands between the tags of a turn is its content, byte for byte, empty lines too.
    Between turns only white space may stand, and an empty line there ends the conversation.

    Raises:
        DataError: For text outside the tags, or a tag that opens or closes out of turn.
    """
    turn = _Turn(raw.limits.row_bytes)
    for line in lines(raw):
        place = raw.place(line.number)
        text = decode(line.data, line.offset, place) + "\n"
        if not turn.name and not text.strip():
            yield Record(BLANK, place, 0)
            continue
        at = 0
        for tag in _TAG.finditer(text):
            turn.add(text[at : tag.start()], place)
            if tag[1]:
                yield turn.close(tag[2], place)
            else:
                turn.open(tag[2], place)
            at = tag.end()
        turn.add(text[at:], place)
    if turn.name:
        raise DataError(f"{turn.place}: <{turn.name}> is never closed; expected </{turn.name}>")
    if not turn.place:
        raise DataError(f"{raw.name}: no turns found; expected <User>...</User>; leave it out")


class _Turn:
    """The turn that is being read; without a name, the space between turns."""

    def __init__(self, most_bytes: int) -> None:
        self.name = ""
        self.place: Place | None = None
        self._most_bytes = most_bytes
        self._content: list[str] = []
        self._n_bytes = 0

    def open(self, name: str, place: Place) -> None:
        if self.name:
            raise DataError(
                f"{place}: <{name}> inside <{self.name}> of {self.place}; expected"
                f" </{self.name}> before it, or the text in a JSON format, where it is only text"
            )
        self.name, self.place, self._content, self._n_bytes = name, place, [], 0

    def add(self, text: str, place: Place) -> None:
        if not self.name and text.strip():
            raise DataError(
                f"{place}: found {shown(text.strip())} between turns; expected one of"
                f" {', '.join(f'<{tag}>' for tag in TAGS)}"
            )
        self._content.append(text)
        self._n_bytes += len(text)
        if self._n_bytes > self._most_bytes:
            raise DataError(f"{self.place}: a turn of more than {self._most_bytes:,} characters")

    def close(self, name: str, place: Place) -> Record:
        if name != self.name or self.place is None:
            opened = f"<{self.name}> of {self.place} is open" if self.name else "no turn is open"
            raise DataError(f"{place}: </{name}> found, but {opened}; mend the tags")
        message = {"role": name.lower(), "content": "".join(self._content)}
        record = Record(message, self.place, self._n_bytes)
        self.name, self._n_bytes = "", 0
        return record
