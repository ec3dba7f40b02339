"""Who wrote each token and why it stands there: the layout of spans and rows on disk.

Spans tile a shard: the first starts at 0, each starts where the one before it stops, the last
stops at the shard's length. Rows do too; a row is one conversation or document.
"""

from typing import Final

import numpy as np

ROLES: Final = ("text", "system", "user", "assistant", "tool")
KINDS: Final = ("header", "content", "end", "reasoning", "tool_call")
"""header: what the program writes around a turn (tags, separators, the start token);
content, reasoning, tool_call: what its author writes; end: the token that closes the turn."""

ROLE: Final = {name: index for index, name in enumerate(ROLES)}
KIND: Final = {name: index for index, name in enumerate(KINDS)}

BY_POLICY: Final = -1
"""``train`` of a span whose row leaves the mask to the policy; else 0 or 1."""

SPAN_DTYPE: Final = np.dtype(
    [
        ("start", "<u8"),
        ("stop", "<u8"),
        ("conversation", "<u4"),
        ("message", "<u4"),
        ("role", "u1"),
        ("kind", "u1"),
        ("train", "i1"),
    ]
)
"""Half-open [start, stop) in tokens of one shard; ``conversation`` is the row's index in the
shard, ``message`` the turn's index in the conversation."""

ROW_DTYPE: Final = np.dtype(
    [
        ("start", "<u8"),
        ("stop", "<u8"),
        ("file", "<u4"),
        ("line", "<u8"),
        ("digest", "V16"),
    ]
)
"""One conversation or document: its tokens, where it came from, and 16 bytes of a blake3 digest
of what it says (:func:`mypt.data.encoding.row_digest`), by which train and val are parted."""
