"""A real browser that opens a page from its file, without any network, and tells what it did.

Chromium is driven through its DevTools protocol over a pair of pipes: what it logs is read as it is logged, and a test
waits for what a page says of itself, never for a span of time.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: .ci/install-browser")

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-pipe",
)
_PATIENCE_S = 300.0


class BrowserError(Exception):
    """The browser ended, refused a command, or a page never came to what was waited for."""


class Page:
    """One tab, driven over pipes.

    Attributes:
        console: What the page or the browser logged about it: (level, text).
    """

    def __init__(self, commands: int, answers: int) -> None:
        self.console: list[tuple[str, str]] = []
        self._commands, self._answers = commands, answers
        self._received = b""
        self._number = 0
        self._session: str | None = None

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol; its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(self, path: Path, width: int, height: int) -> None:
        """Open a file in a window of so many pixels."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.resize(width, height)
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("document.readyState === 'complete'")

    def resize(self, width: int, height: int) -> None:
        """Give the window another size; one below 600 pixels is a phone's."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if width < 600 else 1,
            mobile=width < 600,
        )

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise BrowserError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + _PATIENCE_S
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise BrowserError(f"never true: {expression}; logged: {self.console}")
            time.sleep(0.05)

    def picture(self) -> bytes:
        """PNG of what the window shows."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    def whole_picture(self) -> bytes:
        """PNG of the page from top to bottom."""
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def printed(self) -> bytes:
        """PDF of the page on paper."""
        return base64.b64decode(self.send("Page.printToPDF", preferCSSPageSize=True)["data"])

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._answers, 1 << 20) if ready else b""
            if not part:
                raise BrowserError("the browser ended" if ready else "the browser does not answer")
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        self._note(answer)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.consoleAPICalled":
            words = [str(word.get("value", word.get("description"))) for word in parameters["args"]]
            self.console.append((parameters["type"], " ".join(words)))
        elif event.get("method") == "Runtime.exceptionThrown":
            self.console.append(("error", json.dumps(parameters["exceptionDetails"])))
        elif event.get("method") == "Log.entryAdded":
            self.console.append((parameters["entry"]["level"], parameters["entry"]["text"]))


@contextmanager
def opened(path: Path, profile: Path, *flags: str, size: tuple[int, int] = (1280, 900)) -> Iterator[Page]:
    """Open a page in a browser of its own, which ends with the block.

    Args:
        path: The HTML file.
        profile: An empty folder for what the browser writes.
        flags: More flags of Chromium.
        size: Width and height of the window.
    """
    command_end, commands = os.pipe()
    answers, answer_end = os.pipe()
    # Chromium reads commands from 3 and answers on 4.
    wiring = f'exec "$@" 3<&{command_end} 4>&{answer_end}'
    arguments = [*_without_network(), str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}", *flags]
    browser = subprocess.Popen(
        ["bash", "-c", wiring, "bash", *arguments],
        pass_fds=(command_end, answer_end),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(command_end)
    os.close(answer_end)
    page = Page(commands, answers)
    try:
        page.open(path, *size)
        yield page
    finally:
        browser.terminate()
        browser.wait(_PATIENCE_S)
        os.close(commands)
        os.close(answers)


def _without_network() -> list[str]:
    """A network namespace without any interface, where this user may make one."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-n", "true"], check=False, capture_output=True).returncode:
        return []
    return [unshare, "-n"]
