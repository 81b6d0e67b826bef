"""How Diorama moves and is filmed (DESIGN.md section 2): poses in seconds, water, weather, camera, exact flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from videogen.data.diorama_canvas import Array, Canvas, smoothstep
from videogen.data.diorama_places import paint
from videogen.data.diorama_sprite import Pose, Sprite, centres, draw_shadow

if TYPE_CHECKING:
    from videogen.data.diorama import Labels

PACE = {"slowly": 0.5, "": 1.0, "quickly": 2.0}
DRIFT = 0.08  # moves left, moves right: frame widths a second
CLIMB = 0.06  # rises, falls
BOUNCE, BOUNCE_PERIOD = 0.25, {"slowly": 1.9, "": 1.2, "quickly": 0.75}  # height; seconds
SPIN = math.radians(90)  # a second
ORBIT, ORBIT_PERIOD = 0.13, {"slowly": 6.0, "": 3.0, "quickly": 1.5}  # radius; seconds
GROWTH = {"slowly": 0.06, "": 0.12, "quickly": 0.21}  # natural logarithm of the size, a second
PAN = 0.07  # frame widths a second
ZOOM = 0.09  # natural logarithm of the scale, a second
FEET = {"ball": 0.98, "box": 0.84, "triangle": 0.58, "star": 0.85, "heart": 0.74, "ring": 0.97}  # centre to ground, in radii
SHOWN = 3.75  # seconds for which the object stays in view: 16 frames, 4 a second


@dataclass(frozen=True)
class View:
    """The camera: frame = (world - centre) * zoom + 1/2."""

    x: float
    y: float
    zoom: float

    def pose(self, pose: Pose) -> Pose:
        """A world pose as seen in the frame."""
        return Pose(
            (pose.x - self.x) * self.zoom + 0.5, (pose.y - self.y) * self.zoom + 0.5, pose.scale * self.zoom, pose.angle
        )


class Motion:
    """Where the object and the camera are, as functions of the time since the first frame, in seconds.

    A first frame tells as little as it can of what follows: a scene's start is drawn alike for all motions, then moved only
    as far as is needed to keep the object in view. Whoever continues it has to read the words. From its start on, all that
    moves is decided: turns are clockwise, a bounce begins on the ground and a circle at its lowest point.
    """

    def __init__(self, labels: Labels, rng: np.random.Generator) -> None:
        self.motion, self.speed, self.camera = labels.motion, labels.speed, labels.camera
        self.pace = PACE[labels.speed]
        self.radius = float(rng.uniform(0.135, 0.175))
        self.ground = float(rng.uniform(0.79, 0.86))
        x, height, stands = float(rng.uniform(0.3, 0.7)), float(rng.uniform(0.44, 0.64)), rng.random() < 0.5
        self.tilt = float(rng.uniform(-0.14, 0.14))
        self.foot = FEET[labels.shape]
        self.x = self._in_view(x)
        low = self.ground - self.foot * self.radius
        self.y = min(low if stands else height, low)
        if self.motion == "rises":
            self.y = min(max(self.y, 0.5 - 0.38 / self.view(SHOWN).zoom + CLIMB * self.pace * SHOWN), low)
        elif self.motion == "falls":
            self.y = min(height, low - CLIMB * self.pace * SHOWN)
        elif self.motion not in ("spins", "circles"):
            self.y = low

    def _in_view(self, x: float) -> float:
        """`x`, moved so that the object is in view in the first frame and after SHOWN seconds, if it can be."""
        velocity = self.pace * {"moves left": -DRIFT, "moves right": DRIFT}.get(self.motion, 0.0)
        last = self.view(SHOWN)
        middle, reach = last.x - velocity * SHOWN, 0.44 / last.zoom
        low, high = max(0.12, middle - reach), min(0.88, middle + reach)
        return min(max(x, low), high) if low < high else (low + high) / 2

    def _pan(self) -> float:
        return {"pans left": -PAN, "pans right": PAN}.get(self.camera or "", 0.0)

    def view(self, t: float) -> View:
        return View(0.5 + self._pan() * t, 0.5, math.exp(ZOOM * t) if self.camera == "zooms in" else 1.0)

    def pose(self, t: float) -> Pose:
        x, y, r = self.x, self.y, self.radius
        match self.motion:
            case "moves left" | "moves right":
                x += (DRIFT if self.motion == "moves right" else -DRIFT) * self.pace * t
            case "rises" | "falls":
                y += (CLIMB if self.motion == "falls" else -CLIMB) * self.pace * t
            case "bounces":
                u = t / BOUNCE_PERIOD[self.speed] % 1.0
                y -= BOUNCE * 4 * u * (1 - u)
            case "spins":
                return Pose(x, y, r, self.tilt + SPIN * self.pace * t)
            case "circles":
                a = math.tau * t / ORBIT_PERIOD[self.speed]
                return Pose(x - ORBIT * math.sin(a), y - ORBIT * (1 - math.cos(a)), r, self.tilt)
            case "grows" | "shrinks":
                r *= math.exp((GROWTH[self.speed] if self.motion == "grows" else -GROWTH[self.speed]) * t)
                y = self.ground - self.foot * r
        return Pose(x, y, r, self.tilt)


class Water:
    """Waves that run over the sea part of a canvas by themselves."""

    def __init__(self, canvas: Canvas, rng: np.random.Generator) -> None:
        self.top = canvas.row(canvas.horizon)
        y = np.maximum(canvas.y[self.top :] - canvas.horizon, 0.0)
        depth = np.log1p(y / 0.05) * 10.0
        spread = (canvas.x - 0.5) / (y + 0.10)
        self.waves: list[tuple[Array, Array, float]] = []
        for along, across, rate, weight in ((3.1, 0.55, 2.2, 0.5), (4.4, -0.9, 2.9, 0.35), (6.4, 1.7, 3.8, 0.3)):
            phase = along * depth + across * spread + 1.4 * np.sin(1.3 * spread * (0.8 + weight)) + float(rng.uniform(0, 6.28))
            self.waves.append((np.float32(weight) * np.sin(phase), np.float32(weight) * np.cos(phase), rate))
        fade = smoothstep(0.0, 0.16, y)
        crest = {"day": (206, 240, 246), "sunset": (255, 196, 148), "night": (138, 160, 216)}[canvas.time]
        self.calm = canvas.rgb[:, self.top :].copy()
        self.lift = [(level - calm) * (0.34 * fade) for level, calm in zip(crest, self.calm, strict=True)]
        self.pixels = _pixels(canvas.rgb)

    def flood(self, t: float) -> np.ndarray:
        """The canvas with the sea at time `t` (seconds), uint8 (height, width, 3)."""
        total = np.zeros_like(self.waves[0][0])
        for sine, cosine, rate in self.waves:
            total += sine * math.cos(rate * t)
            total -= cosine * math.sin(rate * t)
        for channel, (calm, lift) in enumerate(zip(self.calm, self.lift, strict=True)):
            self.pixels[self.top :, :, channel] = np.clip(calm + total * lift + 0.5, 0.0, 255.0)
        return self.pixels


class Weather:
    """Rain or snow before the lens: two periodic layers of streaks or flakes that fall at different speeds."""

    def __init__(self, kind: str, rng: np.random.Generator, size: int) -> None:
        self.colour = (232, 234, 238) if kind == "rain" else (252, 252, 254)
        self.layers: list[tuple[np.ndarray, float, float, float]] = []  # tile; fall, drift, sway: frame widths (a second)
        self.finer = max(1, round(512 / size))  # the tile's pixels in a pixel of the frame
        draw = _streaks if kind == "rain" else _flakes
        for near in (0.55, 1.0):
            tile = Image.new("L", (size * self.finer, size * self.finer))
            draw(ImageDraw.Draw(tile), rng, near, tile.width)
            fall = (1.5 if kind == "rain" else 0.22) * near
            drift, sway = (-0.16 * fall, 0.0) if kind == "rain" else (0.02, 0.012 / near)
            self.layers.append((np.asarray(tile), fall, drift, sway))

    def fall(self, frame: np.ndarray, t: float) -> np.ndarray:
        """`frame`, uint8 (H, W, 3), with the weather of time `t` (seconds) before it."""
        masks = []
        for tile, down, drift, sway in self.layers:
            x = -drift * t - sway * math.sin(1.7 * t)
            shift = (-int(-down * t % 1.0 * len(tile)), -int(x % 1.0 * len(tile)))
            mask = Image.fromarray(np.roll(tile, shift, axis=(0, 1)))
            masks.append(mask.reduce(self.finer) if self.finer > 1 else mask)
        picture = Image.fromarray(frame)
        picture.paste(self.colour, mask=ImageChops.screen(*masks))
        return np.asarray(picture)


def _around(x: float, y: float, side: int) -> list[tuple[float, float]]:
    """A place on a periodic tile, and those of its copies across the borders that reach into the tile."""
    near = [(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return [(u * side, v * side) for u, v in near if -0.15 < u < 1.15 and -0.15 < v < 1.15]


def _streaks(pen: ImageDraw.ImageDraw, rng: np.random.Generator, near: float, side: int) -> None:
    light, width = int(70 + 70 * near), max(1, round((3 if near == 1 else 2) * side / 512))
    for x, y, s in rng.random((46, 3)):
        length = side * 0.10 * near * (0.7 + 0.6 * s)
        for left, top in _around(x, y, side):
            pen.line([(left, top), (left - 0.16 * length, top + length)], fill=light, width=width)


def _flakes(pen: ImageDraw.ImageDraw, rng: np.random.Generator, near: float, side: int) -> None:
    light = int(235 * (0.55 + 0.45 * near))
    for x, y, s in rng.random((52, 3)):
        r = side * 0.0085 * near * (0.7 + 0.7 * s)
        for left, top in _around(x, y, side):
            pen.ellipse([(left - r, top - r), (left + r, top + r)], fill=light)


class Film:
    """What the camera sees of a canvas, sampled anew only where camera or water move."""

    def __init__(self, canvas: Canvas, views: list[View], water: Water | None, size: int) -> None:
        self.canvas, self.water, self.size = canvas, water, size
        self.still = len(set(views)) == 1
        self.source = Image.fromarray(_pixels(canvas.rgb))
        self.squeezed = False  # whether the source's rows are the frame's already
        self.top = 0  # the first row of the frame that may change
        if self.still:
            self.background = self._see(self.source, views[0])
            self.top = size if water is None else max(math.floor(canvas.horizon * size) - 2, 0)
        elif water is None and len({(view.y, view.zoom) for view in views}) == 1:
            # A pan resamples rows always alike: do that once.
            _, top, _, bottom = self._box(views[0])
            self.squeezed = True
            narrow = (canvas.width, size)
            self.source = self.source.resize(narrow, Image.Resampling.BILINEAR, box=(0, top, canvas.width, bottom))

    def _box(self, view: View) -> tuple[float, float, float, float]:
        """The part of the canvas in view, in its pixels."""
        half = 0.5 / view.zoom
        left, top = (view.x - half - self.canvas.box[0]) / self.canvas.px, (view.y - half - self.canvas.box[1]) / self.canvas.px
        return left, top, left + 2 * half / self.canvas.px, top + 2 * half / self.canvas.px

    def _see(self, source: Image.Image, view: View, first: int = 0) -> np.ndarray:
        """The frame's rows from `first` on."""
        left, top, right, bottom = self._box(view)
        if self.squeezed:
            top, bottom = 0.0, float(self.size)
        top += first * (bottom - top) / self.size
        shape = (self.size, self.size - first)
        return np.asarray(source.resize(shape, Image.Resampling.BILINEAR, box=(left, top, right, bottom)))

    def shoot(self, frame: np.ndarray, view: View, t: float) -> None:
        """Fill `frame`, uint8 (size, size, 3), with the background at time `t`."""
        if self.still:
            frame[: self.top] = self.background[: self.top]
            if self.top == self.size:
                return
        source = self.source if self.water is None else Image.fromarray(self.water.flood(t))
        frame[self.top :] = self._see(source, view, self.top)


