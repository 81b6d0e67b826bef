"""Real small video files of every kind, written through PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from videogen.restoration.source import ACCURATE


def pictures(count: int, height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth frames of one shot that slide: uint8 (F, H, W, 3). Other seeds look quite different."""
    t, y, x = np.mgrid[:count, :height, :width]
    phase = 2.3 * seed
    waves = [np.sin(x / 5 + t / 6 + phase), np.cos(y / 4 - t / 9 + 2 * phase), np.sin((x + y) / 7 + t / 8 + 3 * phase)]
    base = np.array([40, 120, 200])[(np.arange(3) + seed) % 3]
    return np.clip(np.stack(waves, axis=-1) * 40 + base, 0, 255).astype(np.uint8)


def write(
    path: Path,
    frames: np.ndarray,
    *,
    times: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 12800),
    rate: Fraction = Fraction(25),
    pix_fmt: str = "yuv420p",
    codec: str = "libx264",
    tags: Sequence[int] = (2, 0, 2, 2),
    rotation: float = 0,
    sound: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """times: of the frames, in `time_base`; tags: matrix, range, primaries, transfer; sound: codec of a second of a tone."""
    with av.open(str(path), "w") as output:
        options = {"crf": "4"} if options is None and codec == "libx264" else options or {}
        stream: Any = output.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        context = stream.codec_context
        context.time_base = time_base
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = tags
        if rotation:
            stream.set_display_rotation(rotation)
        tone = add_tone(output, sound) if sound else None
        step = int(1 / rate / time_base)
        for index, pixels in enumerate(frames):
            kind = {1: "gray", 3: "rgb24", 4: "rgba"}[pixels.shape[-1]]
            frame = av.VideoFrame.from_ndarray(pixels, format=kind)
            matrix = {9: 9, 1: 1}.get(tags[0], 5)
            exact: Any = {"interpolation": ACCURATE}
            frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=tags[1] or 1, **exact)
            frame.pts, frame.time_base = index * step if times is None else times[index], time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if tone is not None:
            tone()
    return path


def add_tone(output: Any, codec: str) -> Any:
    """A second of 440 Hz; call the result to write it."""
    stream = output.add_stream(codec, rate=48000)

    def tone() -> None:
        samples = (0.3 * np.sin(2 * np.pi * 440 * np.arange(48000) / 48000)).astype(np.float32)
        for begin in range(0, 48000, 960):
            piece = samples[None, begin : begin + 960]
            pcm = (piece * 32767).astype(np.int16) if codec.startswith("pcm") else piece
            frame = av.AudioFrame.from_ndarray(pcm, format="s16" if codec.startswith("pcm") else "fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, begin, Fraction(1, 48000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))

    return tone


def sound_of(path: Path) -> list[bytes]:
    """The audio packets as they lie in the file."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]
