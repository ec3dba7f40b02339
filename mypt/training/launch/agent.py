"""torchrun of one machine, as a process that ends with whoever started it.

A file of its own: it is a program, started by name, that must be there before torch is.
"""

import os
import sys

from mypt.children import end_with

AGENT = "MYPT_AGENT"
"""Environment variable that tells workers the agent's process id."""


def main() -> None:
    """Run torchrun with all arguments but the first, which is the parent's process id."""
    end_with(int(sys.argv[1]))
    os.environ[AGENT] = str(os.getpid())
    from torch.distributed.run import main as torchrun  # takes seconds

    torchrun(sys.argv[2:])


if __name__ == "__main__":
    main()
