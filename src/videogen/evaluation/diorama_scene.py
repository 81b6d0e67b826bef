"""Reading a Diorama video's camera, place, time and weather by registration and colour (DESIGN.md section 2).

Classical vision only, on small frames. The prototypes of places and hours are computed from the published paints.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np

from videogen.data.diorama import PLACES, TIMES
from videogen.data.diorama_canvas import LIGHT
from videogen.data.diorama_places import OVERCAST, SKY

Array = np.ndarray

GROUND = {  # far and near, in full light; the sea's own light below
    "meadow": ((136, 190, 88), (78, 136, 56)),
    "desert": ((236, 202, 144), (214, 172, 112)),
    "snowfield": ((224, 233, 245), (236, 242, 250)),
    "mountains": ((136, 146, 112), (106, 112, 92)),
    "city": ((150, 152, 158), (112, 114, 122)),
}
SEA = {
    "day": ((110, 186, 204), (22, 96, 136)),
    "sunset": ((224, 142, 124), (96, 72, 122)),
    "night": ((56, 76, 128), (20, 36, 82)),
}
SNOW_LIGHT = {"day": 1.0, "sunset": 0.5, "night": 0.9}  # how much of the hour's light snow takes on
BANDS = ((0.06, 0.25), (0.31, 0.44), (0.66, 0.78), (0.81, 0.97))  # rows of the frame: high and low sky, far and near ground
FALLING_FROM = (0.020, 0.009)  # share of the emptier half of the sky that falling things cover, if it is clear and if grey
BLOCK = 16  # pixels of 128 along a side of the blocks that the sky is cut into
RAIN_FROM = 1.4  # energy of slopes across the fall over that along it
PAN_FROM, ZOOM_FROM = 0.03, 0.04  # frame widths a second; logarithm of the scale a second


@functools.cache
def _prototypes() -> tuple[tuple[tuple[str, str, bool], ...], Array]:
    """((place, time, overcast), ...) and the mean colours of their BANDS, (N, 4, 3): clear and overcast."""
    names, colours = [], []
    for time in TIMES:
        zenith, middle, horizon = np.asarray(SKY[time], float)
        clear = np.array([0.35 * zenith + 0.65 * middle, 0.5 * middle + 0.5 * horizon])
        grey = clear + 0.72 * (np.asarray(OVERCAST[time], float) * np.array([[0.93], [1.06]]) - clear)
        for place in PLACES:
            if place == "sea":
                far, near = np.asarray(SEA[time], float)
            else:
                light = 1 + (SNOW_LIGHT[time] if place == "snowfield" else 1.0) * (np.asarray(LIGHT[time]) - 1)
                far, near = np.asarray(GROUND[place], float) * light
            for weather, sky in ((False, clear), (True, grey)):
                bands = np.array([*sky, 0.6 * far + 0.4 * near, 0.2 * far + 0.8 * near])
                if weather:
                    bands = (bands + 0.22 * (0.98 * bands.mean(1, keepdims=True) - bands)) * 0.93
                names.append((place, time, weather))
                colours.append(bands)
    return tuple(names), np.asarray(colours)


def read_place(frames: Array) -> tuple[str, str, bool, float]:
    """Place, time, whether the sky looks overcast, and how far the bands' colours lie from what these have (root mean square,
    0..255), of uint8 (F, S, S, 3)."""
    size = 32
    still = np.median([cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA) for frame in frames], axis=0)
    sides = np.r_[0 : round(0.31 * size), round(0.69 * size) : size]  # the object is in the middle
    bands = np.array([np.median(still[round(a * size) : round(b * size), sides].reshape(-1, 3), 0) for a, b in BANDS])
    names, colours = _prototypes()
    away = ((bands - colours) ** 2 * np.array((0.5, 0.5, 1.0, 1.0))[:, None]).sum((1, 2)) / 9.0
    best = int(away.argmin())
    return *names[best], math.sqrt(float(away[best]))


@dataclass(frozen=True)
class Camera:
    """pan: frame widths a second, to the right; zoom: logarithm of the scale a second, inwards; certainty: by how much the
    frames agree better so than under any other of Diorama's cameras, in shares of their detail."""

    pan: float
    zoom: float
    certainty: float

    @property
    def name(self) -> str | None:
        """In Diorama's words."""
        if abs(self.pan) >= PAN_FROM and abs(self.pan) / PAN_FROM >= self.zoom / ZOOM_FROM:
            return "pans right" if self.pan > 0 else "pans left"
        return "zooms in" if self.zoom >= ZOOM_FROM else None


