"""Captioned and unlabelled clips from video files and WebDataset shards (section 4.1), read from where they lie.

The cascade learns from captioned clips, temporal super-resolution and the video decoder from unlabelled ones. What a clip
shows follows from (seed, index) alone, so that order, resuming and the number of loader processes never change the data.
Nothing is unpacked, and only the frames between the last key frame and the end of a clip are decoded.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np

from videogen.config import DataConfig, UserError
from videogen.data.clips import Clip
from videogen.data.cuts import HISTOGRAM_CUT, find_cuts, histogram_changes
from videogen.files import DECODER_ERRORS, open_regular, reason

DEMUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi"}
MAX_PIXELS = 8192 * 4320  # of a source frame
MAX_DECODED = 20_000  # frames decoded for one clip: a guard against files without key frames or sane timestamps
MAX_TEXT = 1 << 20  # bytes of a caption file
TRIES = 4  # places tried in a video for a clip without a cut; then the one with the smallest change is taken


class SkippedVideoWarning(UserWarning):
    """A video could not give a clip (damaged, too short, too slow); the next one is taken in its place."""


class _UnusableError(ValueError):
    """Why a video gives no clip."""


class _Window(io.RawIOBase):
    """The bytes [start, start + size) of a file, as a read-only file of its own."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._position)
        self._file.seek(self._start + self._position)
        data = self._file.read(left if size is None or size < 0 else min(size, left))
        self._position += len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True)
class _Blob:
    """A regular file (size None), or a member of a tar shard at its offset."""

    path: Path
    suffix: str
    offset: int = 0
    size: int | None = None

    def open(self) -> _Window:
        size = self.path.stat().st_size if self.size is None else self.size
        return _Window(open_regular(self.path), self.offset, size)


@dataclass
class _Item:
    """A video with its captions: given ones, or a text beside it (.txt or .json)."""

    name: str
    video: _Blob
    captions: list[str] = field(default_factory=list)
    text: _Blob | None = None


