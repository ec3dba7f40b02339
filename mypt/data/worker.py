"""A process that prepares portions: a job a line on standard input, what came of it on output.

Started by :mod:`mypt.data.processes`, with its process id as the only argument.
"""

import os
import sys

from mypt.data.portion_work import work
from mypt.orphans import end_with


def main() -> None:
    """Work until there are no more jobs."""
    end_with(int(sys.argv[1]))
    speech = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not be taken for a result
    for job in sys.stdin:
        print(work(job), file=speech, flush=True)


if __name__ == "__main__":
    main()