def details(frames: Array, size: int = 64) -> Array:
    """The fine structure of frames, uint8 (F, H, W, 3), that outlasts rain and snow: float32 (F, size, size), about 0."""
    result = []
    for frame in frames:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if grey.shape[0] != 2 * size:
            grey = cv2.resize(grey, (2 * size, 2 * size), interpolation=cv2.INTER_AREA)
        grey = cv2.medianBlur(cv2.morphologyEx(grey, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8)), 3)
        plane = cv2.resize(grey, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
        result.append(np.clip(cv2.GaussianBlur(plane, (0, 0), 0.8) - cv2.GaussianBlur(plane, (0, 0), 4.0), -8.0, 8.0))
    return np.stack(result)


def to_middle(plane: Array, time: float, pan: float, zoom: float, rows: int, border: float) -> Array:
    """The first `rows` rows of a frame (S, S) as the camera would have seen them at mid-clip; `border` where it did not."""
    size = plane.shape[0]
    scale, centre = math.exp(zoom * time), size / 2 - 0.5
    shift = np.array([[scale, 0, centre - scale * (centre + pan * time * size)], [0, scale, centre * (1 - scale)]], np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(plane, shift, (size, rows), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=border)


def _agreement(planes: Array, times: Array, pan: float, zoom: float, rows: int) -> float:
    """The share of the frames' detail that they have in common if the camera moves so. planes: nan-free, 1e6 where unknown."""
    total = np.zeros((rows, planes.shape[2]), np.float32)
    power, count = total.copy(), total.copy()
    for plane, time in zip(planes, times, strict=True):
        seen = to_middle(plane, time, pan, zoom, rows, 1e6)
        known = seen < 20.0
        seen *= known
        total += seen
        power += seen * seen
        count += known
    use = count >= 0.5 * len(times)
    pairs = (total * total - power)[use] / np.maximum(count * (count - 1), 1)[use]
    return float(pairs.sum() / max(float((power[use] / count[use]).sum()), 1e-6)) if use.any() else 0.0


def read_camera(planes: Array, times: Array, place: str | None, pose: Array | None) -> Camera:
    """The camera's steady motion from `details` (F, S, S) at `times` (seconds since mid-clip).

    The object at `pose` (F, 4) is left out, and so are moving water and shadows: rows below the horizon count in part only.
    """
    size = planes.shape[1]
    planes = planes.copy()
    if pose is not None:
        for plane, (x, y, radius, _) in zip(planes, pose * size, strict=True):
            cv2.circle(plane, (round(x - 0.5), round(y - 0.5)), math.ceil(1.15 * radius + 1), 1e6, -1)
    rows = round((0.58 if place == "sea" else 0.66) * size)

    def score(pan: float, zoom: float) -> float:
        return _agreement(planes, times, pan, zoom, rows)

    known = {move: score(*move) for move in ((0.0, 0.0), (-0.07, 0.0), (0.07, 0.0), (0.0, 0.09))}
    (pan, zoom), best = max(known.items(), key=lambda item: item[1])
    certainty = best - max(value for move, value in known.items() if move != (pan, zoom))
    if pan or not zoom:
        pan += 0.02 * _peak(score(pan - 0.02, 0.0), best, score(pan + 0.02, 0.0))
    if zoom or not pan:
        zoom += 0.02 * _peak(score(pan, zoom - 0.02), score(pan, zoom), score(pan, zoom + 0.02))
    return Camera(pan, zoom, certainty)


def _peak(low: float, middle: float, high: float) -> float:
    """Where the parabola through three equally spaced values peaks, in steps from the middle one, at most 1."""
    bend = low - 2 * middle + high
    return min(max(0.5 * (low - high) / bend, -1.0), 1.0) if bend < -1e-9 else 0.0


def sparkle(frames: Array, times: Array, camera: Camera, pose: Array | None) -> Array:
    """What falls before the lens: small bright things that are not part of the scene, above the horizon, for uint8
    (F, H, W, 3). Returns their share of the area, and the energies of their slopes across and along the fall: (3,).

    What falls does so everywhere: the share is that of the emptier half of the blocks, so crumbs about one thing are not snow.
    """
    size = 128
    rows = round(0.5 * size)
    bright = []
    for frame in frames:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if grey.shape != (size, size):
            grey = cv2.resize(grey, (size, size), interpolation=cv2.INTER_AREA)
        hat = cv2.subtract(grey, cv2.morphologyEx(grey, cv2.MORPH_OPEN, np.ones((7, 7), np.uint8))).astype(np.float32)
        bright.append(hat)
    if pose is not None:
        for plane, (x, y, radius, _) in zip(bright, pose * size, strict=True):
            cv2.circle(plane, (round(x - 0.5), round(y - 0.5)), math.ceil(1.2 * radius + 3), 0.0, -1)
    seen = np.stack([to_middle(p, t, camera.pan, camera.zoom, rows, 0.0) for p, t in zip(bright, times, strict=True)])
    scene = cv2.dilate(np.median(seen, axis=0), np.ones((3, 3), np.uint8))
    fresh = np.maximum(seen - scene - 1.0, 0.0)
    across = np.diff(fresh, axis=2)[:, :-1]
    along = np.diff(fresh, axis=1)[:, :, :-1]
    blocks = (fresh > 4.0).reshape(len(fresh), rows // BLOCK, BLOCK, size // BLOCK, BLOCK).mean((0, 2, 4)).ravel()
    share = np.sort(blocks)[: len(blocks) // 2].mean()
    return np.array([share, (across**2).mean(), (along**2).mean()])


def read_weather(falling: Array, overcast: bool) -> str | None:
    """From the numbers of `sparkle`: rain draws lines, snow dots; under a clear sky more is asked of them."""
    share, across, along = falling
    if share < FALLING_FROM[overcast]:
        return None
    return "rain" if across > RAIN_FROM * along else "snow"
