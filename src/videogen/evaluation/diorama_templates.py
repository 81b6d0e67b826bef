"""What a Diorama object may look like: its six known silhouettes under its one light, at every turn (DESIGN.md section 2).

The classical checker of section 4's in-domain benchmark matches videos against these. Nothing here is learnt: the pictures
are drawn from the published shapes, paints and light.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from videogen.data.diorama import COLOURS, SHAPES, Labels
from videogen.data.diorama_sprite import PAINTS, Pose, Sprite

Array = np.ndarray

REACH = 1.2  # a template spans this many radii of the object to each side
BINS = 32  # a channel's bins in a colour histogram


@dataclass(frozen=True)
class Templates:
    """Pictures of objects on a square of 2 * REACH radii. K pictures of P = side * side pixels.

    look: float32 (K, P, 4), as `look` gives it, 0 outside the silhouette; cover: float32 (K, P), 0..1;
    shape: index into SHAPES, (K,); angle: radians, (K,). tolerance: the squared difference of looks at which a pixel speaks
    neither for nor against a match.
    """

    look: Array
    cover: Array
    shape: Array
    angle: Array
    tolerance: float

    @functools.cached_property
    def factors(self) -> tuple[Array, Array, Array]:
        """The matrices that `match` multiplies by: windows' looks (4 P, K), their visible pixels (P, K), and covers (P, K)."""
        weights = self.look * (2.0 * self.cover[..., None] / self.tolerance)
        visible = self.cover * (1.0 - (self.look**2).sum(-1) / self.tolerance)
        return np.ascontiguousarray(weights.reshape(len(weights), -1).T), np.ascontiguousarray(visible.T), self.cover.T.copy()

    def only(self, chosen: Array) -> Templates:
        """Those of the given indices or mask."""
        part = Templates(self.look[chosen], self.cover[chosen], self.shape[chosen], self.angle[chosen], self.tolerance)
        part.__dict__["factors"] = tuple(np.ascontiguousarray(factor[:, chosen]) for factor in self.factors)
        return part


def look(pixels: Array, colour: str) -> Array:
    """Pixels, 0..255 (..., 3), as features in which a match with an object of `colour` is judged: float32 (..., 4).

    A lit surface, its mark and its gloss are all `a * paint + b * white`. The features are 1, a point on a circle for `a`, and
    `b`, all times how near the pixel lies to that plane: so a pixel of any other hue is 0, and differences are bounded.
    """
    pixels = np.asarray(pixels, np.float32)
    if colour in ("white", "black"):
        level = pixels.mean(-1)
        away = ((pixels - level[..., None]) ** 2).sum(-1)
        nearness = np.exp(-away / (2 * 9.0**2))
        if colour == "white":
            nearness *= np.clip((level - 50.0) / 40.0, 0.0, 1.0)
        else:
            nearness *= np.clip((190.0 - level) / 40.0, 0.0, 1.0)
        turn, white, weight = level / (60.0 if colour == "white" else 40.0), np.zeros_like(level), 0.8
    else:
        paint = np.asarray(PAINTS[colour][0], np.float32)
        plane = np.linalg.pinv(np.stack([paint, np.full(3, 255.0)], 1)).astype(np.float32)  # (2, 3)
        a, b = pixels @ plane[0], pixels @ plane[1]
        away = ((pixels - a[..., None] * paint - 255.0 * b[..., None]) ** 2).sum(-1)
        nearness = np.exp(-away / (2 * 16.0**2)) * np.clip((a - 0.10) / 0.15, 0.0, 1.0) * np.clip((b + 0.20) / 0.1, 0.0, 1.0)
        turn, white, weight = 4.0 * a, 1.5 * (b - 0.1), 0.6
    features = np.stack([np.ones_like(turn), weight * np.cos(turn), weight * np.sin(turn), white], -1)
    return features * nearness[..., None]


