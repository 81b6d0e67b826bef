"""Finding Diorama's one object in a video: by hue first, then by matching the known silhouettes (DESIGN.md section 2).

Classical vision only. Positions are in frame widths (x to the right, y down, the frame is [0, 1] x [0, 1]).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from videogen.data.diorama import COLOURS, SHAPES
from videogen.evaluation.diorama_templates import BINS, REACH, Templates, bin_of, look, palettes, smoothed, templates

Array = np.ndarray

SIDE = 64  # pixels of the small frames in which objects are sought
COARSE, FINE = (16, 24, 0.6), (24, 48, 0.35)  # pixels, turns and tolerance of the templates
SEEDS = 3  # blobs of a colour that are looked at in a frame
RADII = (0.075, 0.11, 0.16, 0.23)  # of the blobs sought


@dataclass(frozen=True)
class Track:
    """One object through a video of F frames.

    colour, shape: words of Diorama; pose: float64 (F, 4): x, y, radius (frame widths), angle (radians, unwrapped);
    quality: (F,) share of the silhouette explained, 1 is perfect, 0 no better than nothing; known: (F,) bool.
    """

    colour: str
    shape: str
    pose: Array
    quality: Array

    @property
    def known(self) -> Array:
        return self.quality > 0.25


def hue_maps(small: Array) -> Array:
    """How surely each pixel of `small`, uint8 (F, S, S, 3), is on an object of each colour: float32 (F, S, S, colours).

    Bayes' rule: the known palette of that colour against the histogram of the video itself, so that what is common in the
    scene (a blue sky) proves little.
    """
    bins = bin_of(small)
    scene = smoothed(np.bincount(bins.ravel(), minlength=BINS**3) / bins.size)
    table = np.minimum(0.05 * palettes() / (scene + 1e-6), 1.0).astype(np.float32)
    return np.ascontiguousarray(table.T)[bins]


def blobs(surface: Array) -> tuple[Array, Array]:
    """The SEEDS best blobs of each map, float32 (N, S, S), best first: strengths (N, SEEDS), and places and radii in frame
    widths (N, SEEDS, 3)."""
    strength, place = np.zeros((len(surface), SEEDS)), np.zeros((len(surface), SEEDS, 3))
    size = surface.shape[1]
    for index, plane in enumerate(surface):
        if plane.max() < 0.05:
            place[index] = 0.5, 0.5, RADII[1]
            continue
        scores = np.empty((len(RADII), size, size), np.float32)
        for score, radius in zip(scores, RADII, strict=True):
            inner, outer = max(1, round(0.8 * radius * size)), round(1.6 * radius * size)
            inside = cv2.blur(plane, (2 * inner + 1,) * 2, borderType=cv2.BORDER_CONSTANT)
            around = cv2.blur(plane, (2 * outer + 1,) * 2, borderType=cv2.BORDER_CONSTANT)
            np.multiply(inside - around, radius**0.5, out=score)
        for rank in range(SEEDS):
            level, row, column = np.unravel_index(int(scores.argmax()), scores.shape)
            strength[index, rank] = scores[level, row, column]
            place[index, rank] = (column + 0.5) / size, (row + 0.5) / size, RADII[level]
            near = round(0.12 * size)
            scores[:, max(row - near, 0) : row + near + 1, max(column - near, 0) : column + near + 1] = -1.0
    return strength, place


def cut_out(frame: Array, poses: Array, side: int) -> tuple[Array, Array]:
    """Squares of `frame`, float32 (S, S, C), around `poses` (N, 3 or 4): float32 (N, side^2, C), and whether inside."""
    size = frame.shape[0]
    unit = ((np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1) * REACH
    poses = np.asarray(poses, np.float32)
    x = (poses[:, :1] + poses[:, 2:3] * unit) * size - 0.5
    y = (poses[:, 1:2] + poses[:, 2:3] * unit) * size - 0.5
    maps = np.broadcast_to(x[:, None], (len(x), side, side)), np.broadcast_to(y[:, :, None], (len(x), side, side))
    right, down = (np.ascontiguousarray(part).reshape(-1, side) for part in maps)
    values = cv2.remap(frame, right, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = [(part > -0.5) & (part < size - 0.5) for part in maps]
    count = len(poses)
    return values.reshape(count, -1, frame.shape[2]), (inside[0] & inside[1]).reshape(count, -1).astype(np.float32)


def match(windows: Array, inside: Array, known: Templates) -> Array:
    """How well each window of looks (N, P, 4) shows each of K templates: (N, K), the mean over the visible silhouette of
    1 - squared difference / tolerance, times the share of the square that the silhouette covers."""
    by_look, by_visible, by_cover = known.factors
    count, pixels = inside.shape
    own = np.einsum("npc,npc->np", windows, windows)
    if inside.all():
        score = windows.reshape(count, -1) @ by_look + by_visible.sum(0)
    else:
        own *= inside
        score = (windows * inside[..., None]).reshape(count, -1) @ by_look + inside @ by_visible
    return (score - own @ by_cover / known.tolerance) / pixels


def _around(pose: Array, step: float, grow: tuple[float, ...], reach: int) -> Array:
    """Poses about `pose` (x, y, radius): a grid of shifts by `step` radii, times scales."""
    shifts = np.arange(-reach, reach + 1) * step * pose[2]
    return np.array([(pose[0] + dx, pose[1] + dy, pose[2] * g) for g in grow for dy in shifts for dx in shifts])


def search(frame: Array, seeds: Array, known: Templates) -> tuple[Array, Array]:
    """The best pose near any of `seeds` (N, 3) for each shape in a frame of looks: scores (shapes,) and poses (shapes, 4)."""
    poses = np.concatenate([_around(seed, 0.2, (0.66, 0.8, 0.96, 1.16, 1.4), 2) for seed in seeds])
    score = match(*cut_out(frame, poses, COARSE[0]), known) * poses[:, 2:3]
    scores, best = np.full(len(SHAPES), -np.inf), np.zeros((len(SHAPES), 4))
    for shape in set(known.shape.tolist()):
        columns = np.flatnonzero(known.shape == shape)
        row, column = divmod(int(score[:, columns].argmax()), len(columns))
        scores[shape] = score[row, columns[column]]
        best[shape] = (*poses[row], known.angle[columns[column]])
    return scores, best


def refine(frame: Array, pose: Array, known: Templates) -> tuple[float, Array, float]:
    """Climb from `pose` (x, y, radius, angle) to the best one for the one shape in `known`.

    Returns its score, the pose with fractions of a step, and the share of the silhouette explained.
    """
    turns = len(known.angle)
    pose = np.array(pose, float)
    for step in (0.12, 0.06, 0.03):
        for _ in range(3):
            grid = _around(pose, step, (1 / (1 + step), 1.0, 1 + step), 1)
            near = np.arange(-2, 3) + round(pose[3] / (2 * np.pi) * turns)
            part = known.only(near % turns)
            score = match(*cut_out(frame, grid, FINE[0]), part) * grid[:, 2:3] ** 2
            row, column = divmod(int(score.argmax()), 5)
            pose[:3], pose[3] = grid[row], part.angle[column]
            if row == 13 and column == 2:
                break
    cube = score.reshape(3, 3, 3, 5)
    scale, down, right = map(int, np.unravel_index(row, (3, 3, 3)))
    most = float(part.factors[2][:, column].mean()) * pose[2] ** 2
    pose[0] += _vertex(cube[scale, down, :, column], right) * step * pose[2]
    pose[1] += _vertex(cube[scale, :, right, column], down) * step * pose[2]
    pose[2] *= (1 + step) ** _vertex(cube[:, down, right, column], scale)
    pose[3] += _vertex(score[row], column) * 2 * np.pi / turns
    return float(score[row, column]), pose, float(score[row, column]) / most


def _vertex(values: Array, at: int) -> float:
    """Where the parabola through the maximum and its neighbours peaks, in steps from `at`."""
    if not 0 < at < len(values) - 1:
        return 0.0
    low, top, high = values[at - 1 : at + 2]
    bend = low - 2 * top + high
    return float(np.clip(0.5 * (low - high) / bend, -0.5, 0.5)) if bend < 0 else 0.0


def _seeds(small: Array) -> tuple[Array, Array]:
    """For each frame and colour its blobs: strengths (F, colours, SEEDS) and places (F, colours, SEEDS, 3)."""
    maps = np.moveaxis(hue_maps(small), -1, 1)
    strength, place = blobs(np.ascontiguousarray(maps).reshape(-1, *maps.shape[2:]))
    return strength.reshape(*maps.shape[:2], SEEDS), place.reshape(*maps.shape[:2], SEEDS, 3)


def _likely(strength: Array, share: float) -> Array:
    """Which blobs, best first, are at least so strong as this share of the best; the best one always."""
    good = strength >= share * strength[0]
    good[0] = True
    return good


def recognise(frames: Array, strength: Array, place: Array, light: float) -> tuple[str, str, Array]:
    """Colour, shape and how well each colour and shape matches (colours, shapes): in a few frames, added up.

    frames: float32 (F, S, S, 3), 0..255; strength, place: as `_seeds` gives them; light: the hour's, see `templates`.
    """
    total = np.zeros((len(COLOURS), len(SHAPES)))
    level = strength[..., 0].mean(0)
    likely = [index for index in np.argsort(-level)[:3] if level[index] > 0.1 * level.max()]
    chosen = np.unique(np.linspace(0, len(frames) - 1, 5).round().astype(int))
    found = np.zeros((len(COLOURS), len(chosen), len(SHAPES), 4))
    views = {index: look(frames[chosen], COLOURS[index]) for index in likely}
    for index in likely:
        known = templates(COLOURS[index], *COARSE, light)
        for row, frame in enumerate(chosen):
            good = _likely(strength[frame, index], 0.4)
            scores, found[index, row] = search(views[index][row], place[frame, index][good], known)
            total[index] += np.maximum(scores, 0.0)
    pairs = np.argsort(-total, axis=None)[:4]
    closer = np.zeros_like(total)
    for index, shape in zip(*np.unravel_index(pairs, total.shape), strict=True):
        if total[index, shape] <= 0.4 * total.max():
            continue
        known = templates(COLOURS[index], *FINE, light, (SHAPES[shape],))
        for row in (0, len(chosen) // 2, len(chosen) - 1):
            score, _, share = refine(views[index][row], found[index, row, shape], known)
            closer[index, shape] += max(share, 0.0) ** 2 * math.sqrt(max(score, 0.0) * level[index])
    colour, shape = np.unravel_index(closer.argmax(), closer.shape)
    return COLOURS[colour], SHAPES[shape], closer


def track(frames: Array, times: Array, light: float) -> Track:
    """The object through `frames`, uint8 (F, H, W, 3), at `times` (seconds): its colour, its shape and where it is.

    light: the share of full light that the hour leaves, see `templates`.
    """
    small = np.stack([cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in frames])
    strength, place = _seeds(small)
    pictures = small.astype(np.float32)
    colour, shape, _ = recognise(pictures, strength, place, light)
    coarse, fine = (templates(colour, *detail, light, (shape,)) for detail in (COARSE, FINE))
    index, looks = COLOURS.index(colour), look(pictures, colour)
    pose, quality = np.zeros((len(frames), 4)), np.zeros(len(frames))
    for frame, picture in enumerate(looks):
        good = _likely(strength[frame, index], 0.6)
        _, found = search(picture, place[frame, index][good], coarse)
        _, pose[frame], quality[frame] = refine(picture, found[SHAPES.index(shape)], fine)
    _mend(looks, times, pose, quality, fine)
    _turn(looks, times, pose, fine)
    return Track(colour, shape, pose, quality)


def _mend(looks: Array, times: Array, pose: Array, quality: Array, fine: Templates) -> None:
    """Look again in the frames where the object was found worse than in others, where its neighbours say that it is."""
    sure = quality > 0.8 * np.median(quality)
    if not sure.any():
        return
    for frame in np.flatnonzero(~sure):
        others = np.flatnonzero(sure)
        guess = [np.interp(times[frame], times[others], pose[others, part]) for part in range(3)]
        nearest = others[np.abs(others - frame).argmin()]
        _, again, share = refine(looks[frame], np.array([*guess, pose[nearest, 3]]), fine)
        if share > quality[frame]:
            pose[frame], quality[frame] = again, share


def _turn(looks: Array, times: Array, pose: Array, fine: Templates) -> None:
    """Give each frame the angle that fits it best near the steady turn that fits all frames best: a star seen alone looks
    much the same in five ways, a star that turns does not."""
    turns, rows = len(fine.angle), np.arange(len(looks))
    scores = np.concatenate([match(*cut_out(view, spot[None], FINE[0]), fine) for view, spot in zip(looks, pose, strict=True)])
    speeds = np.arange(-210.0, 211.0, 7.5) / 360.0 * turns  # steps a second
    starts = np.arange(turns)
    lines = speeds[:, None, None] * times + starts[None, :, None]  # (speeds, starts, F)
    fit = scores[rows, np.round(lines).astype(int) % turns].sum(-1)
    best = lines[np.unravel_index(fit.argmax(), fit.shape)]
    reach = np.arange(-3, 4)
    near = np.round(best).astype(int)[:, None] + reach
    part = scores[rows[:, None], near % turns]
    at = part[:, 1:-1].argmax(1) + 1
    peak = [reach[i] + _vertex(row, i) for row, i in zip(part, at, strict=True)]
    pose[:, 3] = (np.round(best) + peak) * 2 * np.pi / turns
