"""A real, headless Chromium for tests of pages, through its DevTools protocol over a pipe (nothing but the standard library).

    with Browser() as browser:
        seen = browser.open(page, width=360)
        seen.problems, seen.requests, seen.value("document.title"), seen.screenshot(file)

https://chromedevtools.github.io/devtools-protocol/, `--remote-debugging-pipe`: JSON ended by a zero byte, on descriptors
3 (in) and 4 (out).
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
PATIENCE_S = 60.0


def chromium() -> str:
    """The browser's program; skips where there is none. It is no package of Python's, so CI need not have it either."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    return found


class Browser:
    """One browser process."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp()
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                 "--disable-background-networking", "--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe",
                 f"--user-data-dir={self._folder}", "about:blank"]  # fmt: skip
        words = [chromium(), *flags]
        script = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *words], pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._numbers = itertools.count(1)
        self._rest = b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        shutil.rmtree(self._folder, ignore_errors=True)

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """A command, and its answer; events that come meanwhile are kept."""
        number = next(self._numbers)
        told = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._out, json.dumps(told).encode() + b"\0")
        until = time.monotonic() + PATIENCE_S
        while True:
            message = self._message(until)
            if message.get("id") != number:
                self.events.append(message)
                continue
            assert "error" not in message, f"{method}: {message['error']}"
            return message["result"]

    def _message(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            assert ready, "Chromium does not answer"
            part = os.read(self._in, 1 << 20)
            assert part, "Chromium is gone"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, width: int = 1200, height: int = 900, *, dark: bool = False) -> Seen:
        """A page in a tab of its own, loaded."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable", session)
        self.send(
            "Emulation.setDeviceMetricsOverride",
            session,
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", session, features=[scheme])
        self.send("Page.navigate", session, url=page.absolute().as_uri())
        seen = Seen(self, session)
        seen.wait_for("document.readyState === 'complete'")
        return seen


@dataclass
class Seen:
    """A page that is open."""

    browser: Browser
    session: str
    _asked: dict[str, Any] = field(default_factory=dict)

    def value(self, script: str) -> Any:
        """What an expression is, as JSON."""
        found = self.browser.send(
            "Runtime.evaluate", self.session, expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, script: str) -> None:
        """Until an expression is true."""
        until = time.monotonic() + PATIENCE_S
        while not self.value(script):
            assert time.monotonic() < until, f"never true: {script}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """A key, as the keyboard sends it."""
        text = {"text": key} if len(key) == 1 else {}
        self.browser.send("Input.dispatchKeyEvent", self.session, type="keyDown", key=key, **text)
        self.browser.send("Input.dispatchKeyEvent", self.session, type="keyUp", key=key)

    def mouse(self, kind: str, x: float, y: float) -> None:
        """A mouse event: mouseMoved, mousePressed, mouseReleased."""
        button = "none" if kind == "mouseMoved" else "left"
        self.browser.send("Input.dispatchMouseEvent", self.session, type=kind, x=x, y=y, button=button, clickCount=1,
                          buttons=1 if kind != "mouseReleased" else 0)  # fmt: skip

    def screenshot(self, file: Path, *, whole: bool = True) -> None:
        """A PNG of the page."""
        found = self.browser.send("Page.captureScreenshot", self.session, format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))

    def pdf(self, file: Path) -> None:
        """The page on paper."""
        found = self.browser.send(
            "Page.printToPDF", self.session, printBackground=False, paperWidth=8.27, paperHeight=11.69
        )
        file.write_bytes(base64.b64decode(found["data"]))

    @property
    def problems(self) -> list[str]:
        """What stands in the console: errors, warnings, what the page's policy refused."""
        self.value("1")
        found = []
        for event in self._own():
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(event["params"]["exceptionDetails"]))
            elif event["method"] in ("Runtime.consoleAPICalled", "Log.entryAdded"):
                found.append(str(event["params"]))
        return found

    @property
    def requests(self) -> list[str]:
        """Everything the page asked for, itself not counted."""
        self.value("1")
        asked = [
            event["params"]["request"]["url"] for event in self._own() if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked[1:] if not url.startswith("data:")]

    def _own(self) -> list[dict[str, Any]]:
        return [event for event in self.browser.events if event.get("sessionId") == self.session]