class VideoFolder:
    """`ClipSource` over real video.

    path: a folder of videos, captioned by its captions.csv (columns: file, caption; only the listed videos are used, a video
    may have several lines) or by .txt files beside them, or else unlabelled; or a captions CSV; or a WebDataset tar shard or
    a folder of such, as video2dataset writes them (mp4 with txt or json members). An unlabelled clip has the caption "".

    A clip is `data.num_frames` frames that lie 1/fps seconds apart by their timestamps, fps being one of `data.fps` that the
    video has; each is resized to `data.size` on its short side and cropped to the central square. Frame rates above the
    video's own are not made up. Raises UserError if there is nothing to read, and warns with SkippedVideoWarning.
    """

    def __init__(self, path: Path, data: DataConfig, seed: int) -> None:
        if data.pairs or data.only or data.dry:
            name = "pairs" if data.pairs else "only" if data.only else "dry"
            raise UserError(f"data.{name}: what is shown can be chosen of the source 'diorama', not of {str(path)!r}")
        if data.flow:
            raise UserError(f"data.flow: exact flow is known for the source 'diorama' only, not for {str(path)!r}")
        self._path, self._data, self._seed = path, data, seed
        self._items = _find_items(path)
        if not self._items:
            raise UserError(f"no videos in {path}: expected {', '.join(DEMUXERS)} files or .tar shards that hold them")

    def __len__(self) -> int:
        """The number of indices, not of videos: a clip is a random piece of a random video."""
        return 2**31

    def clip(self, index: int) -> Clip:
        """Clip `index`: the same for the same seed, files and options. Raises UserError if no video can give one."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        rng = np.random.default_rng((self._seed, index))
        first = int(rng.integers(len(self._items)))
        for position in range(first, first + len(self._items)):
            item = self._items[position % len(self._items)]
            try:
                frames, fps = _cut_out(item.video, self._data, rng)
                captions = item.captions or [_read_caption(item.text)]
            except DECODER_ERRORS as error:
                warnings.warn(f"{item.name} skipped: {reason(error)}", SkippedVideoWarning, stacklevel=2)
                continue
            said = int(rng.integers(len(captions)))
            return Clip(frames, captions[said], fps, paraphrases=(*captions[:said], *captions[said + 1 :]))
        raise UserError(f"no video in {self._path} can give {_wish(self._data)}")


# --- which videos and captions there are ---


def _find_items(path: Path) -> list[_Item]:
    if path.is_file() and path.suffix.lower() == ".csv":
        return list(_listed(path))
    if path.is_file() and path.suffix.lower() == ".tar":
        return list(_members(path))
    if not path.is_dir():
        raise UserError(f"no such folder of videos, captions CSV or .tar shard: {path}")
    if (path / "captions.csv").is_file():
        return list(_listed(path / "captions.csv"))
    items: list[_Item] = []
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        if file.suffix.lower() == ".tar":
            items += _members(file)
        elif file.suffix.lower() in DEMUXERS:
            beside = file.with_suffix(".txt")
            text = _Blob(beside, ".txt") if beside.is_file() else None
            items.append(_Item(str(file), _Blob(file, file.suffix.lower()), text=text))
    return items


def _listed(table: Path) -> Iterator[_Item]:
    """The videos of a captions CSV. Their names are relative to its folder and may not leave it."""
    root = table.parent.resolve()
    items: dict[str, _Item] = {}
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        rows = csv.DictReader(lines)
        if not {"file", "caption"} <= set(rows.fieldnames or ()):
            raise UserError(f"{table} needs the columns file and caption, but has {', '.join(rows.fieldnames or ['none'])}")
        try:
            for row in rows:
                name, where = row["file"] or "", f"{table}, line {rows.line_num}"
                file = (root / name).resolve()
                if not file.is_relative_to(root) or not file.is_file() or file.suffix.lower() not in DEMUXERS:
                    raise UserError(f"{where}: {name!r} is not a video in {root}; remove the line or add the file")
                item = items.setdefault(name, _Item(str(file), _Blob(file, file.suffix.lower())))
                item.captions.append(_tidy(row["caption"] or ""))
        except csv.Error as error:
            raise UserError(f"{table}, line {rows.line_num}: not valid CSV: {error}") from None
    yield from items.values()


def _members(shard: Path) -> Iterator[_Item]:
    """The samples of a tar shard: members that share a name up to its first dot. Names are keys here, never paths."""
    samples: dict[str, dict[str, _Blob]] = {}
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as members:
            for member in members:
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if member.isreg() and not member.issparse():
                    blob = _Blob(shard, "." + suffix.lower(), member.offset_data, member.size)
                    samples.setdefault(f"{folder}/{stem}", {})[blob.suffix] = blob
    except tarfile.TarError as error:
        raise UserError(f"{shard} is not a readable uncompressed tar shard: {error}") from None
    for key, blobs in samples.items():
        video = next((blob for suffix, blob in blobs.items() if suffix in DEMUXERS), None)
        if video is not None:
            yield _Item(f"{shard}:{key}", video, text=blobs.get(".txt") or blobs.get(".json"))


def _read_caption(text: _Blob | None) -> str:
    if text is None:
        return ""
    with text.open() as file:
        content = file.read(MAX_TEXT).decode("utf-8", errors="replace")
    if text.suffix != ".json":
        return _tidy(content)
    record = json.loads(content)
    return _tidy(str(record.get("caption") or "")) if isinstance(record, dict) else ""


def _tidy(caption: str) -> str:
    return " ".join(caption.split())


# --- one clip of one video ---


def _span(data: DataConfig, fps: float) -> float:
    """Seconds from the first to the last frame of a clip."""
    return (data.num_frames - 1) / fps


def _wish(data: DataConfig) -> str:
    return f"{data.num_frames} frames at {' or '.join(f'{fps:g}' for fps in data.fps)} fps"


def _cut_out(video: _Blob, data: DataConfig, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """uint8 (F, size, size, 3) and its fps: a random piece of the video, without a scene cut where one is found."""
    with video.open() as file, av.open(file, "r", DEMUXERS[video.suffix]) as container:
        if not container.streams.video:
            raise _UnusableError("it has no video stream")
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        if not 0 < width * height <= MAX_PIXELS:
            raise _UnusableError(f"its frames are {width}x{height}")
        duration, rate = _duration(container, stream), float(stream.average_rate or 0)
        possible = [fps for fps in data.fps if _span(data, fps) <= duration and fps <= 1.01 * rate]
        if not possible:
            raise _UnusableError(f"its {duration:.2f} s at {rate:.4g} fps cannot give {_wish(data)}")
        best: tuple[float, np.ndarray, float] | None = None
        for _ in range(TRIES):
            fps = possible[int(rng.integers(len(possible)))]
            start = rng.uniform(0.0, duration - _span(data, fps))
            frames = _read_frames(container, stream, start + np.arange(data.num_frames) / fps, data.size)
            change = _largest_change(frames)
            if best is None or change < best[0]:
                best = change, frames, fps
            if change < HISTOGRAM_CUT:
                break
    assert best is not None
    return best[1], best[2]


def _duration(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Seconds from the first to the end of the last frame, as the headers say."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return container.duration / av.time_base
    raise _UnusableError("it does not say how long it is")


def _read_frames(container: av.container.InputContainer, stream: av.VideoStream, times: np.ndarray, size: int) -> np.ndarray:
    """The frames on screen at `times` (ascending seconds from the first frame): uint8 (len(times), size, size, 3)."""
    origin = float((stream.start_time or 0) * (stream.time_base or 0))
    picked: list[np.ndarray] = []
    for seek in (origin + times[0], origin):  # from the start of the file if seeking overshoots
        container.seek(max(0, int(seek * av.time_base)), backward=True)
        picked = list(_on_screen(container, stream, times + origin, size))
        if picked:
            break
    if len(picked) < len(times):
        raise _UnusableError("it ends before its headers say")
    return np.stack(picked)


def _on_screen(
    container: av.container.InputContainer, stream: av.VideoStream, times: np.ndarray, size: int
) -> Iterator[np.ndarray]:
    """Yields nothing if the first frame decoded comes after the first of `times`."""
    waiting = 0
    shown: av.VideoFrame | None = None
    for count, frame in enumerate(container.decode(stream)):
        if count >= MAX_DECODED:
            raise _UnusableError(f"a clip needs more than {MAX_DECODED} frames to be decoded")
        if frame.pts is None:
            continue
        if shown is None and frame.time > times[0] + 1e-6:
            return
        if shown is not None and (due := int(np.sum(times[waiting:] < frame.time - 1e-6))):
            yield from [_square(shown, size)] * due
            waiting += due
        if waiting == len(times):
            return
        shown = frame
    if shown is not None:
        until = shown.time + 2 / float(stream.average_rate or 1)
        yield from [_square(shown, size)] * int(np.sum(times[waiting:] <= until))


def _square(frame: av.VideoFrame, size: int) -> np.ndarray:
    """uint8 (size, size, 3): the short side resized to `size`, the centre kept; colours are converted after resizing."""
    scale = size / min(frame.width, frame.height)
    width, height = max(size, round(frame.width * scale)), max(size, round(frame.height * scale))
    pixels = frame.reformat(width, height, format="rgb24", interpolation="AREA").to_ndarray()
    top, left = (height - size) // 2, (width - size) // 2
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])


def _largest_change(frames: np.ndarray) -> float:
    """0 .. 1: how much the histogram changes from one frame to the next at most; 1 where a scene cut is found."""
    return 1.0 if find_cuts(frames) else float(histogram_changes(frames).max(initial=0.0))
