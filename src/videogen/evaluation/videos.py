"""Folders of videos as samples of a protocol: so many frames, so far apart, of one size (section 4.1: 16 frames of 256x256).

Anybody's files: each is decoded only as far as the protocol needs, and one video at a time is in memory.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from PIL import Image

from videogen.config import UserError
from videogen.files import decoding, open_regular
from videogen.video import average_rate, open_container, read_image, read_provenance

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
RESIZE = "PIL bilinear with antialiasing, short side to the resolution, central square"
_MAX_FRAMES = 20_000  # decoded of one video
_MAX_PIXELS = 1 << 25  # of one source frame
_MAX_TEXT = 1 << 26  # bytes of a prompts file


@dataclass(frozen=True)
class Sampling:
    """How a video becomes the frames that are measured: `num_frames` from frame `start` on, every `stride`-th, as size x size.

    None: all frames; the size they have. Raises UserError on values out of range.
    """

    num_frames: int | None = 16
    stride: int = 1
    size: int | None = 256
    start: int = 0

    def __post_init__(self) -> None:
        if self.num_frames is not None and not 2 <= self.num_frames <= _MAX_FRAMES:
            raise UserError(f"a sample has 2 to {_MAX_FRAMES} frames, not {self.num_frames}")
        if not 1 <= self.stride <= 1000:
            raise UserError(f"the stride must lie in 1..1000 frames, not {self.stride}")
        if not 0 <= self.start < _MAX_FRAMES:
            raise UserError(f"the first frame must lie in 0..{_MAX_FRAMES - 1}, not {self.start}")
        if self.size is not None and not 16 <= self.size <= 4096:
            raise UserError(f"the resolution must lie in 16..4096 pixels, not {self.size}")

    def describe(self) -> dict[str, Any]:
        """For the protocol fingerprint."""
        return {**asdict(self), "resize": RESIZE if self.size else "none"}

    @property
    def whence(self) -> str:
        """For messages: how the frames lie in the video."""
        apart = f", {self.stride} apart" if self.stride > 1 else ""
        return apart + (f", from frame {self.start} on" if self.start else "")

    def square(self, picture: Image.Image) -> np.ndarray:
        """uint8 (size, size, 3), or the picture as it is."""
        if self.size is None or picture.size == (self.size, self.size):
            return np.asarray(picture)
        scale = self.size / min(picture.size)
        width, height = (max(self.size, round(side * scale)) for side in picture.size)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        resized = picture.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized.crop((left, top, left + self.size, top + self.size)))


@dataclass(frozen=True)
class Sample:
    """One video as the protocol sees it. frames: uint8 (F, H, W, 3); fps: of these frames, or None where nothing says it;
    source: "WIDTHxHEIGHT" as it was; index: its place among the sorted names."""

    index: int
    name: str
    frames: np.ndarray
    fps: float | None
    source: str


class Videos(Protocol):
    """What is measured: the samples of a folder, or Diorama's true clips. See `VideoFolderSamples`."""

    folder: Path
    sampling: Sampling
    names: list[str]
    skipped: list[tuple[str, str]]
    sizes: Counter[str]
    rates: Counter[float | None]

    def __len__(self) -> int: ...

    def samples(self, rank: int = 0, ranks: int = 1) -> Iterator[Sample]: ...


@dataclass
class VideoFolderSamples:
    """The videos of a folder and of the folders in it, in the order of their names; a folder of images is a video too.

    names: only these, relative to the folder; skip_bad: leave out what cannot be used and note it in `skipped` (name, why),
    else the first one is an error; fps: of videos that do not say it. After an iteration `sizes` and `rates` count what was
    met. Raises UserError where there is no video.
    """

    folder: Path
    sampling: Sampling = field(default_factory=Sampling)
    skip_bad: bool = False
    names: list[str] = field(default_factory=list)
    fps: float | None = None

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise UserError(f"there is no folder {self.folder}")
        if not self.names:
            self.names = list(find_videos(self.folder))
        if not self.names:
            known = ", ".join(sorted(VIDEO_SUFFIXES))
            raise UserError(f"no video in {self.folder}: expected {known} files, or folders of images")
        self.skipped: list[tuple[str, str]] = []
        self.sizes: Counter[str] = Counter()
        self.rates: Counter[float | None] = Counter()

    def __len__(self) -> int:
        return len(self.names)

    def samples(self, rank: int = 0, ranks: int = 1) -> Iterator[Sample]:
        """Those of one rank: every `ranks`-th. Raises UserError, naming the video, on a bad one unless `skip_bad`."""
        self.skipped.clear()
        self.sizes.clear()
        self.rates.clear()
        for index in range(rank, len(self.names), ranks):
            try:
                sample = self.read(index)
            except UserError as error:
                if not self.skip_bad:
                    raise UserError(f"{error}; --skip-bad leaves such videos out and counts them") from None
                self.skipped.append((self.names[index], str(error)))
                continue
            self.sizes[sample.source] += 1
            self.rates[sample.fps] += 1
            yield sample

    def read(self, index: int) -> Sample:
        """One sample. Raises UserError, naming the file."""
        path = self.folder / self.names[index]
        frames, fps, source = _read_images(path, self.sampling) if path.is_dir() else _read_file(path, self.sampling)
        needed = self.sampling.num_frames
        if len(frames) < (needed or 2):
            raise UserError(f"{path} has too few frames: {len(frames)} of {needed or 'at least 2'}{self.sampling.whence}")
        if len({frame.shape for frame in frames}) > 1:
            raise UserError(f"{path}: its frames differ in size; give a resolution")
        fps = fps or self.fps
        rate = None if fps is None else fps / self.sampling.stride
        return Sample(index, self.names[index], np.stack(frames), rate, source)


