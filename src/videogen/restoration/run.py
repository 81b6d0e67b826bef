"""From video file to video file (sections 3.3, 3.4): `interpolate_video` and `enhance_video`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av

from videogen.config import UserError
from videogen.files import staging
from videogen.restoration.restorer import Restorer
from videogen.restoration.sink import ENDINGS, Sink
from videogen.restoration.source import Frame, Source, open_source
from videogen.video import check_output

Tell = Callable[[int, int | None], None]
"""Called as (frames of the source done, how many there are by its headers or None)."""

MAX_PAUSE = 0.5  # seconds between frames (or three times the usual, if that is more) that are still taken as motion


def interpolate_video(path: str | Path, output: str | Path, restorer: Restorer, factor: int, **options: Any) -> list[str]:
    """Write `factor` (2, 4 or 8) times the frames of a video, evenly between its own (see `Restorer.interpolate`).

    Returns notes for the user. options: as of `enhance_video`. Raises UserError, also on a video of a single frame.
    """
    return _restore(path, output, restorer, factor, **options)


def enhance_video(
    path: str | Path,
    output: str | Path,
    restorer: Restorer,
    *,
    note: dict[str, Any] | None = None,
    audio: bool = True,
    overwrite: bool = False,
    tell: Tell | None = None,
) -> list[str]:
    """Every frame of a video through encoder and video decoder (section 3.4); .mp4, .mov, .mkv or .webm by the output's ending.

    Times, duration, colour tags, depth and pixel shape stay, rotation is applied, audio packets are copied. note: for the
    file's metadata. The output appears whole or not at all. Returns notes for the user. Raises UserError.
    """
    return _restore(path, output, restorer, 1, note=note, audio=audio, overwrite=overwrite, tell=tell)


def _restore(
    path: str | Path,
    output: str | Path,
    restorer: Restorer,
    factor: int,
    *,
    note: dict[str, Any] | None = None,
    audio: bool = True,
    overwrite: bool = False,
    tell: Tell | None = None,
) -> list[str]:
    check_output(output, overwrite, endings=ENDINGS, note=False)
    place = Path(os.path.abspath(output))
    with open_source(path) as source, staging(place) as folder:
        part = folder / "video"
        sink = Sink(part, place.suffix.lower(), source, factor, note or {}, audio)
        whole = False
        try:
            frames = _Feed(source, sink)
            made = restorer.enhance(frames) if factor == 1 else _interpolated(restorer, frames, factor)
            for count, frame in enumerate(made, start=1):
                sink.write(frame.pixels, frame.pts, frame.duration)
                if tell is not None and count % factor == 0:
                    tell(count // factor, source.frames)
            whole = True
        finally:
            sink.close(whole=whole)
        if factor > 1 and frames.count == 1:
            raise UserError(f"{path} has a single frame: there is nothing between")
        os.replace(part, place)
        return source.notes


def _interpolated(restorer: Restorer, frames: _Feed, factor: int) -> Iterator[Any]:
    source = frames.source
    pause = max(MAX_PAUSE, 3 / float(source.rate))
    return restorer.interpolate(frames, factor, fps=float(source.rate), max_gap=round(pause / float(source.time_base)))


class _Feed:
    """The frames of a source; its audio goes straight to the sink."""

    def __init__(self, source: Source, sink: Sink) -> None:
        self.source, self.sink, self.count = source, sink, 0

    def __iter__(self) -> Iterator[Frame]:
        for item in self.source.read():
            if isinstance(item, av.Packet):
                self.sink.copy(item)
            else:
                self.count += 1
                yield item
