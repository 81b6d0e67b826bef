"""A headless Chromium for tests, driven through chromedriver's W3C WebDriver protocol with the standard library alone."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
MISSING = None if BROWSER and DRIVER else "no chromium with chromedriver here (apt-get install chromium chromium-driver)"
KEYS = {"Enter": "\ue007", "ArrowLeft": "\ue012", "ArrowUp": "\ue013", "ArrowRight": "\ue014", "ArrowDown": "\ue015"}


class Chromium:
    """One browser with one page."""

    def __init__(self, port: int, options: dict[str, Any], downloads: Path) -> None:
        self.downloads = downloads
        self._address = f"http://127.0.0.1:{port}"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        wanted = {"capabilities": {"alwaysMatch": options}}
        self._session = "/session/" + self._call("POST", "/session", wanted)["sessionId"]

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, {"Content-Type": "application/json"}, method=method)
        with self._opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def post(self, path: str, **body: Any) -> Any:
        return self._call("POST", self._session + path, body)

    def open(self, address: str) -> None:
        self.post("/url", url=address)

    def run(self, script: str, *arguments: Any) -> Any:
        """The body of a function, and what it returns."""
        return self.post("/execute/sync", script=script, args=arguments)

    def wait(self, condition: str) -> None:
        """Until the expression is true: looked at ten times a second for half a minute."""
        script = "const [done] = [...arguments].slice(-1); let n = 0; const look = () => { try { if (%s) return done(true); }"
        script = (script + " catch {} if (++n > 300) return done(false); setTimeout(look, 100); }; look();") % condition
        assert self.post("/execute/async", script=script, args=[]), condition

    def press(self, *keys: str) -> None:
        """Real key strokes, wherever the focus is."""
        strokes = [
            {"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")
        ]  # a key is let go before the next one
        self.post("/actions", actions=[{"type": "key", "id": "keys", "actions": strokes}])

    def click(self, selector: str) -> None:
        """A real pointer on the first element that matches."""
        element = self.post("/element", using="css selector", value=selector)
        self.post(f"/element/{next(iter(element.values()))}/click")

    def requested(self) -> list[str]:
        """Every address asked for since the last call."""
        entries = [json.loads(entry["message"])["message"] for entry in self.post("/se/log", type="performance")]
        return [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """What the page wrote to the console since the last call: errors, breaches of its policy."""
        return [entry["message"] for entry in self.post("/se/log", type="browser")]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", self._session + "/screenshot")))

    def quit(self) -> None:
        self._call("DELETE", self._session)


@contextmanager
def chromium(folder: Path, size: tuple[int, int] = (1280, 900)) -> Iterator[Chromium]:
    """A fresh browser that keeps its profile in `folder` and downloads into folder/downloads."""
    assert BROWSER
    assert DRIVER
    downloads = folder / "downloads"
    downloads.mkdir()
    arguments = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'profile'}",
        f"--window-size={size[0]},{size[1]}", "--hide-scrollbars",
    ]  # fmt: skip
    options = {
        "goog:chromeOptions": {
            "binary": BROWSER,
            "args": arguments,
            "prefs": {"download.default_directory": str(downloads), "download.prompt_for_download": False},
        },
        "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
        "timeouts": {"script": 40_000},
    }
    with subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        try:
            assert driver.stdout
            found = (re.search(r"started successfully on port (\d+)", line) for line in driver.stdout)
            port = next(int(match[1]) for match in found if match)
            browser = Chromium(port, options, downloads)
            try:
                yield browser
            finally:
                browser.quit()
        finally:
            driver.terminate()
