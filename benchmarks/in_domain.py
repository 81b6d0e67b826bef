"""What the in-domain networks are worth: accuracy on fresh true clips, and IS, FVD and CLIPSIM of true clips made worse.

accuracy: share of clips whose attribute the classifier names, of triples that it was trained on and of held-out ones.
metrics: of held-out clips as they are and in ways that a good metric must notice, FVD to twice as many other true clips, also
in units of the distance between the halves of those (its noise floor). CLIPSIM is with the clip's caption; "other caption"
gives each clip the next one's. Reversed, reordered, frozen and twice as fast clips keep the picture and change the motion.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measuring import Row, parser, report
from PIL import Image, ImageFilter

from videogen.data.diorama import ATTRIBUTES, Diorama, caption
from videogen.evaluation.clip_similarity import clip_similarity
from videogen.evaluation.features import video_features
from videogen.evaluation.frechet_video_distance import frechet_distance, noise_floor
from videogen.evaluation.in_domain import Judges, TrueClips, load_judges
from videogen.evaluation.inception_score import InceptionScore, softmax
from videogen.evaluation.statistics import GroupedMoments
from videogen.evaluation.videos import Sampling

FRAMES = 16
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def blurred(frames: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """By a Gaussian of a fiftieth of the height."""
    soft = ImageFilter.GaussianBlur(frames.shape[1] / 50)
    return np.stack([np.asarray(Image.fromarray(frame).filter(soft)) for frame in frames])


def noisy(frames: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Gaussian noise of deviation 15 of 255."""
    return as_bytes(frames + chance.normal(0, 15, frames.shape))


def flickering(frames: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """The brightness of each frame times a factor of deviation 10%."""
    return as_bytes(frames * chance.normal(1, 0.1, (len(frames), 1, 1, 1)))


def reordered(frames: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    return frames[chance.permutation(len(frames))]


def as_bytes(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).round().astype(np.uint8)


CHANGES: dict[str, Change] = {
    "true": lambda frames, chance: frames,
    "blurred": blurred,
    "noisy": noisy,
    "flickering": flickering,
    "reordered": reordered,
    "reversed": lambda frames, chance: frames[::-1],
    "frozen": lambda frames, chance: frames[:1].repeat(len(frames), 0),
    "grey": lambda frames, chance: as_bytes(frames.mean(3, keepdims=True).repeat(3, 3)),
}


def accuracy(judges: Judges, worlds: dict[str, Diorama], count: int) -> list[Row]:
    found = {}
    for name, world in worlds.items():
        labels = np.stack([world.labels(index).indices() for index in range(count)])
        features = [video_features(judges.features, [world.clip(index).frames]) for index in range(count)]
        with torch.inference_mode():
            scores = judges.features.network.classify(torch.from_numpy(np.concatenate(features)).float())
        found[name] = [scores[each].argmax(1).numpy() == labels[:, place] for place, each in enumerate(ATTRIBUTES)]
    rows: list[Row] = [
        {"attribute": each, **{name: float(right[place].mean()) for name, right in found.items()}}
        for place, each in enumerate(ATTRIBUTES)
    ]
    return [*rows, {"attribute": "all of them", **{name: float(np.all(right, 0).mean()) for name, right in found.items()}}]


class Sums:
    """The three metrics of one kind of clips."""

    def __init__(self, judges: Judges) -> None:
        self.judges = judges
        self.moments = GroupedMoments(judges.features.dimensions)
        self.score = InceptionScore(judges.classes.dimensions, 1)
        self.similarity: list[float] = []

    def add(self, frames: np.ndarray, caption: str, index: int) -> None:
        frames = np.ascontiguousarray(frames)
        self.moments.add(video_features(self.judges.features, [frames]), [index])
        self.score.add(softmax(video_features(self.judges.classes, [frames])), [index])
        clip = self.judges.clip
        self.similarity.append(float(clip_similarity(clip.images(frames)[None], clip.texts([caption]))[0]))


def metrics(judges: Judges, size: int, fps: float, count: int) -> list[Row]:
    true = GroupedMoments(judges.features.dimensions)
    for sample in TrueClips(Sampling(FRAMES, 1, size), fps, 2 * count).samples():
        true.add(video_features(judges.features, [sample.frames]), [sample.index])
    floor = noise_floor(true)
    world, slower = (Diorama(size, FRAMES, (rate,), split="held_out") for rate in (fps, fps / 2))
    found = {name: Sums(judges) for name in (*CHANGES, "twice the speed", "other caption")}
    for index in range(count):
        clip = world.clip(index)
        for name, change in CHANGES.items():
            found[name].add(change(clip.frames, np.random.default_rng(index)), clip.caption, index)
        found["twice the speed"].add(slower.clip(index).frames, clip.caption, index)
        found["other caption"].add(clip.frames, caption(world.labels(index + 1)), index)
    rows: list[Row] = []
    for name, sums in found.items():
        distance = frechet_distance(sums.moments.whole(), true.whole())
        score, similarity = sums.score.value()[0], float(np.mean(sums.similarity))
        rows.append({"clips": name, "FVD": distance, "floors": distance / floor, "IS": score, "CLIPSIM": similarity})
    return rows


def main() -> None:
    arguments = parser(__doc__, repeats=1)
    add = arguments.add_argument
    add("runs", type=Path, help="the folder of mini's runs, such as runs/mini")
    add("--count", type=int, default=500, help="clips of each set (default 500)")
    add("--size", type=int, default=256, help="of a frame, before the networks resize it (default 256)")
    add("--fps", type=float, default=4.0, help="default 4, mini's")
    add("--parts", nargs="+", choices=("accuracy", "metrics"), default=["accuracy", "metrics"])
    options = arguments.parse_args()
    judges = load_judges(options.runs, torch.device("cpu"))
    if "accuracy" in options.parts:
        known, held_out = (Diorama(options.size, FRAMES, (options.fps,), seed=2, split=each) for each in ("train", "held_out"))
        report(accuracy(judges, {"trained triples": known, "held-out triples": held_out}, options.count), options)
    if "metrics" in options.parts:
        report(metrics(judges, options.size, options.fps, options.count), options)


if __name__ == "__main__":
    main()
