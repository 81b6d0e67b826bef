"""Any real video file as a stream of upright RGB frames with their true times, and its audio packets as they are (ours)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from videogen.config import UserError
from videogen.files import decoding, open_regular
from videogen.video import open_container

MAX_PIXELS = 1 << 25  # of a frame
BT601, BT709 = 5, 1
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}  # AVColorSpace -> swscale's number; what is untagged counts as BT.601
LIMITED, FULL = 1, 2
ACCURATE = 0x4 | 0x2000 | 0x4000 | 0x40000  # swscale: bicubic, full chroma, accurate rounding; its default darkens by a level
FLATTENED = "its transparency is laid over white: the output has none"
NO_SUBTITLES = "its subtitles are left out"
INTERLACED = "it is interlaced, which the networks do not know: deinterlace it first for a clean result"


@dataclass(frozen=True)
class Colour:
    """How a video's numbers are meant, by FFmpeg's codes, and their depth; 2 (0 of the range) is "not said"."""

    matrix: int
    range: int
    primaries: int
    transfer: int
    bits: int

    @property
    def scaler_matrix(self) -> int:
        """swscale's number for the matrix."""
        return MATRICES.get(self.matrix, BT601)


@dataclass(frozen=True)
class Frame:
    """pixels: RGB (H, W, 3), uint8, or uint16 where the source has more than 8 bits; pts, duration: in the source's time base.

    index: its place in the video.
    """

    pixels: np.ndarray
    index: int
    pts: int
    duration: int


class Source:
    """An open video file. first: its first frame, decoded before. width, height: upright; notes: what the user should know."""

    def __init__(self, path: str | Path, container: av.container.InputContainer, first: av.VideoFrame) -> None:
        self.path, self.container, self.stream = path, container, _video_stream(path, container)
        self.audio = list(container.streams.audio)
        self.time_base: Fraction = self.stream.time_base or Fraction(1, av.time_base)
        self.rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        self.colour = _colour(first, self.stream.codec_context)
        self.turns = round(first.rotation / 90) % 4  # counter-clockwise
        self._size = first.width, first.height
        self.width, self.height = self._size if self.turns % 2 == 0 else self._size[::-1]
        self.aspect = self.stream.sample_aspect_ratio or Fraction(1)
        if self.turns % 2:
            self.aspect = 1 / self.aspect
        self._alpha = any(component.is_alpha for component in first.format.components)
        told = {FLATTENED: self._alpha, INTERLACED: first.interlaced_frame, NO_SUBTITLES: bool(container.streams.subtitles)}
        self.notes = [note for note, holds in told.items() if holds]

    @property
    def frames(self) -> int | None:
        """How many frames there are by the headers, for progress."""
        if self.stream.frames:
            return self.stream.frames
        if self.container.duration is None:
            return None
        return round(self.container.duration / av.time_base * self.rate)

    @property
    def step(self) -> int:
        """Ticks of the time base from one frame to the next on average."""
        return max(1, round(1 / self.rate / self.time_base))

    def read(self) -> Iterator[Frame | av.Packet]:
        """Frames with rising times, and audio packets, in the order of the file. Raises UserError on a damaged file."""
        items, index = self._decoded(), 0
        waiting: tuple[np.ndarray, int] | None = None
        last = self.step
        while True:
            with decoding(self.path, "a video"):
                item = next(items, None)
                pixels = self._pixels(item) if isinstance(item, av.VideoFrame) else None
            if isinstance(item, av.Packet):
                yield item
                continue
            if isinstance(item, av.VideoFrame) and pixels is not None:
                pts = item.pts if item.pts is not None else (0 if waiting is None else waiting[1] + self.step)
                pts = pts if waiting is None else max(pts, waiting[1] + 1)  # a doubled time stamp moves on by a tick
                last = item.duration or (self.step if waiting is None else pts - waiting[1])
            if waiting is not None:
                yield Frame(waiting[0], index, waiting[1], last if pixels is None else pts - waiting[1])
                index += 1
            if pixels is None:
                break
            waiting = pixels, pts
        if waiting is None:
            raise UserError(f"{self.path}: no frame in it can be decoded")
        self._compare_with_headers(waiting[1] + last)

    def _compare_with_headers(self, end: int) -> None:
        """Note where the picture ends long before the headers say: a file that broke off, or audio that goes on alone."""
        seconds, promised = float(end * self.time_base), (self.container.duration or 0) / av.time_base
        if promised - seconds > max(0.25, 3 / float(self.rate)):
            self.notes.append(f"its picture ends after {seconds:.1f} s of the {promised:.1f} s in its headers")

    def _decoded(self) -> Iterator[av.VideoFrame | av.Packet]:
        for packet in self.container.demux(self.stream, *self.audio):
            if packet.stream is self.stream:
                yield from _frames(packet)
            elif packet.dts is not None:  # else the mark of the end
                yield packet

    def _pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """Upright RGB of the size of the first frame, by the source's own matrix and range."""
        kind = "rgba" if self._alpha else "rgb48le" if self.colour.bits > 8 else "rgb24"
        width, height = self._size
        colours: dict[str, Any] = {"src_colorspace": self.colour.scaler_matrix, "src_color_range": self.colour.range}
        pixels = frame.reformat(width, height, kind, dst_color_range=FULL, interpolation=ACCURATE, **colours).to_ndarray()
        if self._alpha:
            opaque = pixels[..., 3:].astype(np.float32) / 255
            pixels = np.rint(pixels[..., :3] * opaque + 255 * (1 - opaque)).astype(np.uint8)
        return np.ascontiguousarray(np.rot90(pixels, self.turns))


