"""Statements about video and image files, on real ones."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from videogen.config import UserError
from videogen.video import (
    Video,
    check_output,
    contact_strip,
    note_path,
    read_image,
    read_provenance,
    read_video,
    write_video,
)

CLIPS = Path(__file__).parents[2] / "shared" / "data" / "clips"
PROVENANCE = {"prompt": "a red ball 🎈 " + "x" * 10_000, "seed": 2**63 - 1, "options": {"fps": None}}


def clip(frames: int = 9, height: int = 48, width: int = 64, fps: float = 8.0, provenance: dict | None = None) -> Video:
    """A smooth gradient that slides."""
    t, y, x = np.mgrid[:frames, :height, :width]
    pixels = np.stack([x * 3 + t * 4, y * 4, 200 - x - t], axis=-1).clip(0, 255).astype(np.uint8)
    return Video(pixels, fps, provenance or {})


def mean_error(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(int) - second.astype(int)).mean())


@pytest.mark.parametrize("ending", [".mp4", ".webm"])
@pytest.mark.parametrize("fps", [4, 24000 / 1001, 12.5, 29.97, 32, 0.5])
def test_frames_and_rate_survive_a_file(tmp_path: Path, ending: str, fps: float) -> None:
    video = clip(fps=fps)
    write_video(video, tmp_path / f"a{ending}")
    back = read_video(tmp_path / f"a{ending}")
    assert back.frames.shape == video.frames.shape
    assert back.fps == pytest.approx(fps, rel=1e-9 if ending == ".mp4" else 1e-3)
    assert mean_error(back.frames, video.frames) < 3


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (20, 120, 230), (128, 128, 128)])
def test_colours_survive_a_file(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    for ending in (".mp4", ".webm", ".gif"):
        write_video(Video(np.full((3, 16, 16, 3), colour, np.uint8), 8), tmp_path / f"a{ending}")
        back = read_video(tmp_path / f"a{ending}")
        assert np.abs(back.frames.astype(int) - colour).max() <= 4, ending


def test_mp4_is_tagged_bt709_plays_in_browsers_and_starts_with_its_index(tmp_path: Path) -> None:
    import av

    write_video(clip(), tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.codec.canonical_name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("size", [(1, 1), (35, 51), (35, 52)])
def test_odd_sizes_gain_an_edge_pixel_in_mp4_only(tmp_path: Path, size: tuple[int, int]) -> None:
    video = clip(3, *size)
    for ending in (".mp4", ".webm", ".gif"):
        write_video(video, tmp_path / f"a{ending}")
        back = read_video(tmp_path / f"a{ending}").frames
        even = tuple(side + side % 2 for side in size)
        assert back.shape[1:3] == (even if ending == ".mp4" else size)
        assert mean_error(back[:, : size[0], : size[1]], video.frames) < 6


@pytest.mark.parametrize(("fps", "frames"), [(8, 25), (32, 25), (24000 / 1001, 25), (64, 64)])
def test_gif_lasts_as_long_as_the_video(tmp_path: Path, fps: float, frames: int) -> None:
    video = clip(frames, fps=fps)
    write_video(video, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as image:
        milliseconds = 0
        for index in range(image.n_frames):
            image.seek(index)
            milliseconds += image.info["duration"]
            assert image.info["duration"] >= 20
    assert milliseconds / 1000 == pytest.approx(video.seconds, abs=0.011)


def test_folder_of_pngs_is_lossless(tmp_path: Path) -> None:
    video = clip(3, provenance=PROVENANCE)
    write_video(video, f"{tmp_path}/some.frames/")
    assert sorted(os.listdir(tmp_path / "some.frames")) == ["00000.png", "00001.png", "00002.png", "provenance.json"]
    assert np.array_equal(np.asarray(read_image(tmp_path / "some.frames" / "00002.png")), video.frames[2])


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a"])
def test_provenance_is_in_the_file_and_beside_it(tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    write_video(clip(3, provenance=PROVENANCE), output)
    assert read_provenance(output) == PROVENANCE
    note = json.loads(note_path(output).read_text(encoding="utf-8"))
    assert note == {"made_by": "videogen", **PROVENANCE}
    if name == "a.mp4":
        assert read_video(output).provenance == PROVENANCE
        assert note_path(output) == tmp_path / "a.json"


def test_no_provenance_writes_one_file(tmp_path: Path) -> None:
    write_video(clip(2), tmp_path / "a.mp4")
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert read_provenance(tmp_path / "a.mp4") == {}


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a"])
def test_existing_output_is_kept_unless_overwrite(tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    write_video(clip(4, provenance={"seed": 1}), output)
    with pytest.raises(UserError, match=r"exists; .*--overwrite"):
        check_output(output)
    with pytest.raises(UserError, match=r"exists; .*--overwrite"):
        write_video(clip(2, provenance={"seed": 2}), output)
    assert read_provenance(output) == {"seed": 1}
    check_output(output, overwrite=True)
    write_video(clip(2, provenance={"seed": 2}), output, overwrite=True)
    assert read_provenance(output) == {"seed": 2}
    if name == "a":
        assert sorted(os.listdir(output)) == ["00000.png", "00001.png", "provenance.json"]
    assert not [entry for entry in os.listdir(tmp_path) if entry.startswith(".")]


def test_overwrite_never_takes_what_is_not_ours(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    (tmp_path / "package.json").write_text('{"name": "mine"}')
    (tmp_path / "folder.mp4").mkdir()
    for output, complaint in (
        (home, "other files"),
        (tmp_path / "package.mp4", "package.json"),
        (tmp_path / "folder.mp4", "not a regular file"),
    ):
        with pytest.raises(UserError, match=complaint):
            check_output(output, overwrite=True)
        with pytest.raises(UserError, match=complaint):
            write_video(clip(2, provenance={"seed": 1}), output, overwrite=True)
    assert (home / "thesis.txt").read_text() == "years of work"
    assert json.loads((tmp_path / "package.json").read_text()) == {"name": "mine"}


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("a.avi", r"unknown ending '.avi'; use .mp4, .webm, .gif or a folder of PNGs"),
        ("missing/a.mp4", "there is no folder"),
        ("x" * 300 + ".mp4", "cannot write"),
        ("a\0.mp4", "cannot write"),
        ("", "empty"),
    ],
)
def test_outputs_that_cannot_be_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=complaint) as caught:
        check_output(name)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_places_that_refuse_files_are_found_out_beforehand() -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc here: a folder nobody may write to, not even root")
    with pytest.raises(UserError, match="cannot write"):
        check_output("/proc/self/a.mp4")


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    too_wide = Video(np.zeros((1, 2, 70_000, 3), np.uint8), 8)
    for ending in (".mp4", ".webm"):
        with pytest.raises(UserError, match="cannot write"):
            write_video(too_wide, tmp_path / f"a{ending}")
    assert os.listdir(tmp_path) == []


def test_video_refuses_what_is_none() -> None:
    for frames in (np.zeros((2, 4, 4, 3), np.float32), np.zeros((0, 4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            Video(frames, 8)
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fps"):
            Video(np.zeros((2, 4, 4, 3), np.uint8), fps)


def test_damaged_and_foreign_videos_are_one_clear_error(tmp_path: Path) -> None:
    write_video(clip(60, 96, 96), tmp_path / "whole.mp4")
    whole = (tmp_path / "whole.mp4").read_bytes()
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\n{tmp_path}/whole.mp4\n#EXT-X-ENDLIST\n".encode()
    for name, data in {
        "empty": b"",
        "text": b"this is no video\n" * 100,
        "head": whole[:50],
        "index-only": whole[:600],
        "two-thirds": whole[: len(whole) * 2 // 3],
        "hls": playlist,
        "concat": f"ffconcat version 1.0\nfile {tmp_path}/whole.mp4\n".encode(),
    }.items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"{name}.mp4") as caught:
            read_video(path)
        assert "\n" not in str(caught.value)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    for path in (tmp_path / "fifo.mp4", tmp_path, Path("/dev/zero")):
        for read in (read_video, read_image):
            with pytest.raises(UserError, match="not a regular file"):
                read(path)
    for path in ("http://localhost/a.mp4", "a\0.mp4", tmp_path / "missing.mp4"):
        with pytest.raises(UserError, match="cannot read"):
            read_video(path)


def test_caps_are_kept(tmp_path: Path) -> None:
    write_video(clip(9, fps=1), tmp_path / "a.mp4")
    assert len(read_video(tmp_path / "a.mp4", max_frames=9, max_pixels=48 * 64, max_seconds=9)) == 9
    for caps in ({"max_frames": 8}, {"max_pixels": 48 * 64 - 1}, {"max_seconds": 7.5}, {"max_bytes": 9 * 48 * 64 * 3 - 1}):
        with pytest.raises(UserError, match=r"a\.mp4"):
            read_video(tmp_path / "a.mp4", **caps)


def test_a_phones_rotation_is_applied(tmp_path: Path) -> None:
    video = clip(3)
    write_video(video, tmp_path / "a.mp4")
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # a quarter clockwise
    (tmp_path / "turned.mp4").write_bytes(data)
    turned = read_video(tmp_path / "turned.mp4").frames
    assert turned.shape == (3, 64, 48, 3)
    assert mean_error(turned, np.rot90(video.frames, -1, axes=(1, 2))) < 3


def test_real_clip_is_read_whole() -> None:
    if not (CLIPS / "nasa.mp4").exists():
        pytest.skip(f"{CLIPS / 'nasa.mp4'} is not here: real data is not part of the repository")
    video = read_video(CLIPS / "nasa.mp4")
    assert (video.frames.shape, video.fps) == ((325, 180, 320, 3), 25)
    assert video.frames.std() > 20


def gradient(mode: str) -> Image.Image:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    if mode == "I;16":
        return Image.fromarray(ramp.astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(ramp.astype(np.float32) / 255)
    image = Image.fromarray(ramp).convert("RGB")
    return image.quantize(256) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        *(("L", "png"), ("RGB", "png"), ("RGBA", "png"), ("LA", "png"), ("P", "png"), ("I;16", "png"), ("F", "tiff")),
        *(("I;16", "tiff"), ("CMYK", "jpg"), ("CMYK", "tiff"), ("RGB", "webp"), ("RGB", "bmp"), ("L", "gif"), ("YCbCr", "jpg")),
    ],
)
def test_images_of_any_mode_become_the_same_rgb(tmp_path: Path, mode: str, ending: str) -> None:
    gradient(mode).save(tmp_path / f"a.{ending}")
    image = read_image(tmp_path / f"a.{ending}")
    assert (image.mode, image.size) == ("RGB", (256, 64))
    assert mean_error(np.asarray(image), np.asarray(gradient("RGB"))) < 4


def test_transparency_is_over_white_and_exif_orientation_applied(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(read_image(tmp_path / "clear.png")).min() == 255
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255  # the left half is light
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise: the light half comes to the top
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    upright = np.asarray(read_image(tmp_path / "turned.png"))
    assert upright.shape == (16, 8, 3)
    assert upright[:8].min() == 255
    assert upright[8:].max() == 0


def test_damaged_and_foreign_images_are_one_clear_error(tmp_path: Path) -> None:
    Image.fromarray(clip(1, 64, 64).frames[0]).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    header = bytearray(whole)
    header[16:24] = struct.pack(">II", 60_000, 60_000)  # claims 3.6 gigapixels
    for name, data in {"cut": whole[: len(whole) // 2], "text": b"no image", "empty": b"", "bomb": bytes(header)}.items():
        (tmp_path / f"{name}.png").write_bytes(data)
        with pytest.raises(UserError, match=rf"{name}\.png"):
            read_image(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match="too large"):
        read_image(tmp_path / "whole.png", max_pixels=64 * 64 - 1)


def test_contact_strip_shows_first_and_last(tmp_path: Path) -> None:
    video = clip(9)
    strip = np.asarray(contact_strip(video, 3))
    assert strip.shape == (48, 3 * 64, 3)
    assert np.array_equal(strip, np.concatenate([video.frames[0], video.frames[4], video.frames[8]], axis=1))
