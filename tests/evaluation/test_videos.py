"""Statements about folders of videos as samples: order, sampling, and what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from videogen.config import UserError
from videogen.evaluation.videos import Sampling, VideoFolderSamples, prompts_of
from videogen.video import Video, write_video


def video(frames: int = 8, height: int = 32, width: int = 48, fps: float = 8, shade: int = 0, **note: str) -> Video:
    """Frame i is a grey of 10 i + shade, so that it can be told which frames were taken."""
    greys = (10 * np.arange(frames) + shade).astype(np.uint8)
    return Video(np.broadcast_to(greys[:, None, None, None], (frames, height, width, 3)).copy(), fps, note)


def shades(frames: np.ndarray) -> list[int]:
    return [round(float(value) / 10) for value in frames.mean((1, 2, 3))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes, out of order on disk, of other sizes, rates, lengths and kinds of file."""
    place = tmp_path / "videos"
    (place / "b").mkdir(parents=True)
    (place / "a").mkdir()
    write_video(video(12, 40, 32, 24), place / "b" / "z.webm")
    write_video(video(9, prompt="a red ball"), place / "a" / "y.mp4")
    write_video(video(8), place / "a" / "x")  # a folder of PNGs
    (place / "notes.txt").write_text("no video")
    (place / ".hidden").mkdir()
    (place / ".hidden" / "h.mp4").write_bytes(b"")
    return place


def test_samples_come_by_name_at_one_size_and_length(folder: Path) -> None:
    samples = VideoFolderSamples(folder, Sampling(4, 2, 32))
    assert samples.names == ["a/x", "a/y.mp4", "b/z.webm"]
    found = list(samples.samples())
    assert [sample.frames.shape for sample in found] == [(4, 32, 32, 3)] * 3
    assert [shades(sample.frames) for sample in found] == [[0, 2, 4, 6]] * 3
    assert [sample.fps for sample in found] == [None, 4, 12]  # every second frame; PNGs without a note say no rate
    assert [sample.source for sample in found] == ["48x32", "48x32", "32x40"]
    assert samples.sizes == {"48x32": 2, "32x40": 1}


def test_ranks_share_the_samples(folder: Path) -> None:
    samples = VideoFolderSamples(folder, Sampling(2))
    shares = [[sample.index for sample in samples.samples(rank, 2)] for rank in range(2)]
    assert shares == [[0, 2], [1]]


def test_without_a_length_or_size_all_is_taken(folder: Path) -> None:
    found = list(VideoFolderSamples(folder, Sampling(None, 1, None)).samples())
    assert [sample.frames.shape for sample in found] == [(8, 32, 48, 3), (9, 32, 48, 3), (12, 40, 32, 3)]


def test_the_central_square_of_the_short_side_is_kept() -> None:
    picture = np.zeros((40, 120, 3), np.uint8)
    picture[:, 40:80] = 255
    square = Sampling(2, 1, 20).square(Image.fromarray(picture))
    assert square.shape == (20, 20, 3)
    assert square.mean() > 250


def write_bad(folder: Path) -> None:
    (folder / "a" / "corrupt.mp4").write_bytes((folder / "a" / "y.mp4").read_bytes()[:400])
    write_video(video(1), folder / "a" / "one.mp4")


def test_a_bad_video_among_good_ones_is_named(folder: Path) -> None:
    write_bad(folder)
    with pytest.raises(UserError, match=r"corrupt\.mp4.*--skip-bad"):
        list(VideoFolderSamples(folder, Sampling(4)).samples())


def test_skipped_videos_are_counted_and_keep_their_index(folder: Path) -> None:
    write_bad(folder)
    samples = VideoFolderSamples(folder, Sampling(4), skip_bad=True)
    assert [sample.index for sample in samples.samples()] == [2, 3, 4]
    assert [name for name, _ in samples.skipped] == ["a/corrupt.mp4", "a/one.mp4"]
    assert "too few frames: 1 of 4" in samples.skipped[1][1]
    assert len(list(samples.samples())) == 3  # again: counted anew
    assert len(samples.skipped) == 2


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no video in"):
        VideoFolderSamples(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        VideoFolderSamples(tmp_path / "nothing")


@pytest.mark.parametrize("values", [(1,), (16, 0), (16, 1, 8), (10**6,)])
def test_impossible_sampling_is_refused(values: tuple[int, ...]) -> None:
    with pytest.raises(UserError):
        Sampling(*values)


def test_prompts_of_videos(folder: Path, tmp_path: Path) -> None:
    samples = VideoFolderSamples(folder, Sampling(2))
    lines = tmp_path / "prompts.txt"
    lines.write_text("one\ntwo\n\nthree\n")
    said = prompts_of(samples, lines)
    assert [said(index) for index in range(3)] == ["one", "two", "three"]
    table = tmp_path / "captions.csv"
    table.write_text('file,caption\nb/z.webm,"a, b"\na/x,c\na/y.mp4,d\n')
    said = prompts_of(samples, table)
    assert [said(index) for index in range(3)] == ["c", "d", "a, b"]
    (folder / "b" / "z.txt").write_text("a  blue\nbox")
    said = prompts_of(samples, None)
    assert [said(1), said(2)] == ["a red ball", "a blue box"]
    with pytest.raises(UserError, match="nothing says what"):
        said(0)


def test_prompts_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    samples = VideoFolderSamples(folder, Sampling(2))
    lines = tmp_path / "prompts.txt"
    lines.write_text("one\ntwo")
    with pytest.raises(UserError, match="2 prompts for 3 videos"):
        prompts_of(samples, lines)
    table = tmp_path / "captions.csv"
    table.write_text("file,caption\na/x,c\n")
    with pytest.raises(UserError, match=r"no caption for a/y\.mp4"):
        prompts_of(samples, table)
    table.write_text("video,text\na/x,c\n")
    with pytest.raises(UserError, match="columns file and caption"):
        prompts_of(samples, table)


CLIPS = Path(__file__).resolve().parents[3] / "shared" / "data" / "clips"


@pytest.mark.skipif(not CLIPS.is_dir(), reason="no real clips beside this checkout")
def test_real_clips_are_read_no_further_than_needed() -> None:
    samples = VideoFolderSamples(CLIPS, Sampling(16, 1, 64))
    found = {sample.name: sample for sample in samples.samples()}
    assert found.keys() >= {"big_buck_bunny.mp4", "nasa.mp4"}
    assert {sample.frames.shape for sample in found.values()} == {(16, 64, 64, 3)}
    assert found["car_detection.mp4"].fps == pytest.approx(12.5)
