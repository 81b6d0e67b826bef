"""Statements about the classical checker: it reads true clips rightly, and does not see what is not there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cv2")
pytest.importorskip("torch")

from videogen.cli import main
from videogen.data.diorama import Diorama, Labels
from videogen.evaluation.diorama_benchmark import ASKED, CHECKER, Agreement, held_out
from videogen.evaluation.diorama_checker import ATTRIBUTES, agreement, check
from videogen.evaluation.result import read_result
from videogen.evaluation.videos import Sample

WORLD = Diorama(128, 16, (4.0,), seed=3)
CLIPS = [
    Labels("red", "ball", "moves left", "quickly", "meadow", "sunset"),
    Labels("blue", "box", "spins", "", "desert", "day", camera="pans right"),
    Labels("white", "star", "circles", "slowly", "city", "night", weather="rain"),
    Labels("yellow", "heart", "shrinks", "", "sea", "day", camera="zooms in"),
    Labels("black", "ring", "rests", "", "snowfield", "sunset", weather="snow"),
    Labels("green", "triangle", "bounces", "slowly", "mountains", "day", camera="pans left"),
]


@pytest.mark.parametrize("labels", CLIPS, ids=lambda labels: f"{labels.colour} {labels.shape}")
def test_a_true_clip_is_read_rightly(labels: Labels) -> None:
    reading = check(WORLD.render(labels, 7).frames, 4.0)
    assert {name: getattr(reading, name) for name in ATTRIBUTES} == dataclasses.asdict(labels)
    found = agreement(reading, labels)
    assert all(found.values())
    assert ("speed" in found) == (labels.motion != "rests")


def test_a_still_picture_rests_whatever_was_asked() -> None:
    first = WORLD.render(CLIPS[0], 7).frames[:1]
    reading = check(first.repeat(16, axis=0), 4.0)
    assert (reading.colour, reading.shape, reading.motion, reading.camera) == ("red", "ball", "rests", None)
    assert not agreement(reading, CLIPS[0])["all"]


def test_the_way_back_is_another_motion() -> None:
    reading = check(WORLD.render(CLIPS[0], 7).frames[::-1], 4.0)
    assert (reading.motion, reading.speed) == ("moves right", "quickly")


def test_crumbs_in_one_place_are_no_weather() -> None:
    """What glitters in a quarter of the sky is not snow, however much of it there is; a little everywhere is."""
    labels = Labels("red", "ball", "rests", "", "mountains", "day")
    rng = np.random.default_rng(0)
    for columns, weather in ((32, None), (128, "snow")):
        frames = WORLD.render(labels, 7).frames.copy()
        glitter = rng.random((16, 56, columns)) < (0.3 if weather is None else 0.06)
        frames[:, :56, :columns][glitter] = 255
        assert check(frames, 4.0).weather == weather


def test_without_an_object_none_is_seen() -> None:
    for frames in (np.full((16, 64, 64, 3), 128, np.uint8), np.zeros((2, 32, 32, 3), np.uint8)):
        reading = check(frames, 4.0)
        assert (reading.colour, reading.shape, reading.motion, reading.speed) == (None,) * 4
    for seed in range(3):  # what an untrained network makes: clouds of colour
        small = np.random.default_rng(seed).integers(0, 256, (4, 6, 6, 3)).astype(np.uint8)
        check(np.stack([np.asarray(Image.fromarray(frame).resize((64, 64))) for frame in small]), 4.0)
    noise = check(np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3)).astype(np.uint8), 4.0)
    assert noise.shape is None


def test_what_is_no_video_is_refused() -> None:
    for frames in (np.zeros((1, 8, 8, 3), np.uint8), np.zeros((4, 8, 8), np.uint8), np.zeros((4, 8, 8, 3))):
        with pytest.raises(ValueError, match="a video to check is uint8"):
            check(frames, 4.0)


def test_prompts_are_held_out_and_say_what_is_asked() -> None:
    labels, prompts = held_out(40)
    again, same = held_out(20)
    assert (again, same.texts) == (labels[:20], prompts.texts[:20])
    assert all(each.colour in said or "violet" in said for each, said in zip(labels, prompts.texts, strict=True))
    assert len(set(prompts.texts)) == 40


def test_two_processes_count_what_one_does() -> None:
    samples = [Sample(i, str(i), WORLD.render(labels, 7).frames, 4.0, "128x128") for i, labels in enumerate(CLIPS[:2])]
    swapped = [CLIPS[0], dataclasses.replace(CLIPS[1], colour="red")]
    whole, first, second = Agreement(swapped), Agreement(swapped), Agreement(swapped)
    told = whole.add(samples)
    assert told["wrong"].tolist() == ["", "colour"]
    first.add(samples[1:])
    second.add(samples[:1])
    first.merge(second.state())
    assert first.numbers() == whole.numbers()
    rates = {number.metric: number.value for number in whole.numbers()}
    assert rates == {f"diorama_{name}": 0.5 if name in ("colour", "all") else 1.0 for name in ASKED}
    colour = whole.numbers()[0]
    assert colour.details is not None
    assert colour.details["by_word"] == {"red": [1, 2]}
    assert colour.interval is not None
    assert colour.interval[0] < 0.5 < colour.interval[1]


def test_the_checker_is_measured_on_true_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "diorama", "--true-clips", "64", "--count", "3", "--quiet", "-o", str(tmp_path / "out")]
    assert main(command) == 0
    assert capsys.readouterr().out.count("| diorama_") == len(ASKED)
    result = read_result(tmp_path / "out" / "diorama_place.json")
    assert (result.value, result.samples, result.fingerprint["protocol"]["checker"]) == (1.0, 3, CHECKER)
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [line["place"] for line in lines] == [labels.place for labels in held_out(3)[0]]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "one of the arguments --model --true-clips is required"),
        (["--model", "mini", "--true-clips", "64"], "not allowed with"),
        (["--true-clips", "7"], "--true-clips"),
        (["--true-clips", "64", "--count", "0"], "--count"),
        (["--model", "nowhere/at-all"], "neither a folder nor a hub id"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["evaluate", "diorama", *options, "--quiet", "-o", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert complaint in printed
    assert printed.count("\n") == 1