def _pixels(planes: Array) -> np.ndarray:
    """uint8 (height, width, 3) from float (3, height, width)."""
    result = np.empty((*planes.shape[1:], 3), np.uint8)
    for channel, plane in enumerate(planes):
        result[..., channel] = np.clip(plane + 0.5, 0.0, 255.0)
    return result


def render_frames(
    labels: Labels, rng: np.random.Generator, *, size: int, num_frames: int, fps: float, with_flow: bool, dry: bool
) -> tuple[np.ndarray, np.ndarray | None, tuple[float, float]]:
    """Frames, uint8 (F, size, size, 3); flow, float32 (F, 2, 2, size, size), if wanted; the middle; all as in `Clip`.
    dry: nothing falls in the first frame yet."""
    times = [i / fps for i in range(num_frames)]
    motion_rng, place_rng, weather_rng = rng.spawn(3)
    motion = Motion(labels, motion_rng)
    horizon = float(place_rng.uniform(0.52, 0.60))
    views = [motion.view(t) for t in times]
    canvas = _canvas(views, size, horizon, labels.time)
    paint(canvas, labels.place, labels.weather, place_rng)
    water = Water(canvas, place_rng) if labels.place == "sea" else None
    weather = Weather(labels.weather, weather_rng, size) if labels.weather else None
    sprite = Sprite(labels)
    shadow = {"day": 0.5, "sunset": 0.42, "night": 0.36}[labels.time] * (0.7 if labels.weather else 1.0)
    if labels.place == "sea":
        shadow *= 0.7
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    film = Film(canvas, views, water, size)
    for t, view, frame in zip(times, views, frames, strict=True):
        film.shoot(frame, view, t)
        pose = view.pose(motion.pose(t))
        draw_shadow(frame, pose, (motion.ground - view.y) * view.zoom + 0.5, shadow)
        sprite.draw(frame, pose)
        if weather is not None and (t or not dry):
            frame[:] = weather.fall(frame, t)
    flow = _flow(motion, sprite, times, fps, size) if with_flow else None
    pose = views[0].pose(motion.pose(times[0]))
    return frames, flow, (pose.x * size, pose.y * size)


