"""Statements about the README's pictures: all of them from any pipeline, the same ones again, taken up where they were left."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("cv2")
pytest.importorskip("torch")

from videogen.cli import main
from videogen.evaluation.gallery import PROMPTS


def test_every_picture_is_drawn_and_a_second_run_draws_the_same(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "gallery"
    command = ["gallery", "--model", str(tiny_folder), "--steps", "1", "--generate-batch", "6", "--quiet", "-o", str(output)]
    assert main(command) == 0
    pictures = [output / f"{name}.jpg" for name in ("prompts", "references", "motions", "interpolation", "decoder")]
    assert capsys.readouterr().out.splitlines()[-5:] == [str(picture) for picture in pictures]
    videos = sorted((output / "made" / "prompts" / "videos").glob("*.mp4"))
    assert len(videos) == len(PROMPTS)
    for picture in pictures:
        with Image.open(picture) as opened:
            assert opened.format == "JPEG"
            assert min(opened.size) > 200
    before = {path: path.read_bytes() for path in pictures}
    made = {path: path.stat().st_mtime_ns for path in videos}
    assert main(command) == 0
    assert {path: path.read_bytes() for path in pictures} == before
    assert {path: path.stat().st_mtime_ns for path in videos} == made
