"""What to do about an error of the system: a full disk, a missing folder, a taken port."""

import errno
import re
from pathlib import Path

_ADVICE = {
    errno.ENOSPC: "make room and run the same again",
    errno.EDQUOT: "make room and run the same again",
    errno.EACCES: "change its permissions or name another place",
    errno.EPERM: "change its permissions or name another place",
    errno.EROFS: "name a place that can be written",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "one of its parts is a file; expected a folder",
    errno.EISDIR: "a folder; expected a file",
    errno.EEXIST: "a file of that name is in the way; name another",
    errno.ENAMETOOLONG: "name a shorter one",
    errno.EADDRINUSE: "another program listens there; name another port",
}


def describe(error: OSError) -> str:
    """Return one line: which file or address, what the system says, and what to do."""
    path = Path(str(error.filename or ""))
    name = re.sub(r"^\.tmp-(\d+-)?", "", path.name)  # what people asked for, not what it is made as
    where = f"{path.with_name(name)}: " if name else ""
    advice = _ADVICE.get(error.errno or 0, "see to it and run the same again")
    return f"{where}{error.strerror or error}; {advice}"