def _canvas(views: list[View], size: int, horizon: float, time: str) -> Canvas:
    """An empty canvas that covers all views with a small margin, finer than the frames."""
    px = 1.0 / max(1.5 * size, 128.0)
    left = min(view.x - 0.5 / view.zoom for view in views) - 0.02
    top = min(view.y - 0.5 / view.zoom for view in views) - 0.02
    right = max(view.x + 0.5 / view.zoom for view in views) + 0.02
    bottom = max(view.y + 0.5 / view.zoom for view in views) + 0.02
    width, height = math.ceil((right - left) / px), math.ceil((bottom - top) / px)
    return Canvas((left, top, left + width * px, top + height * px), width, height, horizon, time)


def _flow(motion: Motion, sprite: Sprite, times: list[float], fps: float, size: int) -> np.ndarray:
    """Where each pixel's surface is one frame earlier and later: two similarities, of the camera and of the object."""
    flow = np.empty((len(times), 2, 2, size, size), np.float32)
    at = centres(slice(0, size), size)
    for i, t in enumerate(times):
        view = motion.view(t)
        rows, columns, u, v = sprite.local(view.pose(motion.pose(t)), size)
        inside = sprite.shape(u, v) < 0
        for j, other in enumerate((t - 1 / fps, t + 1 / fps)):
            there = motion.view(other)
            growth = there.zoom / view.zoom - 1
            flow[i, j, 0] = ((at - 0.5) * growth + (view.x - there.x) * there.zoom) * size
            flow[i, j, 1] = (((at - 0.5) * growth + (view.y - there.y) * there.zoom) * size)[:, None]
            pose = there.pose(motion.pose(other))
            cos, sin = pose.scale * math.cos(pose.angle), pose.scale * math.sin(pose.angle)
            moved = (pose.x + cos * u - sin * v - at[columns], pose.y + sin * u + cos * v - at[rows, None])
            for axis, shift in enumerate(moved):
                flow[i, j, axis, rows, columns][inside] = shift[inside] * size
    return flow
