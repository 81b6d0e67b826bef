"""Diorama: an endless, seeded generator of captioned clips with exact labels and exact optical flow.

It stands in for the captioned video of section 4.1 where mini is trained; see DESIGN.md section 2 for the vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from videogen.config import Difference, UserError
from videogen.data.clips import Clip
from videogen.data.diorama_render import render_frames

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SHAPES = ("ball", "box", "triangle", "star", "heart", "ring")
MOTIONS = (
    "moves left",
    "moves right",
    "rises",
    "falls",
    "bounces",
    "spins",
    "circles",
    "grows",
    "shrinks",
    "rests",
)
SPEEDS = ("slowly", "", "quickly")
PLACES = ("meadow", "desert", "sea", "snowfield", "mountains", "city")
TIMES = ("day", "sunset", "night")
WEATHERS = ("rain", "snow")
CAMERAS = ("pans left", "pans right", "zooms in")
ATTRIBUTES: Mapping[str, tuple[str | None, ...]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "motion": MOTIONS,
    "speed": SPEEDS,
    "place": PLACES,
    "time": TIMES,
    "weather": (None, *WEATHERS),
    "camera": (None, *CAMERAS),
}
"""What can be said of a clip -> the classes that there are, in the order of `Labels.indices`."""


@dataclass(frozen=True)
class Labels:
    """What a clip shows, in words of the lists above. Something that rests has no speed. Raises UserError otherwise."""

    colour: str
    shape: str
    motion: str
    speed: str = ""
    place: str = "meadow"
    time: str = "day"
    weather: str | None = None
    camera: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in ATTRIBUTES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {getattr(self, name)!r}")
        if self.motion == "rests" and self.speed:
            raise UserError(f"something that rests has no speed: leave out {self.speed!r}")

    def indices(self) -> np.ndarray:
        """The class of each attribute of ATTRIBUTES, int64 (8,)."""
        return np.array([classes.index(getattr(self, name)) for name, classes in ATTRIBUTES.items()], np.int64)


def is_held_out(colour: str, shape: str, motion: str) -> bool:
    """Whether no network may see this triple in training (DESIGN.md section 2)."""
    return (7 * COLOURS.index(colour) + 11 * SHAPES.index(shape) + 13 * MOTIONS.index(motion)) % 10 == 0


OPPOSITES = {
    "moves left": "moves right",
    "moves right": "moves left",
    "rises": "falls",
    "falls": "rises",
    "bounces": "circles",
    "circles": "bounces",
    "spins": "rests",
    "rests": "spins",
    "grows": "shrinks",
    "shrinks": "grows",
}
"""What a motion is shown beside in a pair of clips."""

_TRIPLES = [(c, s, m) for c in COLOURS for s in SHAPES for m in MOTIONS]
_SPLITS = {
    "train": [triple for triple in _TRIPLES if not is_held_out(*triple)],
    "held_out": [triple for triple in _TRIPLES if is_held_out(*triple)],
}

# Ways to say it; the first of each is the canonical one. Motions as "verb" and "participle" with {} where the speed may go.
_SAY_COLOUR = {"purple": ("purple", "violet")}
_SAY_SHAPE = {"ball": ("ball", "sphere"), "box": ("box", "cube"), "ring": ("ring", "hoop")}
_SAY_MOTION: dict[str, tuple[tuple[str, str], ...]] = {
    "moves left": (
        ("moves left", "moving left"),
        ("moves to the left", "moving to the left"),
        ("goes left", "going left"),
        ("slides left", "sliding left"),
    ),
    "moves right": (
        ("moves right", "moving right"),
        ("moves to the right", "moving to the right"),
        ("goes right", "going right"),
        ("slides right", "sliding right"),
    ),
    "rises": (("rises", "rising"), ("goes up", "going up"), ("moves up", "moving up"), ("floats up", "floating up")),
    "falls": (("falls", "falling"), ("goes down", "going down"), ("moves down", "moving down"), ("drops", "dropping")),
    "bounces": (("bounces", "bouncing"), ("hops", "hopping"), ("bounces up and down", "bouncing up and down")),
    "spins": (("spins", "spinning"), ("rotates", "rotating"), ("turns", "turning")),
    "circles": (
        ("circles", "circling"),
        ("moves in a circle", "moving in a circle"),
        ("flies in circles", "flying in circles"),
    ),
    "grows": (("grows", "growing"), ("gets bigger", "getting bigger"), ("becomes larger", "becoming larger")),
    "shrinks": (("shrinks", "shrinking"), ("gets smaller", "getting smaller"), ("becomes smaller", "becoming smaller")),
    "rests": (("rests", "resting"), ("stands still", "standing still"), ("stays still", "staying still")),
}
_SAY_SPEED = {"slowly": ("slowly", "gently"), "quickly": ("quickly", "fast", "rapidly")}
_SAY_PLACE = {
    "meadow": ("over a meadow", "above a meadow", "in a meadow", "over a green meadow", "over the grass"),
    "desert": ("over a desert", "in the desert", "above the desert", "over the sand", "over sand dunes"),
    "sea": ("over the sea", "above the sea", "over the ocean", "above the water", "over the waves"),
    "snowfield": ("over a snowfield", "above a snowfield", "in a snowfield", "over a snowy field", "over a field of snow"),
    "mountains": ("over the mountains", "in the mountains", "in front of the mountains", "in front of high mountains"),
    "city": ("over a city", "in a city", "in the city", "above the city", "in front of a city"),
}
_SAY_TIME = {
    "day": ("by day", "during the day", "in daylight", ""),
    "sunset": ("at sunset", "at dusk", "in the evening", "at sundown"),
    "night": ("at night", "in the night", "by night", "under the stars"),
}
_SAY_WEATHER = {
    "rain": ("in the rain", "while it rains", "in rainy weather"),
    "snow": ("in the snow", "while it snows", "in falling snow"),
}
_SAY_CAMERA = {
    "pans left": ("while the camera pans left", "the camera pans left", "the camera moves left"),
    "pans right": ("while the camera pans right", "the camera pans right", "the camera moves right"),
    "zooms in": ("while the camera zooms in", "the camera zooms in", "the camera moves closer"),
}


def _words() -> frozenset[str]:
    said = [*COLOURS, *SHAPES, *MOTIONS, *SPEEDS, *PLACES, *TIMES, *WEATHERS, *CAMERAS, "a an the"]
    for table in (_SAY_COLOUR, _SAY_SHAPE, _SAY_SPEED, _SAY_PLACE, _SAY_TIME, _SAY_WEATHER, _SAY_CAMERA):
        said += [phrase for phrases in table.values() for phrase in phrases]
    said += [phrase for pairs in _SAY_MOTION.values() for pair in pairs for phrase in pair]
    return frozenset(re.findall(r"[a-z]+", " ".join(said)))


_WAYS = 8  # in which a training clip is said, its caption being the first
LONGEST = 16  # seconds in which a pan or zoom stays inside the painted world

VOCABULARY = _words()
"""Every word that a caption may hold, in lower case."""


def caption(labels: Labels, rng: np.random.Generator | None = None) -> str:
    """One sentence that says the labels: the canonical one without `rng`, else a free paraphrase in words of VOCABULARY."""

    def one(options: tuple[Any, ...]) -> Any:
        return options[0] if rng is None else options[int(rng.integers(len(options)))]

    def chance(probability: float) -> bool:
        return rng is not None and rng.random() < probability

    colour = one(_SAY_COLOUR.get(labels.colour, (labels.colour,)))
    shape = one(_SAY_SHAPE.get(labels.shape, (labels.shape,)))
    verb = one(_SAY_MOTION[labels.motion])[1 if chance(0.25) else 0]
    speed = one(_SAY_SPEED[labels.speed]) if labels.speed else ""
    place, time = one(_SAY_PLACE[labels.place]), one(_SAY_TIME[labels.time])
    article = "the" if chance(0.15) else "an" if colour[0] in "aeiou" else "a"
    action = [speed, verb] if chance(0.3) and speed != "fast" else [verb, speed]
    subject = [article, colour, shape, *action]
    front = rng.random() if rng is not None else 1.0
    if front < 0.12 and time:
        words = [f"{time},", *subject, place]
    elif front < 0.24:
        words = [f"{place},", *subject, time]
    else:
        words = [*subject, place, time]
    sentence = " ".join(word for word in words if word)
    extras = []
    if labels.weather:
        extras.append(one(_SAY_WEATHER[labels.weather]))
    if labels.camera:
        extras.append(one(_SAY_CAMERA[labels.camera]))
    if chance(0.3):
        extras.reverse()
    return ", ".join([sentence, *extras])


def _check_rate(fps: float, num_frames: int) -> None:
    if not (math.isfinite(fps) and 0 < fps <= 1000):
        raise UserError(f"a Diorama clip has up to 1000 frames a second, not {fps}")
    if num_frames / fps > LONGEST:
        raise UserError(
            f"{num_frames} frames at {fps:g} a second are longer than Diorama's {LONGEST} seconds: raise the frame rate"
        )


def _others(labels: Labels, differs: str, rng: np.random.Generator) -> list[Labels]:
    """The same scene with another motion, shape, speed or weather; what should be taken first comes first."""
    if differs == "motion":
        motions = (OPPOSITES[labels.motion], *(motion for motion in MOTIONS if motion != labels.motion))
        speeds = ["" if motion == "rests" else labels.speed for motion in motions]
        return [dataclasses.replace(labels, motion=m, speed=s) for m, s in zip(motions, speeds, strict=True)]
    if differs == "speed" and labels.motion == "rests":
        return []
    classes = [ATTRIBUTES[differs][int(each)] for each in rng.permutation(len(ATTRIBUTES[differs]))]
    others: list[dict[str, Any]] = [{differs: each} for each in classes if each != getattr(labels, differs)]
    return [dataclasses.replace(labels, **other) for other in others]


class Diorama:
    """Clips of `num_frames` frames, size x size pixels, each a pure function of (seed, split, index).

    The same index shows the same scene at every size and frame rate; only the sampling differs, and the first frame is the
    same. The frame rate is drawn from `fps`. split: "train" never shows a held-out triple, "held_out" shows only those
    and captions them canonically. pairs: clips 2k and 2k + 1 are of one scene and differ in one of these alone, "motion" (the
    second's is OPPOSITES of the first's, another where that is left out), "shape", "speed", "weather" or "fps": what tells
    them apart is the words or the rate; where nothing can differ both show the same. only: attribute of ATTRIBUTES -> those of
    its classes that are shown, "" for none.
    flow: also deliver exact optical flow of object and camera; shadow, weather and moving water count as part of the still
    background. dry: rain and snow begin to fall after the first frame. Raises UserError on an impossible size, length or frame
    rate, or an `only` that nothing fits.
    """

    def __init__(
        self,
        size: int = 128,
        num_frames: int = 16,
        fps: tuple[float, ...] = (4.0, 8.0, 16.0),
        *,
        seed: int = 0,
        split: Literal["train", "held_out"] = "train",
        flow: bool = False,
        dry: bool = False,
        pairs: Sequence[Difference] = (),
        only: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if not 8 <= size <= 2048:
            raise UserError(f"the size of a Diorama clip must be 8 to 2048 pixels, not {size}")
        if not 1 <= num_frames <= 4096:
            raise UserError(f"a Diorama clip has 1 to 4096 frames, not {num_frames}")
        if not fps:
            raise UserError("Diorama needs at least one frame rate")
        for rate in fps:
            _check_rate(rate, num_frames)
        if split not in _SPLITS:
            raise UserError(f"split must be one of {', '.join(_SPLITS)}, not {split!r}")
        if not 0 <= seed < 2**63:
            raise UserError(f"the seed must be 0 to 2**63 - 1, not {seed}")
        if not {*pairs} <= {*typing.get_args(Difference)}:
            raise UserError(f"pairs of clips differ in some of {', '.join(typing.get_args(Difference))}, not {list(pairs)}")
        self.size, self.num_frames, self.fps, self.seed, self.split = size, num_frames, tuple(fps), seed, split
        self.flow, self.dry, self.pairs = flow, dry, tuple(pairs)
        self.only = only or {}
        for name, classes in self.only.items():
            known = [known or "" for known in ATTRIBUTES.get(name, ())]
            if not known:
                raise UserError(f"only some of {name!r}: the attributes of a Diorama clip are {', '.join(ATTRIBUTES)}")
            unknown = [each for each in classes if each not in known]
            if unknown or not classes:
                raise UserError(f"only {name} must be some of {', '.join(map(repr, known))}, not {list(classes)}")
        self.triples = [
            triple
            for triple in _SPLITS[split]
            if all(
                each in self.only.get(name, (each,)) for name, each in zip(("colour", "shape", "motion"), triple, strict=True)
            )
        ]
        self._labels(0)  # does anything fit?

    def __len__(self) -> int:
        return 2**31

    def _generator(self, index: int, stream: int) -> np.random.Generator:
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        return np.random.default_rng([self.seed, list(_SPLITS).index(self.split), index, stream])

    def labels(self, index: int) -> Labels:
        """What clip `index` shows."""
        return self._shown(index)[0]

    def _scene(self, index: int) -> int:
        return index - index % 2 if self.pairs else index

    def _shown(self, index: int) -> tuple[Labels, float]:
        """What clip `index` shows and its frame rate. The second of a pair is like the first but for what a pair differs in."""
        scene = self._scene(index)
        labels, rate = self._labels(scene), self.fps[int(self._generator(scene, 3).random() * len(self.fps))]
        if index == scene:
            return labels, rate
        rng = self._generator(index, 0)
        for differs in rng.permutation(self.pairs):
            if differs == "fps":
                others = [(labels, float(other)) for other in rng.permutation(self.fps) if other != rate]
            else:
                others = [(other, rate) for other in _others(labels, differs, rng) if self._shows(other)]
            if others:
                return others[0]
        return labels, rate

    def _shows(self, labels: Labels) -> bool:
        triple = (labels.colour, labels.shape, labels.motion)
        return triple in self.triples and all((getattr(labels, name) or "") in self.only[name] for name in self.only)

    def _labels(self, index: int) -> Labels:
        rng = self._generator(index, 0)
        for _ in range(100_000 if self.triples else 0):  # of what is rarest, one draw in 2,000 fits
            if self._shows(labels := self._draw(rng)):
                return labels
        raise UserError(f"Diorama has no {self.split} clip with only {dict(self.only)}")

    def _draw(self, rng: np.random.Generator) -> Labels:
        colour, shape, motion = self.triples[int(rng.integers(len(self.triples)))]
        speed = SPEEDS[int(rng.integers(len(SPEEDS)))]
        place, time = PLACES[int(rng.integers(len(PLACES)))], TIMES[int(rng.integers(len(TIMES)))]
        weather, camera = WEATHERS[int(rng.integers(len(WEATHERS)))], CAMERAS[int(rng.integers(len(CAMERAS)))]
        clear, still = rng.random() < 0.6, rng.random() < 0.55
        return Labels(
            colour=colour,
            shape=shape,
            motion=motion,
            speed="" if motion == "rests" else speed,
            place=place,
            time=time,
            weather=None if clear else weather,
            camera=None if still else camera,
        )

    def clip(self, index: int) -> Clip:
        """Clip `index`, 0 <= index < len(self). Raises IndexError outside."""
        labels, fps = self._shown(index)
        if self.split != "train":
            return self._clip(labels, self._scene(index), fps, caption(labels))
        rng = self._generator(index, 2)
        said, *others = (caption(labels, rng) for _ in range(_WAYS))
        return self._clip(labels, self._scene(index), fps, said, tuple(others))

    def render(self, labels: Labels, index: int = 0, fps: float | None = None) -> Clip:
        """A clip of the chosen labels, captioned canonically: position, size and terrain are those of scene `index`.

        fps: the first of the source's frame rates if None. Raises UserError on an impossible one, IndexError as `clip`.
        """
        rate = self.fps[0] if fps is None else fps
        _check_rate(rate, self.num_frames)
        return self._clip(labels, index, rate, caption(labels))

    def _clip(self, labels: Labels, index: int, fps: float, said: str, paraphrases: tuple[str, ...] = ()) -> Clip:
        frames, flow, middle = render_frames(
            labels,
            self._generator(index, 1),
            size=self.size,
            num_frames=self.num_frames,
            fps=fps,
            with_flow=self.flow,
            dry=self.dry,
        )
        return Clip(frames, said, fps, flow=flow, labels=labels.indices(), middle=middle, paraphrases=paraphrases)
