"""A real browser without a window, driven over its own debugging protocol."""

import json
import re
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest
from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-port=0", "about:blank",
)  # fmt: skip
WAIT = {"awaitPromise": True, "userGesture": True}
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine; apt-get install chromium"
)


class Tab:
    """One page; what it does is seen by asking it."""

    def __init__(self, socket):
        self._socket, self._number = socket, 0
        self.call("Page.enable")

    def call(self, method, **params):
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while (answer := json.loads(self._socket.recv(60))).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def run(self, script):
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, **WAIT)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script):
        deadline = time.monotonic() + 60
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.02)
        return value

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({url!r}) && document.readyState === 'complete'")

    def type(self, text):
        self.call("Input.insertText", text=text)

    def press_enter(self):
        self.press("Enter", 13, text="\r")

    def press(self, name, number, **more):
        key = {"key": name, "code": name, "windowsVirtualKeyCode": number} | more
        self.call("Input.dispatchKeyEvent", type="keyDown", **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)


@contextmanager
def tab(folder):
    """Yield the one tab of a new browser."""
    command = [CHROMIUM, *FLAGS[:-1], f"--user-data-dir={folder / 'profile'}", FLAGS[-1]]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = next(filter(None, (re.search(r"ws://\S+", x) for x in process.stderr)))[0]
            with connect(address, max_size=None) as socket:
                targets = Tab.__new__(Tab)
                targets._socket, targets._number = socket, 0
                (found,) = (
                    target
                    for target in targets.call("Target.getTargets")["targetInfos"]
                    if target["type"] == "page"
                )
            page = re.sub(r"/devtools/.*", f"/devtools/page/{found['targetId']}", address)
            with connect(page, max_size=None) as socket:
                yield Tab(socket)
        finally:
            process.terminate()
            process.stderr.close()
