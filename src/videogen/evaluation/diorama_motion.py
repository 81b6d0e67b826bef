"""How Diorama's object moves, from its track: the nearest of the motions that Diorama knows (DESIGN.md section 2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from videogen.data.diorama import MOTIONS, SPEEDS
from videogen.data.diorama_render import BOUNCE, BOUNCE_PERIOD, CLIMB, DRIFT, FEET, GROWTH, ORBIT, ORBIT_PERIOD, PACE, SPIN

Array = np.ndarray

SPREAD = np.array((0.006, 0.006, 0.03, 0.15))  # of a tracked x, y (frame widths), logarithm of the radius, angle (radians)
PHASES = 48  # at which a bounce or a circle may begin


@dataclass(frozen=True)
class Course:
    """What a motion predicts: float64 (N, F, 4), N variants of x, y, log radius and angle, each up to a constant."""

    motion: str
    speed: str
    states: Array


def world_states(pose: Array, times: Array, pan: float, zoom: float) -> Array:
    """A track (F, 4) in the world: x, y, log radius, angle, with the camera's pan (frame widths a second) and zoom
    (logarithm of the scale a second) taken out."""
    scale = np.exp(zoom * times)
    x = (pose[:, 0] - 0.5) / scale + 0.5 + pan * times
    y = (pose[:, 1] - 0.5) / scale + 0.5
    return np.stack([x, y, np.log(np.maximum(pose[:, 2] / scale, 1e-3)), pose[:, 3]], -1)


def courses(times: Array, shape: str, radius: float) -> Iterator[Course]:
    """Every motion at every speed. radius: of the object at time 0, in frame widths."""
    for motion in MOTIONS:
        for speed in ("",) if motion == "rests" else SPEEDS:
            yield Course(motion, speed, _states(motion, speed, times, shape, radius))


def _states(motion: str, speed: str, times: Array, shape: str, radius: float) -> Array:
    pace = PACE[speed]
    variants = 2 * PHASES if motion == "circles" else PHASES if motion == "bounces" else 2 if motion == "spins" else 1
    states = np.zeros((variants, len(times), 4))
    phase = (np.arange(PHASES) / PHASES)[:, None]
    match motion:
        case "moves left" | "moves right":
            states[0, :, 0] = (1 if motion == "moves right" else -1) * DRIFT * pace * times
        case "rises" | "falls":
            states[0, :, 1] = (1 if motion == "falls" else -1) * CLIMB * pace * times
        case "bounces":
            u = (times / BOUNCE_PERIOD[speed] + phase) % 1.0
            states[:, :, 1] = -BOUNCE * 4 * u * (1 - u)
        case "spins":
            states[0, :, 3], states[1, :, 3] = SPIN * pace * times, -SPIN * pace * times
        case "circles":
            for turn, part in ((1, states[:PHASES]), (-1, states[PHASES:])):
                angle = math.tau * (turn * times / ORBIT_PERIOD[speed] + phase)
                part[:, :, 0], part[:, :, 1] = ORBIT * np.cos(angle), ORBIT * np.sin(angle)
        case "grows" | "shrinks":
            states[0, :, 2] = (1 if motion == "grows" else -1) * GROWTH[speed] * times
            states[0, :, 1] = -FEET[shape] * radius * np.exp(states[0, :, 2])
    return states


def misfit(states: Array, course: Course) -> float:
    """How badly a track (F, 4) follows a course: the mean over frames of a bounded squared distance, best variant."""
    gap = states - course.states
    linear = gap[..., :3] - np.median(gap[..., :3], axis=1, keepdims=True)
    centre = np.angle(np.exp(1j * gap[..., 3]).mean(axis=1, keepdims=True))
    turned = np.angle(np.exp(1j * (gap[..., 3] - centre)))
    distance = (np.concatenate([linear, turned[..., None]], -1) / SPREAD) ** 2
    return float((distance / (1.0 + distance / 25.0)).sum(-1).mean(-1).min())


def read_motion(pose: Array, times: Array, shape: str, pan: float, zoom: float) -> tuple[str, str, dict[str, float]]:
    """Motion, speed and the misfit of each "motion speed", from a track (F, 4) at `times` (seconds since the first
    frame, where the camera sees the world at its true size)."""
    states = world_states(pose, times, pan, zoom)
    radius = float(np.exp(np.median(states[:, 2])))
    found = {
        (course.motion, course.speed): misfit(states, course) for course in courses(times - np.median(times), shape, radius)
    }
    motion, speed = min(found, key=lambda name: found[name])
    return motion, speed, {" ".join(name).strip(): value for name, value in found.items()}
