"""Headless Chromium through the DevTools protocol: open, click, type, read, photograph. Nothing but a WebSocket."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-default-browser-check",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--mute-audio", "--hide-scrollbars", "--remote-debugging-port=0", "--disable-dev-shm-usage",
)  # fmt: skip


def chromium() -> str | None:
    """Where Chromium is, or None."""
    given = os.environ.get("DEO_CUBE_CHROMIUM")
    return given or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


#: Longest wait for anything, far more than a busy machine takes.
SECONDS = 90


class Browser:
    """One page in a browser of its own, with an empty profile."""

    def __init__(
        self, *, width: int = 1280, height: int = 800, downloads: Path | None = None, dark: bool = False
    ) -> None:
        from websockets.sync.client import connect

        self._profile = tempfile.TemporaryDirectory(prefix="deo_cube_chromium_", ignore_cleanup_errors=True)
        path = chromium()
        assert path is not None
        command = [
            path,
            *FLAGS,
            f"--user-data-dir={self._profile.name}",
            f"--window-size={width},{height}",
            "about:blank",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._open = contextlib.ExitStack()
        address = self._page_address(self._port())
        self._socket = self._open.enter_context(connect(address, max_size=None, proxy=None, open_timeout=SECONDS))
        self._ids = itertools.count(1)
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        if dark:
            self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        if downloads is not None:
            self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def _port(self) -> int:
        file = Path(self._profile.name) / "DevToolsActivePort"
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if file.exists() and (lines := file.read_text().split()):
                return int(lines[0])
            assert self._process.poll() is None, "Chromium ended at once"
            time.sleep(0.05)
        raise AssertionError(f"Chromium did not start within {SECONDS} s")

    def _page_address(self, port: int) -> str:
        """Address of the first page, which may open after the port does."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=SECONDS) as answer:
                pages = [target for target in json.load(answer) if target["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
            time.sleep(0.05)
        raise AssertionError(f"Chromium opened no page within {SECONDS} s")

    def send(self, method: str, **parameters: Any) -> Any:
        """One command and its answer; events on the way are looked at."""
        n = next(self._ids)
        self._socket.send(json.dumps({"id": n, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=SECONDS))
            if message.get("id") == n:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._event(message)

    def _event(self, message: dict[str, Any]) -> None:
        p = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            d = p["exceptionDetails"]
            self.errors.append(d.get("exception", {}).get("description", d["text"]))
        elif message["method"] == "Log.entryAdded" and p["entry"]["level"] == "error":
            self.errors.append(f"{p['entry']['text']} {p['entry'].get('url', '')}")
        elif message["method"] == "Network.requestWillBeSent":
            self.requests.append(p["request"]["url"])

    def js(self, expression: str) -> Any:
        """Value of an expression in the page; promises are awaited."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Until an expression is true."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            found = self.js(f"(() => {{ try {{ return {expression}; }} catch {{ return false; }} }})()")
            if found:
                return found
            time.sleep(0.03)
        raise AssertionError(f"never true: {expression}; errors: {self.errors}; toasts: {self.text('#toasts')!r}")

    def open(self, url: str) -> None:
        """Load a page of the viewer and wait until its first tiles are there."""
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && !document.body.classList.contains('starting')")
        self.settled()

    def settled(self) -> None:
        """Until no tile and no job is on its way."""
        self.wait(
            "window.deo && [...deo.layers.values()].every((l) => !l.waiting) && document.getElementById('busy').hidden"
        )
        # Tiles are asked for in the frame after a move; by the page's own clock, which is late on a busy machine.
        frames = "requestAnimationFrame(() => requestAnimationFrame(done))"
        self.js(f"new Promise((done) => setTimeout(() => {frames}, 100))")
        self.wait("[...deo.layers.values()].every((l) => !l.waiting) && document.getElementById('busy').hidden")

    def text(self, selector: str) -> str:
        """Text of an element as it is seen."""
        return str(self.js(f"document.querySelector({selector!r})?.innerText ?? ''"))

    def click(self, x: float, y: float, *, times: int = 1, shift: bool = False) -> None:
        """Press and release the mouse at a place in the window."""
        at = {"x": x, "y": y, "button": "left", "modifiers": 8 if shift else 0}
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for n in range(1, times + 1):
            self.send("Input.dispatchMouseEvent", type="mousePressed", clickCount=n, **at)
            self.send("Input.dispatchMouseEvent", type="mouseReleased", clickCount=n, **at)

    def move(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, selector: str) -> None:
        """Click the middle of an element, scrolled to where it is seen."""
        self.js(f"document.querySelector({selector!r}).scrollIntoView({{block: 'nearest'}})")
        box = self.js(f"(() => {{ const b = document.querySelector({selector!r}).getBoundingClientRect();"
                      " return [b.x + b.width / 2, b.y + b.height / 2]; })()")  # fmt: skip
        self.click(*box)

    def place(self, lon: float, lat: float) -> tuple[float, float]:
        """Where a place is in the window."""
        x, y = self.js(
            f"(() => {{ const p = deo.map.latLngToContainerPoint([{lat}, {lon}]);"
            " const b = deo.map.getContainer().getBoundingClientRect(); return [p.x + b.x, p.y + b.y]; })()"
        )
        return x, y

    def key(self, key: str, *, modifiers: int = 0) -> None:
        """Press a key: "Enter", "Escape", "[" or a letter. Modifiers: 2 is Ctrl, 8 is Shift."""
        named = {
            "Enter": ("\r", 13),
            "Tab": ("\t", 9),
            "Escape": ("", 27),
            "Backspace": ("", 8),
            "ArrowRight": ("", 39),
        }
        text, code = named.get(key, (key, ord(key[0].upper())))
        common = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.send(
            "Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text and not modifiers & 2 else {})
        )
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def slide(self, selector: str, value: float) -> None:
        """Put a slider or a choice to a value, as a hand would."""
        self.js(
            f"(() => {{ const e = document.querySelector({selector!r}); e.value = {json.dumps(value)};"
            " for (const t of ['input', 'change']) e.dispatchEvent(new Event(t, {bubbles: true})); })()"
        )

    def picture(self, path: Path) -> Path:
        """Photograph the window."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
        return path

    def close(self) -> None:
        """End this browser."""
        try:
            self.send("Browser.close")
        except Exception:
            self._process.terminate()
        self._open.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
