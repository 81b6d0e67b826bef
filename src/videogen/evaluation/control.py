"""What steers a video, measured on Diorama: the reference picture (3.1, Figure 3), the words, the frame rate (3.2).

Of every scene: its words with references of four other layouts; one reference with four motions; the straight ones of these
at twice the frame rate. A video is read by the classical checker, and its frames are compared with the references as pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from videogen.config import UserError
from videogen.data.diorama import Diorama, Labels, caption
from videogen.evaluation.diorama_benchmark import CHECKER
from videogen.evaluation.diorama_checker import Reading, check
from videogen.evaluation.evaluate import describe
from videogen.evaluation.fidelity import psnr
from videogen.evaluation.measures import Number
from videogen.evaluation.pictures import Rows, side_by_side, spread, write_picture, write_text
from videogen.evaluation.production import REFERENCES, VIDEOS, Production, Team, generate_missing
from videogen.evaluation.result import Result, fingerprint
from videogen.evaluation.statistics import bootstrap, wilson
from videogen.evaluation.videos import IMAGE_SUFFIXES, Sample, Sampling, VideoFolderSamples
from videogen.generation import Job, Reference
from videogen.video import read_image

Say = Callable[[str], None]
PICTURES = 4  # references a scene
ASKED = ("moves right", "rises", "grows", "spins")  # of one reference
STRAIGHT = ("moves right", "rises")  # of these, at both frame rates
SIZE = 256  # of the references, in pixels; the pipeline resizes them
_SHOWN = 3  # scenes in a picture
_SEED = 5  # of the scenes: another world than those of the other benchmarks


@dataclass(frozen=True)
class Scene:
    """What a held-out scene shows, under a clear sky and before a still camera, and pictures of it in different layouts."""

    labels: Labels
    pictures: Sequence[Reference]

    @property
    def prompt(self) -> str:
        return caption(self.labels)


def scenes(count: int) -> list[Scene]:
    """The first frames of true clips that no network has seen, objects that stand on the ground, not far from the middle."""
    world = Diorama(SIZE, 2, (4.0,), seed=_SEED, split="held_out")
    found = []
    for index in range(count):
        labels = dataclasses.replace(world.labels(index), motion="rests", speed="", weather=None, camera=None)
        layouts = [world.render(labels, index * PICTURES + each).frames[0] for each in range(PICTURES)]
        pictures = [Reference(f"scene {index}, layout {each}", Image.fromarray(it)) for each, it in enumerate(layouts)]
        found.append(Scene(labels, pictures))
    return found


# What is generated


def control(production: Production, count: int, pictures: Path | None, output: Path, team: Team, say: Say) -> list[Result]:
    """Generate what is missing below `output`, measure, and on rank 0 write results, pictures and a table. Raises UserError.

    count: of scenes; pictures: a folder of images of any kind, each given with the words of a scene.
    """
    world, given = scenes(count), own_pictures(pictures)

    def make(name: str, jobs: Sequence[tuple[str, Reference]], made: Production = production) -> VideoFolderSamples:
        numbered = [Job(prompt, made.seed + at, at, reference) for at, (prompt, reference) in enumerate(jobs)]
        names = generate_missing(made, numbered, output / name, team, say)
        team.wait()
        return VideoFolderSamples(output / name / VIDEOS, Sampling(None, size=None), names=names)

    layouts = make("references", [(scene.prompt, picture) for scene in world for picture in scene.pictures])
    motions = make("motions", _moving(world, ASKED))
    rate = motions.read(0).fps
    if rate is None:
        raise UserError(f"{motions.folder / motions.names[0]} does not say how many frames a second it has")
    doubled = dataclasses.replace(production, options=dataclasses.replace(production.options, fps=2 * rate))
    fast = make("twice_the_rate", _moving(world, STRAIGHT), doubled)
    own = None
    if given:
        own = make("pictures", [(world[at % len(world)].prompt, picture) for at, picture in enumerate(given)])
    if not team.ranks.first:
        return []
    say("reading the videos")
    shown, shown_fast = ([check(each.frames, each.fps or rate) for each in videos.samples()] for videos in (motions, fast))
    references = [picture.image for scene in world for picture in scene.pictures if picture.image is not None]
    results = [
        _result(first_frames("control_first_frame_psnr", layouts), layouts, production),
        _result(own_reference(list(layouts.samples()), references), layouts, production),
        _result(motions_shown(shown), motions, production),
    ]
    ratio = steps_at_rates(shown, shown_fast)
    if ratio is None:
        say("note: no object was seen to move, so nothing can be said about the frame rate")
    else:
        results.append(_result(ratio, fast, doubled))
    if own is not None:
        results.append(_result(first_frames("control_pictures_psnr", own), own, production))
    for each in results:
        each.write(output / f"{each.metric}.json")
    text = describe(results, {})
    write_text(text + "\n", output / "table.md")
    _draw(world, layouts, motions, own, output)
    print(text, flush=True)
    return results


def own_pictures(folder: Path | None) -> list[Reference]:
    """The images of a folder in the order of their names. Raises UserError where there is none, or one cannot be read."""
    if folder is None:
        return []
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise UserError(f"no image in {folder}: expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    return [Reference.named(str(path)) for path in found]


def _moving(world: Sequence[Scene], motions: Sequence[str]) -> list[tuple[str, Reference]]:
    """The first layout of every scene with every motion."""
    return [
        (caption(dataclasses.replace(scene.labels, motion=motion)), scene.pictures[0]) for scene in world for motion in motions
    ]


# What is measured


def first_frames(metric: str, videos: VideoFolderSamples) -> Number:
    """Mean PSNR of the first frame to the reference as the pipeline cropped and resized it, dB."""
    values = np.array([psnr(each.frames[0], _as_given(each, videos)) for each in videos.samples()])
    interval = bootstrap(values, np.mean, seed=0) if len(values) > 1 else None
    each = [round(float(value), 2) for value in values]
    return Number(metric, float(values.mean()), None, interval, details={"each": each})


def _as_given(sample: Sample, videos: VideoFolderSamples) -> np.ndarray:
    """The reference of a video, uint8 RGB at the size of its frames."""
    return _resized(read_image(videos.folder.parent / REFERENCES / f"{sample.index:06d}.png"), sample.frames)


def _resized(picture: Image.Image, frames: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3), as large as `frames` (F, H, W, 3)."""
    return np.asarray(picture.resize((frames.shape[2], frames.shape[1]), Image.Resampling.BOX))


