"""Writing a video frame by frame at true times, beside the untouched audio of its source (ours)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np

from videogen.config import UserError
from videogen.files import reason
from videogen.restoration.source import ACCURATE, FULL, Source

ENDINGS = (".mp4", ".mov", ".mkv", ".webm")
_CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
_H264 = {"crf": "16", "preset": "medium"}
_VP9 = {"crf": "24", "b": "0", "cpu-used": "4", "row-mt": "1"}


class Sink:
    """An output file of H.264 (.webm: VP9), 4:2:0, with the colour tags, depth, pixel shape and audio of `source`.

    factor: how many times the frames of the source; times count in the source's time base divided by it. Odd sizes gain an
    edge pixel, which 4:2:0 H.264 needs. Raises UserError where the container cannot hold the audio as it is.
    """

    def __init__(
        self, path: Path, ending: str, source: Source, factor: int, note: Mapping[str, Any], audio: bool = True
    ) -> None:
        self.time_base = source.time_base / factor
        self.source, self._durations = source, dict[int, int]()
        flags = {"movflags": "faststart"} if ending in (".mp4", ".mov") else {}
        self._file = av.open(str(path), "w", format=_CONTAINERS[ending], options=flags)
        try:
            self._file.metadata.update({key: value for key, value in source.container.metadata.items() if key in _KEPT})
            self._file.metadata["comment"] = json.dumps({"made_by": "videogen", **note}, ensure_ascii=False)
            self._add_video(ending, source, factor)
            self._audio = {stream.index: self._add_audio(stream, ending) for stream in source.audio} if audio else {}
            try:
                self._file.start_encoding()
            except (av.FFmpegError, ValueError) as error:
                raise self._refusal(ending, error) if self._audio else error from None
        except BaseException:
            self._file.close()
            raise

    def _add_video(self, ending: str, source: Source, factor: int) -> None:
        codec, options = ("libvpx-vp9", _VP9) if ending == ".webm" else ("libx264", _H264)
        deep = source.colour.bits > 8 and codec == "libx264"
        if source.colour.bits > 8 and not deep:
            source.notes.append("its 10 bits a colour become 8 in .webm")
        rate = Fraction(source.rate * factor).limit_denominator(1001)
        stream = cast(av.VideoStream, self._file.add_stream(codec, rate=rate, options=options))
        even = 1 if codec == "libvpx-vp9" else 2
        self._pad = source.height % even, source.width % even
        stream.height, stream.width = source.height + self._pad[0], source.width + self._pad[1]
        stream.pix_fmt = self._format = "yuv420p10le" if deep else "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = self.time_base
        colour = source.colour
        context.colorspace, context.color_range = colour.matrix, colour.range
        context.color_primaries, context.color_trc = colour.primaries, colour.transfer
        context.sample_aspect_ratio = source.aspect
        self._stream = stream

    def _add_audio(self, stream: av.AudioStream, ending: str) -> av.AudioStream:
        try:
            return self._file.add_stream_from_template(stream)
        except (av.FFmpegError, ValueError) as error:
            raise self._refusal(ending, error) from None

    def _refusal(self, ending: str, error: BaseException) -> UserError:
        kinds = ", ".join(sorted({stream.codec_context.name for stream in self.source.audio}))
        return UserError(
            f"{ending} cannot hold the audio of {self.source.path} ({kinds}) as it is ({reason(error)}): "
            "write a .mkv, or give --no-audio"
        )

    def write(self, pixels: np.ndarray, pts: int, duration: int) -> None:
        """A frame (H, W, 3), uint8 or uint16, shown from `pts` for `duration`, in `time_base`."""
        pixels = np.pad(pixels, ((0, self._pad[0]), (0, self._pad[1]), (0, 0)), mode="edge")
        kind = "rgb24" if pixels.dtype == np.uint8 else "rgb48le"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=kind)
        colour = self.source.colour
        options: dict[str, Any] = {"dst_colorspace": colour.scaler_matrix, "dst_color_range": colour.range}
        frame = frame.reformat(format=self._format, src_color_range=FULL, interpolation=ACCURATE, **options)
        frame.pts, frame.time_base = pts, self.time_base
        self._durations[pts] = duration
        self._mux(self._stream.encode(frame))

    def copy(self, packet: av.Packet) -> None:
        """An audio packet of the source, as it is."""
        if packet.stream.index in self._audio:
            packet.stream = self._audio[packet.stream.index]
            self._file.mux(packet)

    def close(self, *, whole: bool) -> None:
        """Finish the file, or leave it where it broke off (it lies in a staging folder)."""
        try:
            if whole:
                self._mux(self._stream.encode())
        finally:
            self._file.close()

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            packet.duration = self._durations.pop(packet.pts or 0, 0)
            self._file.mux(packet)


_KEPT = {"title", "artist", "album", "date", "creation_time", "genre", "copyright", "description", "language"}