def find_videos(folder: Path) -> Iterator[str]:
    """Names relative to `folder`, sorted; hidden files and folders are left out."""
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        if (path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES) or (path.is_dir() and _images(path)):
            yield name.as_posix()


def _images(folder: Path) -> list[Path]:
    """The images of a folder that is one video: it holds no video file and no folder."""
    entries = sorted(folder.iterdir())
    if any(entry.is_dir() or entry.suffix.lower() in VIDEO_SUFFIXES for entry in entries):
        return []
    return [entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES]


Read = tuple[list[np.ndarray], float | None, str]  # frames, frames a second of the source, its size


def _read_images(folder: Path, sampling: Sampling) -> Read:
    paths = _images(folder)[sampling.start :: sampling.stride][: sampling.num_frames]
    pictures = [read_image(path) for path in paths]
    if not pictures:
        raise UserError(f"{folder} has too few images{sampling.whence}")
    note = read_provenance(folder).get("video", {})
    fps = note.get("fps") if isinstance(note, dict) else None
    width, height = pictures[0].size
    rate = float(fps) if isinstance(fps, int | float) and math.isfinite(fps) and fps > 0 else None
    return [sampling.square(picture) for picture in pictures], rate, f"{width}x{height}"


def _read_file(path: Path, sampling: Sampling) -> Read:
    frames: list[np.ndarray] = []
    times: list[float] = []
    step = 0.0
    with decoding(path, "a video"), open_regular(path) as file, open_container(file) as container:
        if not container.streams.video:
            raise UserError(f"{path} has no video in it")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": str(_MAX_PIXELS)}
        source = f"{stream.width}x{stream.height}"
        if stream.width * stream.height > _MAX_PIXELS:
            raise UserError(f"{path}: frames of {source} are too large (at most {_MAX_PIXELS} pixels)")
        rate = stream.average_rate
        for count, frame in enumerate(_decoded(container)):
            if count == _MAX_FRAMES:
                raise UserError(f"{path} has more than {_MAX_FRAMES} frames: cut it first")
            times.append(count / float(rate or 25) if frame.time is None else frame.time)
            step = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
            if count >= sampling.start and (count - sampling.start) % sampling.stride == 0:
                frames.append(_pixels(frame, sampling))
            if len(frames) == sampling.num_frames:
                break
    return frames, average_rate(times, step, rate) or None if times else None, source


def _decoded(container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
    for packet in container.demux(video=0):
        if packet.is_corrupt:
            raise ValueError("it ends in the middle of a frame")
        yield from (frame for frame in packet.decode() if isinstance(frame, av.VideoFrame))


def _pixels(frame: av.VideoFrame, sampling: Sampling) -> np.ndarray:
    upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return sampling.square(Image.fromarray(np.ascontiguousarray(upright)))


# What the videos are asked to show


def read_prompts(path: Path) -> list[str]:
    """One prompt a line (UTF-8; empty lines are left out). Raises UserError."""
    prompts = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompt: one a line")
    return prompts


def prompts_of(videos: VideoFolderSamples, path: Path | None) -> Callable[[int], str]:
    """The prompt of each video by its index.

    path: a text with one line a video in the order of the names, or a .csv with the columns file and caption; None: each
    video's own, from a .txt beside it or from what videogen wrote into it. Raises UserError where one has none.
    """
    if path is None:
        return lambda index: _own_prompt(videos.folder / videos.names[index])
    if path.suffix.lower() == ".csv":
        said = _read_table(path)
        if missing := next((name for name in videos.names if name not in said), None):
            raise UserError(f"{path} has no caption for {missing}")
        return lambda index: said[videos.names[index]]
    prompts = read_prompts(path)
    if len(prompts) != len(videos):
        raise UserError(f"{path} has {len(prompts)} prompts for {len(videos)} videos: one a line, in the order of the names")
    return prompts.__getitem__


def _own_prompt(path: Path) -> str:
    beside = path.with_suffix(".txt")
    if beside.is_file() and (text := " ".join(_text(beside).split())):
        return text
    prompt = read_provenance(path).get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"nothing says what {path} should show: give --prompts, or a .txt beside each video")
    return prompt


def _read_table(path: Path) -> dict[str, str]:
    rows = csv.DictReader(_text(path).splitlines())
    if not {"file", "caption"} <= set(rows.fieldnames or ()):
        raise UserError(f"{path} needs the columns file and caption")
    try:
        return {row["file"]: " ".join((row["caption"] or "").split()) for row in rows}
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: not valid CSV: {error}") from None


def _text(path: Path) -> str:
    with open_regular(path) as file:
        data = file.read(_MAX_TEXT + 1)
    if len(data) > _MAX_TEXT:
        raise UserError(f"{path} is larger than {_MAX_TEXT >> 20} MiB")
    return data.decode("utf-8-sig", "replace")
