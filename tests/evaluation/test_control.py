"""Statements about what steers a video: the judge is right on true clips, and a pipeline is measured and resumed as a whole."""

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
from videogen.data.diorama import Diorama
from videogen.evaluation.control import ASKED, PICTURES, STRAIGHT, motions_shown, own_reference, scenes, steps_at_rates
from videogen.evaluation.diorama_checker import Reading, check
from videogen.evaluation.videos import Sample
from videogen.video import read_video

WORLD = scenes(2)


def readings(motions: tuple[str, ...], fps: float) -> list[Reading]:
    """What the checker sees in what a perfect model would make of a scene."""
    world = Diorama(96, 8, (fps,), seed=8)
    asked = (dataclasses.replace(WORLD[0].labels, motion=motion) for motion in motions)
    return [check(world.render(labels, 3).frames, fps) for labels in asked]


@pytest.fixture(scope="module")
def at_four() -> list[Reading]:
    return readings(ASKED, 4.0)


def test_true_motions_are_seen(at_four: list[Reading]) -> None:
    assert motions_shown(at_four).value == 1.0
    others = motions_shown(at_four[::-1])
    assert others.details is not None
    assert (others.value, others.details["by_word"]) == (0.0, {motion: [0, 1] for motion in ASKED})


def test_a_true_step_halves_at_twice_the_rate(at_four: list[Reading]) -> None:
    measured = steps_at_rates(at_four, readings(STRAIGHT, 8.0))
    assert measured is not None
    assert measured.value == pytest.approx(0.5, abs=0.05)
    assert measured.details is not None
    assert measured.details["pairs"] == len(STRAIGHT)
    same = steps_at_rates(at_four, [at_four[ASKED.index(motion)] for motion in STRAIGHT])
    assert same is not None
    assert same.value == 1.0


def test_where_nothing_moves_there_is_no_ratio() -> None:
    nothing = check(np.full((4, 32, 32, 3), 128, np.uint8), 4.0)
    assert steps_at_rates([nothing] * len(ASKED), [nothing] * len(STRAIGHT)) is None


def test_a_video_is_known_by_its_last_frame() -> None:
    references = [picture.image for scene in WORLD for picture in scene.pictures if picture.image is not None]
    assert len({each.tobytes() for each in references}) == 2 * PICTURES
    kept = [Sample(index, str(index), np.stack([each] * 3), 4.0, "") for index, each in enumerate(references)]
    assert own_reference(kept, references).value == 1.0
    swapped = [dataclasses.replace(each, frames=kept[each.index ^ 1].frames) for each in kept]
    assert own_reference(swapped, references).value == 0.0
    left = [dataclasses.replace(each, frames=np.concatenate([each.frames[:2], kept[0].frames[:1]])) for each in kept]
    assert own_reference(left[:PICTURES], references).value == 1 / PICTURES


def test_a_pipeline_is_measured_and_taken_up_again(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (50, 30), "orange").save(tmp_path / "mine" / "photo.jpg")
    output = tmp_path / "out"
    command = [
        "evaluate", "control", "--model", str(tiny_folder), "--count", "1", "--num-frames", "4", "--steps", "1",
        "--pictures", str(tmp_path / "mine"), "--generate-batch", "3", "--quiet", "-o", str(output),
    ]  # fmt: skip
    assert main(command) == 0
    table = capsys.readouterr().out
    names = sorted(path.stem for path in output.glob("control_*.json"))
    always = ["control_first_frame_psnr", "control_motions", "control_pictures_psnr", "control_references"]
    assert [
        name for name in names if name != "control_step_at_twice_the_rate"
    ] == always  # an untrained network may show nothing
    assert all(name in table for name in names)
    parts = {name: sorted((output / name / "videos").glob("*.mp4")) for name in ("references", "motions", "twice_the_rate")}
    assert [len(paths) for paths in parts.values()] == [4, 4, 2]
    assert read_video(parts["twice_the_rate"][0]).fps == 2 * read_video(parts["motions"][0]).fps
    given = json.loads((output / "pictures" / "videos" / "000000.json").read_text())["reference"]
    assert given["name"].endswith("photo.jpg")
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.mp4")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.mp4")} == before
    assert all((output / name).stat().st_size > 1000 for name in ("references.png", "motions.png", "pictures.png"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "--model"),
        (["--model", "mini", "--count", "0"], "--count"),
        (["--model", "mini", "--pictures", "."], "no image in"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "control", *options, "--quiet", "-o", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert complaint in printed
    assert printed.count("\n") == 1
    assert not list(tmp_path.rglob("*.mp4"))
