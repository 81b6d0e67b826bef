"""The one object of a Diorama clip (DESIGN.md section 2): six shapes as signed distances, eight colours, light and shadow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from videogen.data.diorama_canvas import Array

if TYPE_CHECKING:
    from videogen.data.diorama import Labels

# Surface and mark, at full light: equal hue (DESIGN.md's), so that shading by a factor and highlights in white keep it.
PAINTS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "red": ((222, 36, 36), (250, 146, 146)),
    "orange": ((244, 130, 16), (255, 205, 155)),
    "yellow": ((248, 229, 20), (255, 251, 205)),
    "green": ((46, 168, 46), (158, 226, 158)),
    "blue": ((40, 99, 217), (150, 182, 245)),
    "purple": ((160, 62, 192), (220, 168, 237)),
    "white": ((242, 242, 242), (176, 176, 176)),
    "black": ((34, 34, 34), (104, 104, 104)),
}
EXPOSURE = {"day": 1.0, "sunset": 0.95, "night": 0.80}


@dataclass(frozen=True)
class Pose:
    """A similarity: world = centre + scale * R(angle) * local. The shape's local radius is 1; lengths in frame widths."""

    x: float
    y: float
    scale: float
    angle: float


def _unit(x: Array) -> Array:
    return np.minimum(np.maximum(x, 0.0), 1.0)


def _polygon(u: Array, v: Array, corners: int, outer: float, inner: float, rounding: float, turn: float) -> Array:
    """Signed distance to a rounded star or regular polygon with its first corner at angle `turn`. Corners lie at `outer`,
    the points between them at `inner` (outer * cos(pi / corners) makes straight sides)."""
    sector = 2 * math.pi / corners
    angles = [turn + sector * k for k in range(corners)]
    x = u * math.cos(angles[0]) + v * math.sin(angles[0])  # along the nearest corner's direction; y: away from it
    for angle in angles[1:]:
        np.maximum(x, u * math.cos(angle) + v * math.sin(angle), out=x)
    y = np.sqrt(np.maximum(u * u + v * v - x * x, 0.0))
    x -= outer
    ex, ey = inner * math.cos(sector / 2) - outer, inner * math.sin(sector / 2)
    along = _unit((x * ex + y * ey) / (ex * ex + ey * ey))
    away = np.hypot(x - along * ex, y - along * ey)
    return np.copysign(away, x * ey - y * ex) - rounding


def _heart(u: Array, v: Array) -> Array:
    """Signed distance to a heart: a square on its corner with half discs on its two upper sides."""
    side = 0.60  # half a side of the square, and the radius of the discs
    root = math.sqrt(0.5)
    x, y = np.abs(u), v + 0.10
    cx, cy = side * root, -side * root
    along = -(x - cx) * root + (y - cy) * root  # towards the tip
    across = (x - cx) * root + (y - cy) * root
    return np.where(along > 0, across, np.hypot(x - cx, y - cy)) - side


SHAPE: dict[str, Callable[[Array, Array], Array]] = {
    "ball": lambda u, v: np.hypot(u, v) - 1.0,
    "box": lambda u, v: _polygon(u, v, 4, 0.72 * math.sqrt(2), 0.72, 0.12, math.pi / 4),
    "triangle": lambda u, v: _polygon(u, v, 3, 0.95, 0.475, 0.12, -math.pi / 2),
    "star": lambda u, v: _polygon(u, v, 5, 1.0, 0.52, 0.06, -math.pi / 2),
    "heart": _heart,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.69) - 0.29,
}
BEVEL = {"ball": 1.0, "box": 0.34, "triangle": 0.5, "star": 0.5, "heart": 0.62, "ring": 0.29}  # where the surface turns away
MARK: dict[str, Callable[[Array, Array], Array]] = {  # signed distance to the surface mark that shows how a shape is turned
    "ball": lambda u, v: np.minimum(np.abs(v) - 0.24, np.hypot(u, v + 0.66) - 0.17),
    "box": lambda u, v: np.minimum(np.abs(u + 0.26), np.abs(v + 0.26)) - 0.12,
    "triangle": lambda u, v: v + 0.36,
    "star": lambda u, v: v + 0.46,
    "heart": lambda u, v: np.hypot(u + 0.42, v + 0.46) - 0.2,
    "ring": lambda u, v: (np.abs(np.arctan2(u, -v)) - 0.62) * 0.69,
}
SUN = np.array((-0.46, -0.62, 0.64), np.float32)
HALF = np.array((-0.26, -0.36, 0.896), np.float32)  # between the sun and the viewer


