"""How much the head does at a time; a file without torch, since plans of memory read it too."""

from typing import Final

CHUNK_BYTES: Final = 48 << 20
"""Most bytes of logits at a time. Each chunk adds a (V, C) product to the weight's gradient, so
a few large ones are quicker than many small ones."""
CACHE_BYTES: Final = 1 << 20
"""What a core keeps close by: softmax passes over no more at a time."""
