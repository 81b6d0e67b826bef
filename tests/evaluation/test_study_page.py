"""The user study in a real browser (section 4.4): open, watch, answer, come back, save, report."""

from __future__ import annotations

import functools
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chromium
from videogen.evaluation.study import Study, build_study
from videogen.evaluation.study_report import report_study
from videogen.video import Video, write_video

pytestmark = [
    pytest.mark.skipif(chromium.MISSING is not None, reason=str(chromium.MISSING)),
    pytest.mark.timeout(400),  # a browser on a busy machine
]
PROMPTS = ("a red ball", '<img src=x onerror="document.title=1"></script>', "a star & a heart", "a box")
PLAYING = "['left', 'right'].every((id) => document.getElementById(id).currentTime > 0.05)"


def text(browser: chromium.Chromium, element: str) -> str:
    return str(browser.run("return document.getElementById(arguments[0]).textContent", element))


def source(browser: chromium.Chromium, side: str) -> str:
    return str(browser.run("return document.getElementById(arguments[0]).src", side)).rpartition("/")[2]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("study")
    for system, level in (("ours", 60), ("theirs", 160)):
        (root / system).mkdir()
        for index, prompt in enumerate(PROMPTS):
            frames = np.full((8, 48, 64, 3), level, np.uint8)
            write_video(Video(frames, 8.0, {"prompt": prompt}), root / system / f"{index}.mp4")
    return build_study([root / "ours", root / "theirs"], root / "study", seed=5)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Chromium]:
    with chromium.chromium(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def begin(browser: chromium.Chromium, address: str, name: str) -> None:
    browser.open(f"{address}?annotator={name}")
    browser.requested(), browser.complaints()  # forget what came before
    browser.click("#begin button")
    browser.wait(PLAYING)


def answer_by_keys(browser: chromium.Chromium, key: dict[str, Any]) -> None:
    """For "ours" in quality and "theirs" in the match, then on to the next pair."""
    ours = key["videos"][source(browser, "left")]["system"] == "ours"
    browser.press(*(("ArrowLeft", "ArrowRight") if ours else ("ArrowRight", "ArrowLeft")), "Enter")


def saved(browser: chromium.Chromium) -> Path:
    browser.click("#save")
    name = browser.run("return document.getElementById('saved').textContent.match(/answers-\\S+\\.json/)[0]")
    path = browser.downloads / name
    for _ in range(100):
        if path.exists():
            return path
        time.sleep(0.1)
    raise AssertionError(f"{path} was not saved")


def test_an_annotator_works_through_the_study_by_keyboard(study: Study, browser: chromium.Chromium, tmp_path: Path) -> None:
    key = json.loads(study.key.read_text())
    begin(browser, study.page.as_uri(), "Zo%C3%AB")
    assert text(browser, "place") == "Pair 1 of 4"
    assert browser.run("return [...document.querySelectorAll('video')].every((v) => v.loop && v.muted && v.videoWidth === 64)")

    browser.press("Enter")  # nothing is answered yet
    assert text(browser, "place") == "Pair 1 of 4"
    assert text(browser, "status") == "Please answer: Which video is of better quality?"
    browser.press("ArrowLeft", "Enter")
    assert text(browser, "status") == "Please answer: Which video matches the text better?"
    browser.press("ArrowUp")  # back to the first question, to answer both
    answer_by_keys(browser, key)
    assert text(browser, "place") == "Pair 2 of 4"

    browser.post("/refresh")  # progress is kept
    browser.wait(PLAYING)
    assert text(browser, "place") == "Pair 2 of 4"
    browser.click("#back")
    assert text(browser, "place") == "Pair 1 of 4"
    assert browser.run("return document.querySelectorAll('input:checked').length") == 2
    browser.press("Enter")

    browser.press(" ")
    assert browser.run("return document.getElementById('left').paused && document.getElementById('right').paused")
    for _ in range(3):
        answer_by_keys(browser, key)
    assert text(browser, "summary") == "You have compared all 4 pairs."
    path = saved(browser)
    assert path.name.startswith("answers-Zo-")
    assert browser.complaints() == []
    asked = [address for address in browser.requested() if not address.startswith(("chrome:", "data:", "blob:"))]
    assert asked
    assert all(address.startswith(study.page.parent.as_uri() + "/") for address in asked)
    assert not [address for address in asked if "key" in address]

    result = report_study(study.key, [path], tmp_path / "report.json")
    quality, match = result.details["comparisons"]
    assert quality["preferred"] == {"ours": 4, "theirs": 0}
    assert match["preferred"] == {"ours": 0, "theirs": 4}
    assert result.details["annotators"][0]["annotator"] == "Zoë"
    assert result.details["annotators"][0]["complete_trials"] == 4
    session = json.loads(path.read_text())
    assert {trial["trial"] for trial in session["trials"]} == set(key["trials"])
    swapped = [trial["left"] != key["trials"][trial["trial"]]["videos"][0] for trial in session["trials"]]
    assert sum(swapped) == 2  # sides are balanced
    assert all(trial["seconds"] > 0 and trial["at"] for trial in session["trials"])


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing."""


def test_it_works_from_a_server_by_mouse_with_a_video_that_does_not_load(
    study: Study, browser: chromium.Chromium, tmp_path: Path
) -> None:
    public = study.page.parent
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(public))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            begin(browser, f"http://127.0.0.1:{server.server_port}/", "Mouse")
            seen = browser.run("return document.getElementById('prompt').textContent")
            assert seen in PROMPTS
            assert browser.run("return document.getElementById('prompt').children.length + document.images.length") == 0
            for question in ("match", "quality"):
                browser.click(f"input[name={question}][value=right]")
            assert browser.run("return document.querySelectorAll('input:checked').length") == 2
            browser.click("#next")
            for _ in range(3):
                browser.run("document.getElementById('left').src = 'videos/missing.mp4'")
                browser.wait("!document.getElementById('broken').hidden")
                browser.click("#skip")
            assert text(browser, "summary") == "You have compared 1 of 4 pairs; 3 were skipped."
            path = saved(browser)
        finally:
            server.shutdown()
    result = report_study(study.key, [path], tmp_path / "report.json")
    assert result.samples == 1
    assert result.details["left_share"] == 0.0
    assert result.details["annotators"][0]["complete_trials"] == 1
