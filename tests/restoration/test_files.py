"""Statements about real video files in and out: times, colours, depth, rotation, audio, damage. No network needed."""

from __future__ import annotations

import itertools
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from video_files import add_tone, pictures, sound_of, write
from videogen.config import UserError
from videogen.restoration.sink import Sink
from videogen.restoration.source import FLATTENED, Frame, open_source
from videogen.video import read_video


def read(path: Path) -> tuple[Any, list[Frame]]:
    with open_source(path) as source:
        return source, [item for item in source.read() if isinstance(item, Frame)]


def copy(path: Path, output: Path, *, factor: int = 1, audio: bool = True) -> None:
    """Every frame as it is, `factor` times."""
    with open_source(path) as source:
        sink = Sink(output, output.suffix, source, factor, {}, audio)
        for item in source.read():
            if isinstance(item, av.Packet):
                sink.copy(item)
                continue
            for index in range(factor):
                sink.write(item.pixels, factor * item.pts + index * item.duration, item.duration)
        sink.close(whole=True)


def tags(path: Path) -> tuple[Any, ...]:
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        return context.colorspace, context.color_range, context.color_primaries, context.color_trc, context.pix_fmt


def times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def test_variable_times_come_in_and_go_out_exactly(tmp_path: Path) -> None:
    uneven = [0, 512, 700, 2048, 2049, 4096]
    path = write(tmp_path / "a.mp4", pictures(6), times=uneven)
    _, frames = read(path)
    assert [frame.pts for frame in frames] == uneven
    assert [frame.duration for frame in frames][:-1] == list(np.diff(uneven))
    copy(path, tmp_path / "b.mp4", factor=2)
    expected = [Fraction(2 * a + index * (b - a), 25600) for a, b in itertools.pairwise(uneven) for index in (0, 1)]
    assert times(tmp_path / "b.mp4")[:10] == expected


def test_duration_and_rate_stay_what_they_were(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", pictures(12), rate=Fraction(30000, 1001), time_base=Fraction(1, 30000))
    copy(path, tmp_path / "b.mp4", factor=4)
    with av.open(str(path)) as before, av.open(str(tmp_path / "b.mp4")) as after:
        a, b = before.streams.video[0], after.streams.video[0]
        assert b.duration * b.time_base == Fraction(12 * 1001, 30000)
        assert (b.average_rate, b.frames) == (4 * a.average_rate, 48)


@pytest.mark.parametrize(
    "kept",
    [(1, 1, 1, 1), (1, 2, 1, 1), (5, 1, 5, 5), (6, 2, 6, 6), (2, 0, 2, 2)],
    ids=["709", "709 full", "601", "jpeg", "none"],
)
def test_colours_and_their_tags_stay(tmp_path: Path, kept: tuple[int, ...]) -> None:
    pixels = pictures(3)
    path = write(tmp_path / "a.mp4", pixels, tags=kept)
    copy(path, tmp_path / "b.mp4")
    assert tags(tmp_path / "b.mp4")[2:4] == kept[2:4]
    assert tags(tmp_path / "b.mp4")[0] == kept[0]
    assert tags(tmp_path / "b.mp4")[1] in ((kept[1],) if kept[1] else (0, 1))
    first, second = (np.stack([frame.pixels for frame in read(name)[1]]) for name in (path, tmp_path / "b.mp4"))
    assert np.abs((first.astype(int) - pixels).mean((0, 1, 2))).max() < 2.5  # another matrix or range shifts them by more
    assert np.abs((first.astype(int) - second).mean((0, 1, 2))).max() < 2.5
    assert np.abs(first.astype(int) - second).mean() < 4


def test_ten_bits_stay_ten_bits(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", pictures(3), pix_fmt="yuv420p10le", tags=(9, 1, 9, 16))
    _, frames = read(path)
    assert frames[0].pixels.dtype == np.uint16
    assert len(np.unique(frames[0].pixels)) > 300
    copy(path, tmp_path / "b.mp4")
    assert tags(tmp_path / "b.mp4") == (9, 1, 9, 16, "yuv420p10le")
    copy(path, tmp_path / "b.webm")
    assert tags(tmp_path / "b.webm")[4] == "yuv420p"


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_rotation_is_applied_once(tmp_path: Path, degrees: int) -> None:
    pixels = pictures(2)
    path = write(tmp_path / "a.mp4", pixels, rotation=degrees)
    source, frames = read(path)
    upright = read_video(path).frames
    assert frames[0].pixels.shape == upright.shape[1:] == (source.height, source.width, 3)
    assert np.abs(frames[0].pixels.astype(int) - upright[0]).mean() < 3
    copy(path, tmp_path / "b.mp4")
    assert np.abs(read_video(tmp_path / "b.mp4").frames.astype(int) - upright).mean() < 4


@pytest.mark.parametrize("size", [(25, 33), (24, 33), (1, 1)])
def test_odd_sizes_gain_an_edge_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write(tmp_path / "a.mkv", pictures(2, *size), codec="ffv1", pix_fmt="yuv444p", options={})
    source, frames = read(path)
    assert frames[0].pixels.shape == (*size, 3) == (source.height, source.width, 3)
    copy(path, tmp_path / "b.mp4")
    assert read_video(tmp_path / "b.mp4").frames.shape[1:3] == tuple(side + side % 2 for side in size)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 24, 32, 4), np.uint8)
    pixels[:, :, 16:] = (200, 30, 60, 255)
    path = write(tmp_path / "a.mov", pixels, codec="qtrle", pix_fmt="argb", options={})
    source, frames = read(path)
    assert source.notes == [FLATTENED]
    assert (frames[0].pixels[:, :16] == 255).all()
    assert (frames[0].pixels[:, 16:] == (200, 30, 60)).all()
    copy(path, tmp_path / "b.mp4")
    back = read_video(tmp_path / "b.mp4").frames[0].astype(int)
    assert np.abs(back[12, 4] - 255).max() < 6
    assert np.abs(back[12, 27] - (200, 30, 60)).max() < 10


