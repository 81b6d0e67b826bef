"""Facts about clips from real video: files written here, and the shared sample clips where they are present."""

import io
import json
import os
import tarfile
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from videogen.config import DataConfig, UserError
from videogen.data.captioned import SkippedVideoWarning, VideoFolder

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "clips"
STEP = 4  # grey levels a tick: the brightness of a written frame tells its time


def write(path: Path, ticks: list[int], *, rate: int = 20, levels: list[int] | None = None) -> None:
    """A grey video whose frame at tick i (1/rate seconds) has brightness 20 + STEP * i, or the given level."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "1", "g": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for position, tick in enumerate(ticks):
            level = 20 + STEP * tick if levels is None else levels[position]
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def folder(path: Path, *, num_frames: int = 4, fps: tuple[float, ...] = (5.0, 10.0), seed: int = 0) -> VideoFolder:
    return VideoFolder(path, DataConfig(source=str(path), size=16, num_frames=num_frames, fps=fps), seed)


def ticks(frames: np.ndarray) -> np.ndarray:
    return np.rint((frames.mean(axis=(1, 2, 3)) - 20) / STEP).astype(int)


def test_a_clip_depends_on_seed_and_index_only(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", list(range(40)))
    source = folder(tmp_path)
    later = source.clip(7)
    assert all(np.array_equal(source.clip(i).frames, folder(tmp_path).clip(i).frames) for i in range(3))
    assert np.array_equal(source.clip(7).frames, later.frames)
    assert not np.array_equal(later.frames, folder(tmp_path, seed=1).clip(7).frames)


def test_frames_lie_one_over_fps_apart_wherever_the_clip_begins(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", list(range(40)))
    clips = [folder(tmp_path).clip(i) for i in range(16)]
    for clip in clips:
        assert clip.frames.shape == (4, 16, 16, 3)
        assert clip.frames.dtype == np.uint8
        assert np.diff(ticks(clip.frames)).tolist() == [20 / clip.fps] * 3
    assert {clip.fps for clip in clips} == {5.0, 10.0}
    starts = [ticks(clip.frames)[0] for clip in clips]
    assert min(starts) < 8
    assert max(starts) > 20


def test_a_variable_frame_rate_is_read_by_its_timestamps(tmp_path: Path) -> None:
    shown = [0, 1, 2, 3, 10, 11, 12, 20, 21, 22, 23, 24, 25, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39]
    write(tmp_path / "a.mp4", shown)
    for index in range(12):
        clip = folder(tmp_path, num_frames=5, fps=(10.0,)).clip(index)
        seen = ticks(clip.frames)
        possible = [[max(t for t in shown if t <= start + 2 * k) for k in range(5)] for start in range(32)]
        assert seen.tolist() in possible


def test_the_short_side_is_resized_and_the_centre_kept(tmp_path: Path) -> None:
    pixels = np.zeros((48, 96, 3), np.uint8)
    pixels[:, 24:72] = (200, 100, 50)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        for _ in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    frames = folder(tmp_path).clip(0).frames
    assert np.abs(frames[:, :, 2:-2].astype(int) - (200, 100, 50)).max() <= 6


def test_captions_come_from_a_table_or_from_beside_the_video_or_are_empty(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", list(range(20)))
    assert folder(tmp_path).clip(0).caption == ""
    (tmp_path / "a.txt").write_text("  a grey\nwall \n", encoding="utf-8")
    assert folder(tmp_path).clip(0).caption == "a grey wall"
    table = tmp_path / "captions.csv"
    table.write_text('file,caption\na.mp4,"first, of two"\na.mp4,second 🎈\n', encoding="utf-8")
    assert {folder(tmp_path).clip(i).caption for i in range(12)} == {"first, of two", "second 🎈"}
    assert folder(table).clip(3).caption == folder(tmp_path).clip(3).caption


def test_shards_are_read_in_place_and_give_what_the_files_give(tmp_path: Path) -> None:
    loose, sharded = tmp_path / "loose", tmp_path / "sharded"
    loose.mkdir()
    sharded.mkdir()
    with tarfile.open(sharded / "00000.tar", "w") as shard:
        for number, brightness in enumerate([30, 120]):
            name = f"0000{number}"
            write(loose / f"{name}.mp4", list(range(20)), levels=[brightness + i for i in range(20)])
            (loose / f"{name}.txt").write_text(f"clip {number}", encoding="utf-8")
            shard.add(loose / f"{name}.mp4", f"../{name}.mp4")  # a name that would leave the folder is only a key here
            text = json.dumps({"caption": f"clip {number}", "key": name}).encode() if number else f"clip {number}".encode()
            member = tarfile.TarInfo(f"../{name}.{'json' if number else 'txt'}")
            member.size = len(text)
            shard.addfile(member, io.BytesIO(text))
        link = tarfile.TarInfo("00002.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        shard.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    for index in range(8):
        one, other = folder(loose).clip(index), folder(sharded).clip(index)
        assert np.array_equal(one.frames, other.frames)
        assert one.caption == other.caption
    assert sorted(tmp_path.rglob("*")) == before


def test_short_slow_and_damaged_videos_are_skipped_by_name(tmp_path: Path) -> None:
    write(tmp_path / "good.mp4", list(range(20)))
    write(tmp_path / "short.mp4", [0, 1, 2])
    write(tmp_path / "slow.mp4", list(range(6)), rate=1)
    whole = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clips = [folder(tmp_path).clip(i) for i in range(24)]
    assert all(np.diff(ticks(clip.frames)).tolist() == [20 / clip.fps] * 3 for clip in clips)
    skipped = {Path(str(item.message).split(" skipped: ")[0]).name for item in caught if item.category is SkippedVideoWarning}
    assert skipped == {"short.mp4", "slow.mp4", "cut.mp4", "text.mp4"}


def test_a_clip_does_not_span_a_scene_cut_where_there_is_room(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", list(range(60)), levels=[30] * 30 + [200] * 30)
    for index in range(12):
        frames = folder(tmp_path, fps=(10.0,)).clip(index).frames
        assert np.ptp(frames.mean(axis=(1, 2, 3))) < 5


def test_nothing_usable_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        folder(tmp_path / "missing")
    with pytest.raises(UserError, match="no videos in"):
        folder(tmp_path)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match="no videos in"):
        folder(tmp_path)
    write(tmp_path / "short.mp4", [0, 1])
    with pytest.warns(SkippedVideoWarning, match=r"short\.mp4"), pytest.raises(UserError, match="can give 4 frames at 5 or"):
        folder(tmp_path).clip(0)
    with pytest.raises(UserError, match=r"data\.flow: exact flow is known for the source 'diorama' only"):
        VideoFolder(tmp_path, DataConfig(flow=True), 0)
    for wish in (DataConfig(pairs=("motion",)), DataConfig(only={"motion": ("rises",)}), DataConfig(dry=True)):
        with pytest.raises(UserError, match=r"data\.(pairs|only|dry): what is shown can be chosen of .* 'diorama', not"):
            VideoFolder(tmp_path, wish, 0)
    (tmp_path / "broken.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(UserError, match="not a readable uncompressed tar"):
        folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,text\na.mp4,x\n", "needs the columns file and caption"),
        ("", "needs the columns file and caption"),
        ("file,caption\nb.mp4,x\n", "line 2: 'b.mp4' is not a video"),
        ("file,caption\na.mp4,x\n../a.mp4,x\n", "line 3: '../a.mp4' is not a video"),
        ("file,caption\n/etc/passwd,x\n", "line 2: '/etc/passwd' is not a video"),
    ],
)
def test_a_bad_table_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "captions.csv").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        folder(tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"sample clips are not present in {SHARED}")
def test_real_clips_are_read_with_their_captions() -> None:
    source = folder(SHARED, num_frames=8, fps=(4.0, 8.0))
    clips = [source.clip(i) for i in range(6)]
    assert all(clip.frames.shape == (8, 16, 16, 3) and clip.caption for clip in clips)
    assert all(clip.frames.std() > 5 for clip in clips)