def _colour(frame: av.VideoFrame, context: av.VideoCodecContext) -> Colour:
    form = frame.format
    full = frame.color_range == FULL or form.name.startswith("yuvj") or not form.name.startswith(("yuv", "nv", "p0"))
    matrix = int(frame.colorspace) if form.name.startswith(("yuv", "nv", "p0")) else BT709
    bits = max((component.bits for component in form.components), default=8)
    if not form.name.startswith(("yuv", "nv", "p0", "gray")):
        full = False  # RGB becomes limited-range BT.709
    return Colour(matrix, FULL if full else LIMITED, context.color_primaries, context.color_trc, bits)


def _video_stream(path: str | Path, container: av.container.InputContainer) -> av.VideoStream:
    """The first video that is no cover picture, ready to decode. Raises UserError."""
    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not videos:
        raise UserError(f"{path} has no video in it" + (", only audio" if container.streams.audio else ""))
    context = videos[0].codec_context
    context.thread_type = "AUTO"
    context.options = {"max_pixels": str(MAX_PIXELS)}
    if context.width * context.height > MAX_PIXELS:
        raise UserError(f"{path}: frames of {context.width}x{context.height} are too large (at most {MAX_PIXELS} pixels)")
    return videos[0]


def _frames(packet: av.Packet) -> Iterator[av.VideoFrame]:
    if packet.is_corrupt:
        raise ValueError("it ends in the middle of a frame")
    yield from (frame for frame in packet.decode() if isinstance(frame, av.VideoFrame))


@contextlib.contextmanager
def open_source(path: str | Path) -> Iterator[Source]:
    """Open a video whose first frame can be decoded. Raises UserError."""
    with decoding(path, "a video"), open_regular(path) as file, open_container(file) as container:
        packets = container.demux(_video_stream(path, container))
        first = next((frame for packet in packets for frame in _frames(packet)), None)
        if first is None:
            raise UserError(f"{path}: no frame in it can be decoded")
    with contextlib.ExitStack() as stack:  # what goes wrong below is no longer the file's fault alone
        with decoding(path, "a video"):
            container = stack.enter_context(open_container(stack.enter_context(open_regular(path))))
            source = Source(path, container, first)
        yield source
