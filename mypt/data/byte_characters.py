"""Bytes as printable characters, as GPT-2's files and those of ``tokenizers`` spell them.

Those that are printable stand for themselves, and come first; the others are the characters
from U+0100 on.
"""

from typing import Final

_PRINTABLE: Final = [v for v in range(256) if chr(v).isprintable() and v != ord(" ")]
_OTHERS: Final = [value for value in range(256) if value not in _PRINTABLE]

BYTES: Final = tuple(_PRINTABLE + _OTHERS)
"""All bytes in the order of GPT-2's ids."""
CHARACTER: Final = {value: chr(value) for value in _PRINTABLE} | {
    value: chr(256 + index) for index, value in enumerate(_OTHERS)
}
"""Byte to character."""
BYTE: Final = {character: value for value, character in CHARACTER.items()}
"""Character to byte."""