def test_grey_stays_grey(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", pictures(2)[..., :1].repeat(3, -1), codec="ffv1", pix_fmt="gray", options={})
    _, frames = read(path)
    assert np.ptp(frames[0].pixels.astype(int), axis=-1).max() <= 1
    copy(path, tmp_path / "b.mp4")
    assert np.abs(read_video(tmp_path / "b.mp4").frames[0].astype(int) - frames[0].pixels).mean() < 3


@pytest.mark.parametrize(("ending", "sound"), [(".mp4", "aac"), (".mkv", "aac"), (".mov", "aac"), (".mkv", "pcm_s16le")])
def test_audio_packets_are_copied_byte_by_byte(tmp_path: Path, ending: str, sound: str) -> None:
    path = write(tmp_path / ("a.mp4" if sound == "aac" else "a.mkv"), pictures(25), sound=sound)
    copy(path, tmp_path / f"b{ending}", factor=2)
    assert sound_of(tmp_path / f"b{ending}") == sound_of(path)
    copy(path, tmp_path / f"c{ending}", audio=False)
    with av.open(str(tmp_path / f"c{ending}")) as container:
        assert not container.streams.audio


def test_audio_that_a_container_cannot_hold_is_refused_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", pictures(2), sound="aac")
    with pytest.raises(UserError, match=r"\.webm cannot hold the audio of .*aac.*: write a \.mkv, or give --no-audio"):
        copy(path, tmp_path / "b.webm")
    copy(path, tmp_path / "b.webm", audio=False)


def test_what_is_no_video_is_refused_in_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "text.mp4").write_text("#EXTM3U\nfile:///etc/passwd\n")
    (tmp_path / "empty.mp4").touch()
    whole = write(tmp_path / "whole.mp4", pictures(30), options={"movflags": "faststart", "g": "5"})
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:400])
    with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as output:
        add_tone(output, "aac")()
    for name, complaint in {
        "fifo.mp4": "not a regular file",
        "text.mp4": "not a video",
        "empty.mp4": "not a video",
        "cut.mp4": "not a video",
        "sound.m4a": "has no video in it, only audio",
        "missing.mp4": "cannot read",
        ".": "cannot read|not a regular file",
    }.items():
        with pytest.raises(UserError, match=complaint) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_video_that_breaks_off_is_used_as_far_as_it_goes_and_that_is_said(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mkv", pictures(50))
    (tmp_path / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    source, frames = read(tmp_path / "cut.mkv")
    assert 10 < len(frames) < 50
    assert [note for note in source.notes if "ends after" in note and "2.0 s" in note]
    assert not read(whole)[0].notes
