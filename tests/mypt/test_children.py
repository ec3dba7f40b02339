"""No process outlives the one that started it, however that ended."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid() + int(sys.argv[2]))])
print(child.pid, child.wait() if int(sys.argv[2]) else "", flush=True)
child.wait()
"""
CHILD = """
import sys, time
from mypt.children import end_with
end_with(int(sys.argv[1]))
time.sleep(60)
"""


def gone(pid, within):
    """Whether a process ends within some seconds; one that nobody has buried yet has ended."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child at once")
def test_a_child_is_gone_when_its_parent_is_killed():
    words = [sys.executable, "-c", PARENT, CHILD, "0"]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    try:
        assert not gone(child, 1.0)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert gone(child, 3.0)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


def test_a_child_that_finds_its_parent_gone_already_ends_at_once():
    words = [sys.executable, "-c", PARENT, CHILD, "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split()[1] == "1"