class Sprite:
    """The object: shape, surface and light."""

    def __init__(self, labels: Labels) -> None:
        self.shape, self.mark, self.bevel = SHAPE[labels.shape], MARK[labels.shape], BEVEL[labels.shape]
        surface, mark = PAINTS[labels.colour]
        exposure = EXPOSURE[labels.time] * (0.95 if labels.weather else 1.0)
        self.surface, self.marked = np.array(surface, np.float32) * exposure, np.array(mark, np.float32) * exposure
        self.gloss = 255.0 * exposure * {"black": 0.42, "white": 0.25}.get(labels.colour, 0.36)

    def local(self, pose: Pose, size: int, pad: int = 0) -> tuple[slice, slice, Array, Array]:
        """The pixels around the object, and the local coordinates of these and `pad` more on each side."""
        rows, columns = _span(pose.y, 1.14 * pose.scale + 1 / size, size), _span(pose.x, 1.14 * pose.scale + 1 / size, size)
        x = (centres(columns, size, pad) - pose.x) / pose.scale
        y = ((centres(rows, size, pad) - pose.y) / pose.scale)[:, None]
        cos, sin = math.cos(pose.angle), math.sin(pose.angle)
        return rows, columns, x * cos + y * sin, y * cos - x * sin

    def draw(self, frame: np.ndarray, pose: Pose) -> None:
        """Lay the object over `frame`, uint8 (H, W, 3)."""
        size = frame.shape[0]
        rows, columns, u, v = self.local(pose, size, pad=1)
        px = 1.0 / (size * pose.scale)
        inside = -self.shape(u, v)
        gx, gy = (inside[1:-1, 2:] - inside[1:-1, :-2]) / (2 * px), (inside[2:, 1:-1] - inside[:-2, 1:-1]) / (2 * px)
        inside, u, v = inside[1:-1, 1:-1], u[1:-1, 1:-1], v[1:-1, 1:-1]
        cover = _unit(inside / px + 0.5)
        steep = _unit(1.0 - inside / self.bevel) * 0.96
        lean = steep / np.maximum(np.hypot(gx, gy), 0.5)
        gx *= lean  # the surface normal is (-gx, -gy, up)
        gy *= lean
        up = np.sqrt(1.0 - steep * steep)
        shade = 0.46 + 0.62 * np.maximum(up * SUN[2] - gx * SUN[0] - gy * SUN[1], 0.0)
        shine = np.maximum(up * HALF[2] - gx * HALF[0] - gy * HALF[1], 0.0)
        for _ in range(5):  # to the 32nd power
            shine *= shine
        marked = _unit(0.5 - self.mark(u, v) / px)
        # White is added only up to the top of the range: clipping a channel would turn the hue.
        brightest = (marked * (self.marked.max() - self.surface.max()) + self.surface.max()) * shade
        gloss = np.minimum(self.gloss * shine, 255.0 - brightest)
        for channel in range(3):
            surface, mark = self.surface[channel], self.marked[channel]
            part = frame[rows, columns, channel].astype(np.float32)
            part += cover * ((marked * (mark - surface) + surface) * shade + gloss - part)
            frame[rows, columns, channel] = part + 0.5


def _span(centre: float, reach: float, size: int) -> slice:
    low = min(max(math.floor((centre - reach) * size), 0), size)
    return slice(low, min(max(math.ceil((centre + reach) * size), low), size))


def centres(span: slice, size: int, pad: int = 0) -> Array:
    """The pixels' centres along one axis, in frame widths."""
    return (np.arange(span.start - pad, span.stop + pad, dtype=np.float32) + 0.5) / size


def draw_shadow(frame: np.ndarray, pose: Pose, ground: float, strength: float) -> None:
    """A soft shadow on the ground: wider and fainter the higher the object floats."""
    size = frame.shape[0]
    height = max(ground - pose.y - 0.8 * pose.scale, 0.0)
    wide, flat = pose.scale * (0.95 + 0.5 * height), pose.scale * (0.22 + 0.15 * height)
    x0, y0 = pose.x + 0.25 * height, ground + 0.02 * pose.scale
    rows, columns = _span(y0, 2.0 * flat, size), _span(x0, 2.0 * wide, size)
    x, y = (centres(columns, size) - x0) / wide, ((centres(rows, size) - y0) / flat)[:, None]
    near = _unit(1.0 - 0.5 * np.sqrt(x * x + y * y))
    keep = 1.0 - near * near * (3.0 - 2.0 * near) * (strength / (1.0 + 2.2 * height))
    part = frame[rows, columns]
    part[:] = part * keep[..., None] + 0.5
