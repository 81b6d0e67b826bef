"""Does a video show what its prompt asked for? Diorama's held-out triples, judged by classical vision (ours).

No network that we trained takes part in the judgement, and the judge itself is measured: on true clips of known content, stored
as generated ones are (`true_clips`), before any model is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videogen.data.diorama import Diorama, Labels, caption
from videogen.evaluation.benchmarks import Prompts
from videogen.evaluation.diorama_checker import ATTRIBUTES, agreement, check
from videogen.evaluation.measures import Number, State
from videogen.evaluation.pictures import Rows, side_by_side, spread, write_picture
from videogen.evaluation.production import VIDEOS, Team
from videogen.evaluation.statistics import wilson
from videogen.evaluation.videos import Sample, VideoFolderSamples
from videogen.video import Video, write_video

CHECKER = 3
"""Raised whenever the checker may judge a clip otherwise: results of different versions are not compared."""
ASKED = (*ATTRIBUTES, "all")
_SHOWN = 4  # failures of an attribute in the picture
_SEED = 4  # of the scenes: another world than those of the ablations (0) and of the real side of in-domain FVD (1)


def held_out(count: int) -> tuple[list[Labels], Prompts]:
    """What `count` held-out scenes show, and a free paraphrase of each as the prompt."""
    world = Diorama(seed=_SEED, split="held_out")
    labels = [world.labels(index) for index in range(count)]
    said = [caption(each, np.random.default_rng([_SEED, index])) for index, each in enumerate(labels)]
    return labels, Prompts.of(said, "Diorama held out, paraphrased")


def true_clips(labels: Sequence[Labels], output: Path, size: int, num_frames: int, fps: float, team: Team) -> Path:
    """Render this rank's share of the scenes into output/videos, as .mp4, where they are missing. Returns the folder."""
    folder = output / VIDEOS
    folder.mkdir(parents=True, exist_ok=True)
    world = Diorama(size, num_frames, (fps,), seed=_SEED, split="held_out")
    for index in range(team.ranks.rank, len(labels), team.ranks.size):
        path = folder / f"{index:06d}.mp4"
        if not path.exists():
            clip = world.render(labels[index], index)
            write_video(Video(clip.frames, fps, {"prompt": clip.caption}), path)
    team.wait()
    return folder


class Agreement:
    """The share of videos that show each attribute asked for, and of those that show all of them. Wilson intervals.

    Every attribute counts, said or not: no speed word means the middle one, no weather a clear sky, no camera a still one. Only
    the speed of something that rests is not asked.
    """

    name = "diorama"

    def __init__(self, labels: Sequence[Labels]) -> None:
        self.labels = labels
        self.right = {name: np.zeros(len(labels), np.uint8) for name in ASKED}
        self.asked = {name: np.zeros(len(labels), np.uint8) for name in ASKED}

    def add(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        seen: dict[str, list[str]] = {name: [] for name in (*ATTRIBUTES, "wrong")}
        for sample in samples:
            reading = check(sample.frames, sample.fps or 4.0)
            found = agreement(reading, self.labels[sample.index])
            for name, right in found.items():
                self.asked[name][sample.index], self.right[name][sample.index] = 1, right
            for name in ATTRIBUTES:
                seen[name].append(str(getattr(reading, name)))
            seen["wrong"].append(" ".join(name for name in ATTRIBUTES if not found.get(name, True)))
        return {name: np.array(column) for name, column in seen.items()}

    def state(self) -> State:
        return {f"{what}.{name}": table[name] for what, table in self._tables() for name in ASKED}

    def merge(self, state: State) -> None:
        for what, table in self._tables():
            for name in ASKED:
                table[name] = np.maximum(table[name], state[f"{what}.{name}"])

    def _tables(self) -> tuple[tuple[str, dict[str, np.ndarray]], ...]:
        return ("right", self.right), ("asked", self.asked)

    def numbers(self) -> list[Number]:
        result = []
        for name in ASKED:
            right, asked = int(self.right[name].sum()), int(self.asked[name].sum())
            if asked:
                interval, words = wilson(right, asked), {} if name == "all" else {"by_word": self._by_word(name)}
                about = {"asked": asked, "right": right, **words}
                result.append(
                    Number(f"diorama_{name}", right / asked, None, interval, protocol={"checker": CHECKER}, details=about)
                )
        return result

    def _by_word(self, name: str) -> Mapping[str, Any]:
        """For each word asked for: [right, asked]."""
        words: dict[str, list[int]] = {}
        for index in np.flatnonzero(self.asked[name]).tolist():
            count = words.setdefault(str(getattr(self.labels[index], name)), [0, 0])
            count[0] += int(self.right[name][index])
            count[1] += 1
        return words


def picture_failures(labels: Sequence[Labels], prompts: Sequence[str], videos: VideoFolderSamples, output: Path) -> int:
    """Draw the first failures of each attribute, from output/samples.jsonl, as output/failures.png. Returns how many."""
    lines = [json.loads(line) for line in (output / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    groups: list[tuple[str, Rows]] = []
    for name in ATTRIBUTES:
        failed = [line for line in lines if name in line["wrong"].split()]
        for line in failed[:_SHOWN]:
            index = line["index"]
            asked = getattr(labels[index], name) or "none"
            title = f"{name}: {asked}, seen {line[name] or 'none'} ({len(failed)} of {len(lines)} fail): {prompts[index]}"
            groups.append((title, {str(index): spread(videos.read(index).frames, 8)}))
    if groups:
        write_picture(side_by_side(groups, width=96), output / "failures.png")
    return len(groups)
