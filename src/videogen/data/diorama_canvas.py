"""What Diorama's places are painted on (DESIGN.md section 2): a canvas in the world's own coordinates, and small crisp things.

World unit: one frame width; x to the right, y down, the first frame is [0, 1] x [0, 1]. All random numbers are drawn
independently of the resolution and of the painted part of the world, so every size shows the same scene.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[Any]
Colour = tuple[float, float, float]

WORLD = (-1.0, -0.6, 2.0, 1.6)  # left, top, right, bottom of what random fields cover

LIGHT: dict[str, Colour] = {"day": (1.0, 1.0, 1.0), "sunset": (0.95, 0.76, 0.67), "night": (0.38, 0.41, 0.62)}


def smoothstep(low: float, high: float, x: Array) -> Array:
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


class Decor:
    """Small crisp things, drawn in world coordinates at twice the canvas resolution."""

    def __init__(self, canvas: Canvas) -> None:
        self.left, self.top, self.right, _ = canvas.box
        self.scale = 2.0 / canvas.px
        self.image = Image.new("RGBA", (2 * canvas.width, 2 * canvas.height))
        self.pen = ImageDraw.Draw(self.image)

    def _at(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [((x - self.left) * self.scale, (y - self.top) * self.scale) for x, y in points]

    def polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        self.pen.polygon(self._at(points), fill=_rgb(colour))

    def box(self, x: float, y: float, width: float, height: float, colour: Colour, radius: float = 0.0) -> None:
        if x > self.right or x + width < self.left:
            return
        corners = self._at([(x, y), (x + width, y + height)])
        if radius:
            self.pen.rounded_rectangle(corners, radius * self.scale, fill=_rgb(colour))
        else:
            self.pen.rectangle(corners, fill=_rgb(colour))

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        if x - rx > self.right or x + rx < self.left:
            return
        self.pen.ellipse(self._at([(x - rx, y - ry), (x + rx, y + ry)]), fill=_rgb(colour))


def _rgb(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (min(max(int(value), 0), 255) for value in colour)
    return red, green, blue


def _resample(
    rng: np.random.Generator, columns: int, rows: int, box: tuple[float, float, float, float], size: tuple[int, int]
) -> Array:
    """A part of the world's random grid, smoothly enlarged to `size`: (width, height)."""
    grid = rng.random((rows, columns), np.float32)
    left, top, right, bottom = WORLD
    part = (
        max(box[0] - left, 0.0) / (right - left) * columns,
        max(box[1] - top, 0.0) / (bottom - top) * rows,
        min((box[2] - left) / (right - left), 1.0) * columns,
        min((box[3] - top) / (bottom - top), 1.0) * rows,
    )
    return np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC, box=part))


class Canvas:
    """A painted part of the world. rgb: float32 (3, height, width), 0..255; px: world size of one canvas pixel."""

    def __init__(self, box: tuple[float, float, float, float], width: int, height: int, horizon: float, time: str) -> None:
        self.box, self.width, self.height, self.horizon, self.time = box, width, height, horizon, time
        self.px = (box[2] - box[0]) / width
        self.x: Array = (box[0] + (np.arange(width, dtype=np.float32) + 0.5) * self.px).astype(np.float32)
        self.y: Array = (box[1] + (np.arange(height, dtype=np.float32) + 0.5) * self.px).astype(np.float32)[:, None]
        self.rgb: Array = np.empty((3, height, width), np.float32)

    def lit(self, colour: Colour, amount: float = 1.0) -> Colour:
        """A surface colour under the light of the hour; amount < 1 keeps some of its own (moon on snow, say)."""
        red, green, blue = (
            value * (1 - amount + amount * light) for value, light in zip(colour, LIGHT[self.time], strict=True)
        )
        return red, green, blue

    def row(self, y: float) -> int:
        """The first row at or below height `y`."""
        return int(np.clip(np.ceil((y - self.box[1]) / self.px - 0.5), 0, self.height))

    def blend(self, alpha: Array, colour: Iterable[float | Array], top: int = 0) -> None:
        """Lay `colour` over the rows from `top` on, as far as `alpha` (rows, columns) reaches."""
        part = self.rgb[:, top : top + alpha.shape[0]]
        for plane, value in zip(part, colour, strict=True):
            plane += alpha * (value - plane)

    def field(self, rng: np.random.Generator, columns: int, rows: int, until: int) -> Array:
        """Smooth noise, about 0..1, in columns x rows cells over the world, for the canvas's first `until` rows."""
        left, top, right, _ = self.box
        return _resample(rng, columns, rows, (left, top, right, top + until * self.px), (self.width, until))

    def ground_field(self, rng: np.random.Generator, columns: int, rows: int, top: int) -> Array:
        """The same on the ground, in perspective: finer towards the horizon. For the rows from `top` on."""
        left, _, right, _ = self.box
        table = _resample(rng, columns, rows, (left, WORLD[1], right, WORLD[3]), (self.width, 192))
        depth = np.log1p(np.maximum(self.y[top:, 0] - self.horizon, 0.0) / 0.06) / 3.0
        return table[np.minimum(depth * 192, 191).astype(np.intp)]

    def line(self, rng: np.random.Generator, cells: int) -> Array:
        """Smooth noise along x, 0..1, `cells` cells over the world."""
        values = rng.random(cells + 2).astype(np.float32)
        at = np.clip((self.x - WORLD[0]) / (WORLD[2] - WORLD[0]), 0.0, 1.0) * cells
        cell = np.minimum(at.astype(np.intp), cells - 1)
        t = at - cell
        t = t * t * (3 - 2 * t)
        return values[cell] * (1 - t) + values[cell + 1] * t

    def ridge(self, height: Array, near: Colour, far: Colour, depth: float, bottom: float = WORLD[3]) -> int:
        """Land below the curve y = height(x), down to `bottom`: `near` at the crest, `far` from `depth` below it on.

        Returns its first row.
        """
        top = max(self.row(float(height.min())) - 1, 0)
        below = self.y[top : self.row(bottom)] - height
        cover = np.clip(below / self.px + 0.5, 0.0, 1.0)
        mix = np.clip(below / depth, 0.0, 1.0)
        self.blend(cover, (first + (last - first) * mix for first, last in zip(near, far, strict=True)), top)
        return top

    def decorate(self, draw: Callable[[Decor], None]) -> None:
        decor = Decor(self)
        draw(decor)
        bounds = decor.image.getbbox()
        if bounds is None:
            return
        left, top, right, bottom = bounds[0] & ~1, bounds[1] & ~1, (bounds[2] + 1) & ~1, (bounds[3] + 1) & ~1
        part = np.asarray(decor.image.crop((left, top, right, bottom)).reduce(2), np.float32)
        target = self.rgb[:, top // 2 : bottom // 2, left // 2 : right // 2]
        target += part[..., 3] / 255.0 * (np.moveaxis(part[..., :3], -1, 0) - target)
