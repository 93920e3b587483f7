"""A headless Chromium, driven over the pipe of its DevTools protocol; needs the binary alone."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ANSWER_S = 60
# Chromium reads from file 3 and writes to file 4
START = """
import os, sys
os.dup2(int(sys.argv[1]), 100), os.dup2(int(sys.argv[2]), 101)
os.dup2(100, 3), os.dup2(101, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_binary() -> str | None:
    """Return the path of an installed Chromium."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One browser with one page."""

    def __init__(self, write_fd: int, read_fd: int) -> None:
        self._write_fd, self._read_fd = write_fd, read_fd
        self._number, self._left, self.events = 0, b"", []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        attached = self._send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._write_fd, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._read_fd], [], [], ANSWER_S)
            data = os.read(self._read_fd, 1 << 20) if ready else b""
            assert data, "Chromium gives no answer"
            self._left += data
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol for the page."""
        return self._send(method, self._session, **params)

    def evaluate(self, expression: str) -> Any:
        """Return the JSON value of a JavaScript expression; promises are waited for."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Return the value of an expression as soon as it is true."""
        end = time.monotonic() + ANSWER_S
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, expression
            time.sleep(0.05)
        return value

    def open(self, url: str) -> None:
        """Open a page and wait until it has loaded."""
        assert "errorText" not in self.call("Page.navigate", url=url)
        self.wait_for("document.readyState == 'complete'")

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Give the page a size and a colour scheme, of a phone below 600 pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def press(self, key: str) -> None:
        """Press and release a key: a character, or a name like ArrowRight."""
        text = {"text": key} if len(key) == 1 else {}
        codes = {"Escape": 27, "Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, "Backspace": 8}
        code = {"windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
        if key == "Enter":
            text = {"text": "\r"}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **code)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def write(self, text: str) -> None:
        """Write into the field that has the focus."""
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path | None = None, *, full: bool = False) -> bytes:
        """Return what is seen, or the whole page, as PNG; write it to `path` too."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=full)
        data = base64.b64decode(found["data"])
        if path:
            path.write_bytes(data)
        return data


@contextlib.contextmanager
def started(binary: str, profile: Path) -> Iterator[Chromium]:
    """Start a browser that keeps its files in `profile`, and end it."""
    to_read, write_fd = os.pipe()
    read_fd, to_write = os.pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run",
             "--disable-background-networking", "--hide-scrollbars"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", START, str(to_read), str(to_write), binary, *flags],
        pass_fds=(to_read, to_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(to_write)
    try:
        yield Chromium(write_fd, read_fd)
    finally:
        os.close(write_fd)
        os.close(read_fd)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