@functools.cache
def _maps(shape: str, side: int, turns: int) -> tuple[Array, Array, Array, Array]:
    """How much a pixel shows of the surface's paint, of the mark's and of white gloss, and its cover: float32 (turns, P)."""
    sprite = Sprite(Labels("red", shape, "rests"))
    full = 230.0  # light reaches 1.08

    def drawn(angle: float, surface: tuple[float, ...], mark: tuple[float, ...], gloss: float, ground: int = 0) -> Array:
        sprite.surface, sprite.marked, sprite.gloss = np.array(surface), np.array(mark), gloss
        frame = np.full((side, side, 3), ground, np.uint8)
        sprite.draw(frame, Pose(0.5, 0.5, 0.5 / REACH, angle))
        return frame.reshape(-1, 3).astype(np.float32)

    black = (0.0, 0.0, 0.0)
    layers = []
    for angle in np.arange(turns) * (math.tau / turns):
        paint = drawn(angle, (full, 0.0, 0.0), (0.0, full, 0.0), 0.0) / full
        cover = 1.0 - drawn(angle, black, black, 0.0, 255)[:, 0] / 255.0
        shine = drawn(angle, black, black, 255.0)[:, 0] / 255.0
        cover[cover < 0.3] = 0.0
        layers.append([part / np.maximum(cover, 0.3) * (cover > 0) for part in (paint[:, 0], paint[:, 1], shine)] + [cover])
    surface, mark, gloss, covers = np.moveaxis(np.asarray(layers, np.float32), 1, 0)
    return surface, mark, gloss, covers


def pictures(colour: str, side: int, turns: int, shapes: tuple[str, ...]) -> tuple[Array, Array]:
    """All `shapes` in `colour`, each at `turns` angles, under full light: float32 (K, P, 3), 0..255, and covers (K, P)."""
    surface, mark, gloss, cover = (
        np.concatenate(parts) for parts in zip(*(_maps(s, side, turns) for s in shapes), strict=True)
    )
    paints = np.asarray(PAINTS[colour], np.float32)
    lit = surface[..., None] * paints[0] + mark[..., None] * paints[1]
    strength = 255.0 * {"black": 0.42, "white": 0.25}.get(colour, 0.36)  # as the sprite's own
    lit += np.minimum(strength * gloss, 255.0 - lit.max(-1))[..., None]
    return lit, cover


@functools.lru_cache(maxsize=256)
def templates(
    colour: str, side: int, turns: int, tolerance: float, light: float, shapes: tuple[str, ...] = SHAPES
) -> Templates:
    """The same as seen through `look`, under `light`: the share of full light that the hour and the weather leave."""
    lit, cover = pictures(colour, side, turns, shapes)
    angles = np.tile(np.arange(turns) * (math.tau / turns), len(shapes))
    shape = np.repeat([SHAPES.index(s) for s in shapes], turns)
    return Templates(look(light * lit, colour) * (cover[..., None] > 0), cover, shape, angles.astype(np.float32), tolerance)


def bin_of(pixels: Array) -> Array:
    """The histogram bin of each uint8 (..., 3) colour."""
    part = (pixels >> 3).astype(np.int32)
    return (part[..., 0] * BINS + part[..., 1]) * BINS + part[..., 2]


def smoothed(histogram: Array) -> Array:
    """The histogram (BINS^3,) blurred by [1 2 1] along each channel, twice."""
    cube = histogram.reshape(BINS, BINS, BINS)
    for axis in (0, 1, 2, 0, 1, 2):
        wide = np.pad(cube, [(1, 1) if i == axis else (0, 0) for i in range(3)], mode="edge")
        low, middle, high = (wide.take(range(k, k + BINS), axis) for k in range(3))
        cube = 0.25 * low + 0.5 * middle + 0.25 * high
    return cube.ravel()


@functools.cache
def palettes() -> Array:
    """How often each colour bin occurs on the surface of objects: float32 (len(COLOURS), BINS^3), each summing to 1."""
    result = []
    for colour in COLOURS:
        lit, cover = pictures(colour, 20, 24, SHAPES)
        pixels = lit[cover > 0.9]
        counts = np.zeros(BINS**3)
        for light in (0.74, 0.80, 0.88, 0.95, 1.0):  # the hours' and the weather's exposures
            counts += np.bincount(bin_of((pixels * light).astype(np.uint8)), minlength=BINS**3)
        result.append(smoothed(counts / counts.sum()))
    return np.asarray(result, np.float32)