def own_reference(videos: Sequence[Sample], references: Sequence[Image.Image]) -> Number:
    """The share of videos whose last frame is nearer, in squared error, to their own reference than to any of the other
    `PICTURES` - 1 of the same words. references: RGB, in the order of the videos; chance is 1 / PICTURES."""
    right = []
    for sample in videos:
        start = sample.index // PICTURES * PICTURES
        resized = [_resized(each, sample.frames) for each in references[start : start + PICTURES]]
        right.append(int(np.argmax([psnr(sample.frames[-1], each) for each in resized])) == sample.index - start)
    return _share("control_references", right)


def motions_shown(readings: Sequence[Reading]) -> Number:
    """The share of videos, one for each of `ASKED` a scene, that show the motion asked for; by word [right, asked]."""
    words: dict[str, list[int]] = {motion: [0, 0] for motion in ASKED}
    right = []
    for index, reading in enumerate(readings):
        motion = ASKED[index % len(ASKED)]
        right.append(reading.motion == motion)
        words[motion][0] += right[-1]
        words[motion][1] += 1
    return _share("control_motions", right, by_word=words)


def steps_at_rates(readings: Sequence[Reading], fast: Sequence[Reading]) -> Number | None:
    """How far the object goes from frame to frame at twice the frame rate, over that of `readings`: 0.5 is right.

    The ratio of the sums over all pairs of videos in which an object is seen. readings: one for each of `ASKED` a scene; fast:
    one for each of `STRAIGHT` a scene. None where nothing is seen to move.
    """
    steps = []
    for index, reading in enumerate(fast):
        scene, motion = divmod(index, len(STRAIGHT))
        slow = readings[scene * len(ASKED) + ASKED.index(STRAIGHT[motion])]
        pair = [slow.details["drift"], reading.details["drift"]]
        if None not in pair:
            steps.append(pair)
    table = np.array(steps, float).reshape(-1, 2)
    if not table[:, 0].any():
        return None
    step, at_twice = (round(float(mean), 5) for mean in table.mean(0))
    about = {"pairs": len(table), "step": step, "step_at_twice": at_twice}
    interval = bootstrap(table, _ratio, seed=0) if len(table) > 1 else None
    return Number("control_step_at_twice_the_rate", _ratio(table), None, interval, details=about)


def _ratio(steps: np.ndarray) -> float:
    return float(steps[:, 1].sum() / max(steps[:, 0].sum(), 1e-9))


def _share(metric: str, right: Sequence[bool], **details: Any) -> Number:
    about = {"right": sum(right), "asked": len(right), **details}
    return Number(metric, float(np.mean(right)), None, wilson(sum(right), len(right)), details=about)


def _result(number: Number, videos: VideoFolderSamples, production: Production) -> Result:
    first = videos.read(0)
    return Result(
        metric=number.metric,
        value=number.value,
        spread=number.spread,
        interval=number.interval,
        samples=len(videos),
        skipped=0,
        fingerprint=fingerprint(
            prompts=None,
            count=len(videos),
            seeds=[production.seed + index for index in range(len(videos))],
            size=(first.frames.shape[1], first.frames.shape[2]),
            num_frames=len(first.frames),
            fps=first.fps,
            benchmark="control",
            checker=CHECKER,
            scenes=_SEED,
        ),
        details={**(number.details or {}), "generated": {"model": production.model, **production.describe()}},
    )


# What is looked at


def _draw(
    world: Sequence[Scene],
    layouts: VideoFolderSamples,
    motions: VideoFolderSamples,
    own: VideoFolderSamples | None,
    output: Path,
) -> None:
    """references.png, motions.png and pictures.png: the given reference, then frames of the video."""

    def row(videos: VideoFolderSamples, index: int) -> list[np.ndarray]:
        sample = videos.read(index)
        return [_as_given(sample, videos), *spread(sample.frames, 8)]

    def rows(videos: VideoFolderSamples, names: Sequence[str], scene: int) -> Rows:
        return {name: row(videos, scene * len(names) + each) for each, name in enumerate(names)}

    shown = list(enumerate(world[:_SHOWN]))
    names = [f"reference {each + 1}" for each in range(PICTURES)]
    write_picture(side_by_side([(s.prompt, rows(layouts, names, i)) for i, s in shown], 96), output / "references.png")
    write_picture(side_by_side([(s.prompt, rows(motions, ASKED, i)) for i, s in shown], 96), output / "motions.png")
    if own is not None:
        pictures = {str(each): row(own, each) for each in range(min(len(own), 8))}
        write_picture(side_by_side([("pictures that are not Diorama's", pictures)], 96), output / "pictures.png")
