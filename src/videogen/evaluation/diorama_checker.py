"""What a Diorama video shows, read by classical vision: the judge of the in-domain benchmark (ours).

No network takes part. `diorama_scene` registers the camera and reads place, hour and weather by colour and detail;
`diorama_segmentation` finds the object by hue and by its known silhouettes; `diorama_motion` names its course in the world's
coordinates, the camera taken out. Frames of any square size are read at 64 and 128 pixels.

How it treats what a caption leaves open: no speed word means the middle speed, no weather a clear sky, no camera a still one,
and these are judged too; only the speed of something that rests is not. A video without a recognisable object has None for
colour, shape, motion and speed, which agree with nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from videogen.data.diorama import Labels
from videogen.data.diorama_sprite import EXPOSURE
from videogen.evaluation.diorama_motion import read_motion
from videogen.evaluation.diorama_scene import Camera, details, read_camera, read_place, read_weather, sparkle
from videogen.evaluation.diorama_segmentation import track

ATTRIBUTES = ("colour", "shape", "motion", "speed", "place", "time", "weather", "camera")
MAX_FRAMES = 25  # that are looked at, evenly spaced
SURE = 0.15  # median share of the silhouette that must be explained for an object to be there


@dataclass(frozen=True)
class Reading:
    """What was seen, in Diorama's words. details: the numbers behind it, JSON types."""

    colour: str | None
    shape: str | None
    motion: str | None
    speed: str | None
    place: str
    time: str
    weather: str | None
    camera: str | None
    details: Mapping[str, Any] = field(default_factory=dict)


def check(frames: np.ndarray, fps: float) -> Reading:
    """Read a video, uint8 (F, H, W, 3) at `fps` frames a second. Raises ValueError on other shapes."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) < 2:
        raise ValueError(f"a video to check is uint8 (F, H, W, 3) with at least 2 frames, not {frames.dtype} {frames.shape}")
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), MAX_FRAMES)).round().astype(int))
    times = (chosen - (len(frames) - 1) / 2) / fps
    middle = np.stack([cv2.resize(frames[i], (128, 128), interpolation=cv2.INTER_AREA) for i in chosen])
    place, time, overcast, off = read_place(middle)
    thing = track(middle, times, EXPOSURE[time] * (0.95 if overcast else 1.0))
    seen = bool(np.median(thing.quality) > SURE)
    known = thing.known if thing.known.sum() >= 2 else np.ones(len(times), bool)
    camera = read_camera(details(middle), times, place, thing.pose if seen else None)
    steady = Camera(0.0, 0.0, camera.certainty) if camera.name is None else camera
    falling = sparkle(middle, times, camera, thing.pose if seen else None)
    motion, speed, misfits = read_motion(thing.pose[known], times[known] - times[0], thing.shape, steady.pan, steady.zoom)
    near = sorted(misfits.items(), key=lambda item: item[1])[:3]
    return Reading(
        colour=thing.colour if seen else None,
        shape=thing.shape if seen else None,
        motion=motion if seen else None,
        speed=speed if seen else None,
        place=place,
        time=time,
        weather=read_weather(falling, overcast),
        camera=camera.name,
        details={
            "object_quality": round(float(np.median(thing.quality)), 3),
            "frames_with_object": int(thing.known.sum()),
            "frames_read": len(chosen),
            "misfits": {name: round(value, 3) for name, value in near},
            "drift": _drift(thing.pose[known], chosen[known]) if seen else None,
            "place_distance": round(off, 1),
            "pan": round(camera.pan, 4),
            "zoom": round(camera.zoom, 4),
            "camera_certainty": round(camera.certainty, 3),
            "falling": [round(float(value), 4) for value in falling],
        },
    )


def _drift(pose: np.ndarray, frames: np.ndarray) -> float:
    """How far the object's centre goes from one frame of the video to the next, in frame widths: of the straight course that
    fits its track (N, 4) at these frames best."""
    since = frames - frames.mean()
    return round(float(np.hypot(*(since @ pose[:, :2] / np.square(since).sum()))), 5)


def agreement(reading: Reading, labels: Labels) -> dict[str, bool]:
    """Which of the attributes asked for the video shows; "all": every one of them. The speed of what rests is not asked."""
    asked = [name for name in ATTRIBUTES if not (name == "speed" and labels.motion == "rests")]
    right = {name: getattr(reading, name) == getattr(labels, name) for name in asked}
    return {**right, "all": all(right.values())}
