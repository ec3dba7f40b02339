import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_the_temporary_api_of_a_killed_process_ends_too():
    program = (
        "import subprocess, sys, time\n"
        "from prefect.server.api.server import SubprocessASGIServer\n"
        "from flows.ending import end_with_this_process\n"
        "end_with_this_process()\n"
        "api = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "SubprocessASGIServer().server_process = api\n"
        "end_with_this_process()\n"
        "end_with_this_process()\n"
        "print(api.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    api = int(process.stdout.readline())
    time.sleep(1)  # were it not for the pipe, it would be gone by now
    assert alive(api)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for _ in range(100):
        if not alive(api):
            break
        time.sleep(0.1)
    assert not alive(api)
