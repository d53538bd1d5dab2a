"""Drives an installed Chromium by its DevTools protocol over two pipes: no driver, no package, no network."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time

PATIENCE = 30.0  # seconds
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
# The browser reads its file 3 and writes its file 4.
PLACE = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for number, end in enumerate(ends, 3):
    os.dup2(end, number)
    os.set_inheritable(number, True)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_chromium():
    """The browser's path; None where none is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


class Chromium:
    """One page of a headless browser.

    Attributes:
      problems: what the page wrote to its console as an error, refused by policy, or raised.
    """

    def __init__(self, profile, size=(1440, 900), dark=False):
        to_read, to_write = os.pipe(), os.pipe()
        command = [sys.executable, "-c", PLACE, str(to_write[0]), str(to_read[1]), find_chromium(), *FLAGS]
        command += [f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "about:blank"]
        self._process = subprocess.Popen(
            command,
            pass_fds=(to_write[0], to_read[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_write[0])
        os.close(to_read[1])
        self._in, self._out = to_read[0], to_write[1]
        self._known, self._number, self._rest = {}, 0, b""
        self.problems = []
        try:
            self._begin(size, dark)
        except BaseException:
            self.__exit__()
            raise

    def _begin(self, size, dark):
        target = next(t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        if dark:
            features = [{"name": "prefers-color-scheme", "value": "dark"}]
            self.call("Emulation.setEmulatedMedia", features=features)
        self.size(*size)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(Exception):
            self._call("Browser.close")
        for end in (self._in, self._out):
            os.close(end)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait()

    def call(self, method, **parameters):
        return self._call(method, self._session, **parameters)

    def _call(self, method, session=None, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        number = self._number
        while number not in self._known:
            self._read(until)
        answer = self._known.pop(number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _read(self, until):
        ready, _, _ = select.select([self._in], [], [], max(until - time.monotonic(), 0))
        assert ready, "the browser does not answer"
        data = os.read(self._in, 1 << 20)
        assert data, "the browser is gone"
        *messages, self._rest = (self._rest + data).split(b"\0")
        for text in messages:
            message = json.loads(text)
            if "id" in message:
                self._known[message["id"]] = message
            elif message["method"] == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(message["params"]["exceptionDetails"])[:600])
            elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.problems.append(json.dumps(message["params"]["entry"])[:600])

    def size(self, width, height, scale=1):
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def open(self, address):
        self.call("Page.navigate", url=address)

    def do(self, script):
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script):
        """Waits until an expression is true, and returns its value."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            with contextlib.suppress(AssertionError):  # while a page loads
                if value := self.do(script):
                    return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}; the page said {self.problems}")

    def click(self, selector):
        """A mouse's click on the middle of an element, as a person makes it."""
        self.wait(f"document.querySelector({selector!r}) !== null")
        place = self.do(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.point(*place)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def point(self, x, y):
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def picture(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
