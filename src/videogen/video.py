"""Video files: what the pipeline's frames become, and what the reference image and real clips come from (sections 3.1, 4.1).

Files from elsewhere are not trusted: only regular files are opened, size and length are capped before they cost memory, and
whatever a decoder raises becomes one `UserError`. Files of ours appear whole or not at all: they are written into a staging
folder beside their place and renamed.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
from PIL import Image, ImageOps

from videogen.config import UserError
from videogen.files import decoding, open_regular, reason, staging

MIN_FPS, MAX_FPS = 0.1, 960.0
MAX_GIF_FPS = 50.0  # a GIF counts in 1/100 s and players slow down anything shorter than 2/100 s
VIDEO_ENDINGS = (".mp4", ".webm", ".gif", "")  # "": a folder of PNGs

_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_DEMUXERS = "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,ogg,flv"  # none of them opens a second file or address
_MADE_BY = {"made_by": "videogen"}  # marks the JSON that we may replace
_FRAME_NAME = re.compile(r"\d{5,}\.png")
_NOTE_NAME = "provenance.json"
_MAX_NOTE = 1 << 22  # bytes of a provenance JSON


@dataclass(frozen=True)
class Video:
    """frames: uint8 (F, H, W, 3), sRGB, F >= 1; fps: frames a second, 0.1..960; provenance: how it was made, JSON types.

    Raises ValueError on anything else.
    """

    frames: np.ndarray
    fps: float
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.frames.shape
        if self.frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise ValueError(f"frames must be uint8 (F, H, W, 3), not {self.frames.dtype} {shape}")
        if not MIN_FPS <= self.fps <= MAX_FPS:  # false for NaN too
            raise ValueError(f"fps must lie in {MIN_FPS}..{MAX_FPS}, not {self.fps}")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self) / self.fps


# Reading


def read_video(
    path: str | Path,
    *,
    max_frames: int = 10_000,
    max_pixels: int = 1 << 25,
    max_seconds: float = 3600.0,
    max_bytes: int = 1 << 31,
) -> Video:
    """All frames of a video file, upright (a phone's rotation is applied), with their average rate.

    max_pixels: of one frame; max_bytes: of all frames as RGB. Raises UserError where a cap is passed, and where the file is
    missing, is not a regular file or cannot be decoded.
    """
    frames: list[np.ndarray] = []
    times: list[float] = []
    step, rotation = 0.0, 0
    with decoding(path, "a video"), open_regular(path) as file, open_container(file) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": str(max_pixels)}
        if stream.width * stream.height > max_pixels:
            raise UserError(f"{path}: frames of {stream.width}x{stream.height} are too large (at most {max_pixels} pixels)")
        provenance = _note_in(container.metadata)
        nominal = stream.average_rate
        for frame in _decode(container, stream):
            time = frame.time if frame.time is not None else len(frames) / float(nominal or 25)
            if len(frames) == max_frames or time > max_seconds:
                raise UserError(f"{path}: too long (at most {max_frames} frames and {max_seconds:g} s); cut it first")
            if (len(frames) + 1) * frame.width * frame.height * 3 > max_bytes:
                raise UserError(f"{path}: its frames need more than {max_bytes >> 20} MiB; shorten or shrink it first")
            frames.append(frame.to_ndarray(format="rgb24"))
            times.append(time)
            step = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
            rotation = frame.rotation
        if not frames:
            raise UserError(f"{path}: no frame in it can be decoded")
        turned = np.rot90(np.stack(frames), round(rotation / 90), axes=(1, 2))  # both counter-clockwise
        return Video(np.ascontiguousarray(turned), average_rate(times, step, nominal), provenance)


def open_container(file: BinaryIO) -> av.container.InputContainer:
    """A video in one of the formats that are safe to read from strangers."""
    return av.open(file, "r", options={"format_whitelist": _DEMUXERS}, metadata_errors="replace")


def _decode(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise ValueError("it ends in the middle of a frame")
        yield from packet.decode()


def average_rate(times: list[float], last_step: float, nominal: Fraction | None) -> float:
    """Frames a second by the time stamps (seconds); the container's own exact figure where they agree to 1%.

    last_step: how long the last frame is shown, seconds, 0 if unknown.
    """
    span = times[-1] - times[0] + (last_step or (times[-1] - times[0]) / max(len(times) - 1, 1))
    measured = len(times) / span if span > 0 else float(nominal or 0)
    return float(nominal) if nominal and abs(measured / float(nominal) - 1) < 0.01 else measured


def read_image(path: str | Path, *, max_pixels: int = 1 << 26) -> Image.Image:
    """An image of any mode as upright 8-bit RGB: alpha over white, 16 bits scaled, the EXIF orientation applied.

    Raises UserError where the file is missing, is no regular file, no whole PNG, JPEG, WebP, BMP, GIF or TIFF, or too large.
    """
    with decoding(path, "an image"), open_regular(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no matter of ours
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=_IMAGE_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise UserError(f"{path}: {image.width}x{image.height} is too large (at most {max_pixels} pixels)")
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        peak = (1.0 if values.max() <= 1 else 255.0) if image.mode == "F" else 65535.0
        image = Image.fromarray(np.rint(np.clip(values / peak, 0, 1) * 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_provenance(path: str | Path) -> dict[str, Any]:
    """How a video written by `write_video` was made: from the file itself, not from the JSON beside it.

    {} where it carries nothing of ours. Raises UserError where the file cannot be read.
    """
    if Path(path).is_dir():
        return _read_note(Path(path) / _NOTE_NAME)
    with decoding(path, "a video"), open_regular(path) as file:
        if Path(path).suffix.lower() == ".gif":
            with Image.open(file, formats=["GIF"]) as image:
                return _parse_note(image.info.get("comment", b""))
        with open_container(file) as container:
            return _note_in(container.metadata)


def _note_in(metadata: Mapping[str, str]) -> dict[str, Any]:
    return _parse_note({key.lower(): value for key, value in metadata.items()}.get("comment", ""))


def _read_note(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    with open_regular(path) as file:
        return _parse_note(file.read(_MAX_NOTE))


def _parse_note(text: str | bytes) -> dict[str, Any]:
    try:
        note = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(note, dict) or not note.items() >= _MADE_BY.items():
        return {}
    return {key: value for key, value in note.items() if key not in _MADE_BY}


# Writing


def check_output(
    path: str | Path, overwrite: bool = False, *, endings: tuple[str, ...] = VIDEO_ENDINGS, note: bool = True
) -> None:
    """Can a video with provenance be written there? To be asked before the work begins.

    endings: what may be written there; "" stands for a folder, named without an ending or with a final "/". note: does the
    JSON of a video come beside it?
    Raises UserError on an unknown ending, something already there (unless `overwrite`) or a place that cannot be written.
    """
    place = _place(path)
    if _ending(path) not in endings:
        known = ", ".join(ending for ending in endings if ending)
        or_folder = ' or a folder of PNGs (a name without an ending, or with a final "/")' if "" in endings else ""
        raise UserError(f"{path}: unknown ending {_ending(path)!r}; use {known}{or_folder}")
    _check_free(path, overwrite)
    if note and _ending(path) in VIDEO_ENDINGS and _ending(path):
        _check_note_free(note_path(path), overwrite)
    with staging(place) as folder:
        (folder / place.name).touch()


def write_video(video: Video, path: str | Path, *, overwrite: bool = False) -> None:
    """Write .mp4 (H.264), .webm (VP9), .gif or a folder of PNGs, by the ending of `path`; see `check_output`.

    Provenance goes into the file's own metadata (a folder: its provenance.json) and into a JSON beside it: ball.mp4 has
    ball.json. Odd sizes gain one edge pixel in .mp4. A GIF has at most 50 frames a second: frames are left out, it is never
    slowed down. Raises UserError as `check_output`, and where writing fails.
    """
    ending, place = _ending(path), _place(path)
    if ending not in _WRITERS:
        check_output(path, overwrite)  # says which endings there are
    _check_free(path, overwrite)
    beside = bool(video.provenance) and ending != ""
    if beside:
        _check_note_free(note_path(path), overwrite)
    with staging(place) as folder:
        _WRITERS[ending](video, folder / "video")
        if beside:
            (folder / "note").write_bytes(_note(video, indent=2))
        _put_in_place(folder / "video", place, folder / "retired")
        if beside:
            os.replace(folder / "note", note_path(path))


def note_path(path: str | Path) -> Path:
    """Where the provenance JSON of the video at `path` lies."""
    return _place(path) / _NOTE_NAME if _ending(path) == "" else _place(path).with_suffix(".json")


def contact_strip(video: Video, count: int) -> Image.Image:
    """`count` frames, evenly spaced from the first to the last, side by side: an RGB image of count*W x H pixels."""
    chosen = np.linspace(0, len(video) - 1, count).round().astype(int)
    return Image.fromarray(np.concatenate(list(video.frames[chosen]), axis=1))


def _ending(path: str | Path) -> str:
    text = os.fspath(path)
    return "" if text.endswith(("/", os.sep)) else Path(text).suffix.lower()


def _place(path: str | Path) -> Path:
    if not os.fspath(path):
        raise UserError("the output's name is empty")
    return Path(os.path.abspath(path))  # absolute, so that no name is taken for an address ("http:...")


def _check_free(path: str | Path, overwrite: bool) -> None:
    place, is_folder = _place(path), _ending(path) == ""
    try:
        mode = os.lstat(place).st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from None
    if is_folder and stat.S_ISDIR(mode):
        names = os.listdir(place)
        foreign = next((name for name in names if not _FRAME_NAME.fullmatch(name) and name != _NOTE_NAME), None)
        if foreign is not None:
            raise UserError(f"{path} is a folder with other files in it ({foreign}); choose another output")
        if names and not overwrite:
            raise UserError(f"{path} exists; choose another output or give --overwrite")
    elif is_folder or not stat.S_ISREG(mode):
        raise UserError(f"{path} exists and is not a {'folder' if is_folder else 'regular file'}; choose another output")
    elif not overwrite:
        raise UserError(f"{path} exists; choose another output or give --overwrite")


def _check_note_free(note: Path, overwrite: bool) -> None:
    if not os.path.lexists(note):
        return
    if not note.is_file() or not _read_note(note):
        raise UserError(f"{note} lies where the video's description would go, and is none; choose another output")
    if not overwrite:
        raise UserError(f"{note} exists; choose another output or give --overwrite")


def _put_in_place(staged: Path, place: Path, retired: Path) -> None:
    if place.is_dir():  # a folder with files cannot be replaced in one step: move the old one away first
        os.replace(place, retired)
    os.replace(staged, place)
    shutil.rmtree(retired, ignore_errors=True)


def _note(video: Video, indent: int | None = None) -> bytes:
    return json.dumps({**_MADE_BY, **video.provenance}, ensure_ascii=False, indent=indent).encode("utf-8", "replace")


def _encode(video: Video, path: Path, container: str, codec: str, options: dict[str, str]) -> None:
    """BT.709, limited range, tagged as such, 4:2:0; the rate as an exact fraction (30000/1001, not 29.97)."""
    frames = video.frames
    if container == "mp4":  # 4:2:0 H.264 has even sizes only
        frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    rate = Fraction(video.fps).limit_denominator(1001)
    flags = {"movflags": "faststart"} if container == "mp4" else {}
    with av.open(str(path), "w", format=container, options=flags) as output:
        if video.provenance:
            note = _note(video).decode()
            output.metadata.update(title=str(video.provenance.get("prompt", ""))[:200].replace("\0", " "), comment=note)
        stream = cast(av.VideoStream, output.add_stream(codec, rate=rate, options=options))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = 1  # BT.709
        context.color_range = 1  # limited
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.pts, frame.time_base = index, 1 / rate
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def _write_mp4(video: Video, path: Path) -> None:
    _encode(video, path, "mp4", "libx264", {"crf": "16", "preset": "medium"})


def _write_webm(video: Video, path: Path) -> None:
    _encode(video, path, "webm", "libvpx-vp9", {"crf": "24", "b": "0", "cpu-used": "4", "row-mt": "1"})


def _write_gif(video: Video, path: Path) -> None:
    rate = min(video.fps, MAX_GIF_FPS)
    count = max(1, round(video.seconds * rate))
    chosen = video.frames[np.minimum((np.arange(count) * video.fps / rate).round().astype(int), len(video) - 1)]
    edges = [math.floor(100 * index / rate + 0.5) for index in range(count + 1)]  # in 1/100 s; errors do not add up
    palette = contact_strip(video, min(len(video), 16)).quantize(256)  # one for all frames, or colours flicker
    images = [Image.fromarray(frame).quantize(palette=palette) for frame in chosen]
    images[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=[10 * (end - start) for start, end in itertools.pairwise(edges)],
        loop=0,
        comment=_note(video) if video.provenance else b"",
    )


def _write_pngs(video: Video, path: Path) -> None:
    path.mkdir()
    for index, frame in enumerate(video.frames):
        Image.fromarray(frame).save(path / f"{index:05d}.png", compress_level=6)
    if video.provenance:
        (path / _NOTE_NAME).write_bytes(_note(video, indent=2))


_WRITERS: Mapping[str, Callable[[Video, Path], None]] = {
    ".mp4": _write_mp4,
    ".webm": _write_webm,
    ".gif": _write_gif,
    "": _write_pngs,
}
